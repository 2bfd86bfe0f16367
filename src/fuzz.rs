//! What the fuzzers in `fuzz/` call, and the tests that replay their corpus. Each function does with bytes what the program
//! does with bytes of others, and panics if a promise does not hold.

use crate::config::Config;
use crate::image::{hostname, is_pullable, name_for_labels, normal, record_name, repository};

pub use crate::handlers::fuzz::containerd_configuration;
pub use crate::image::fuzz::documents;
pub use crate::unpack::fuzz::archive;

/// The text of a reference, of a label or an annotation.
///
/// # Panics
/// If a normal form is not normal, or a repository is not that of its reference.
pub fn references(text: &[u8]) {
    let text = String::from_utf8_lossy(text);
    let normal_form = normal(&text);
    assert_eq!(normal(&normal_form), normal_form);
    let record = record_name(&text);
    assert_eq!(record_name(&record), record);
    if let Some(repository) = repository(&text) {
        assert!(is_pullable(&text) && text.starts_with(&repository));
        assert!(!hostname(&repository).is_empty());
        let names = [text.clone().into_owned()];
        let chosen = name_for_labels(Some(&text), &names);
        assert_eq!(chosen.as_deref(), Some(&*text));
    }
}

/// The text of the plugin's configuration, with an image that its patterns are matched with.
pub fn configuration(text: &[u8]) {
    let Ok(text) = std::str::from_utf8(text) else {
        return;
    };
    match Config::from_toml(text, "fuzz") {
        Err(e) => drop(e.to_string()),
        Ok(config) => {
            let policy = config.snapshotter("x");
            for image in ["docker.io/library/busybox:latest", text] {
                let patterns = policy.include.iter().chain(&policy.exclude);
                let _ = patterns.filter(|it| it.matches(image)).count();
            }
            for (_, template) in policy.extra_labels.iter() {
                template.fill(|_| Some("value"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    fn replay(target: &str, function: fn(&[u8])) {
        let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus");
        let files = std::fs::read_dir(corpus.join(target)).unwrap();
        let inputs: Vec<_> = files.map(|file| file.unwrap().path()).collect();
        assert!(!inputs.is_empty(), "{target} has no corpus");
        for input in inputs {
            println!("{}", input.display());
            function(&std::fs::read(input).unwrap());
        }
    }

    #[test]
    fn the_corpus_of_documents() {
        replay("documents", super::documents);
    }

    #[test]
    fn the_corpus_of_references() {
        replay("references", super::references);
    }

    #[test]
    fn the_corpus_of_the_configuration() {
        replay("configuration", super::configuration);
    }

    #[test]
    fn the_corpus_of_containerds_configuration() {
        replay("containerd_configuration", super::containerd_configuration);
    }

    #[test]
    fn the_corpus_of_archives() {
        replay("archive", super::archive);
    }
}
