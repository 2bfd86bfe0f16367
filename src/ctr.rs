//! The commands of containerd's own `ctr` that errors and findings advise, as they have to be called on this
//! node.

use std::path::PathBuf;

use crate::config::Config;

/// What `ctr` has to be told on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ctr {
    /// The namespace of the images, `containerd.namespace`.
    pub namespace: String,
    /// The directory of `hosts.toml` files, `pull.hosts`.
    pub hosts: PathBuf,
}

impl Ctr {
    /// As it is configured.
    pub fn of(config: &Config) -> Self {
        Self {
            namespace: config.containerd.namespace.to_string(),
            hosts: config.pull.hosts.as_ref().to_owned(),
        }
    }

    /// Fetches the blobs of an image that are missing; blobs that are there stay.
    pub fn fetch(&self, image: &str) -> String {
        format!(
            "ctr -n {} content fetch --hosts-dir {} {}",
            self.namespace,
            word(&self.hosts.display().to_string()),
            word(image)
        )
    }

    /// Gives an image another name, which is to be written behind it.
    pub fn tag(&self, image: &str) -> String {
        format!("ctr -n {} images tag {}", self.namespace, word(image))
    }

    /// Removes the record of an image.
    pub fn remove_image(&self, image: &str) -> String {
        format!("ctr -n {} images rm {}", self.namespace, word(image))
    }

    /// Removes a snapshot.
    pub fn remove(&self, snapshotter: &str, key: &str) -> String {
        format!(
            "ctr -n {} snapshots --snapshotter {} rm {}",
            self.namespace,
            word(snapshotter),
            word(key)
        )
    }
}

/// A name as one word of a command that people copy into a shell.
pub(crate) fn word(name: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "@%+=:,./_-".contains(c);
    match !name.is_empty() && name.chars().all(is_plain) {
        true => name.to_owned(),
        false => format!("'{}'", name.replace('\'', r"'\''")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::path::Path;

    use super::*;

    #[test]
    fn a_name_is_one_word_of_a_command() {
        for (name, expected) in [
            (
                "r.example:5000/a/b:1@sha256:00",
                "r.example:5000/a/b:1@sha256:00",
            ),
            ("a; rm -rf /", "'a; rm -rf /'"),
            ("a'$(b)", r"'a'\''$(b)'"),
            ("", "''"),
        ] {
            assert_eq!(word(name), expected);
        }
    }

    /// The code of a file, without its tests and its comments.
    fn code(text: &str) -> String {
        let code = text.split("#[cfg(test)]\nmod tests {").next();
        let code = code.unwrap_or_default();
        let lines = code.lines().filter(|line| !line.trim().starts_with("//"));
        lines.collect::<Vec<_>>().join("\n")
    }

    fn files(folder: &Path, found: &mut Vec<(String, String)>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if path.is_dir() && name != "tests" {
                files(&path, found);
            } else if path.extension().is_some_and(|end| end == "rs") && name != "tests.rs" {
                let text = fs::read_to_string(&path).unwrap();
                found.push((path.display().to_string(), code(&text)));
            }
        }
    }

    /// Messages name the namespace and the directory that are configured: only the defaults are written out.
    #[test]
    fn no_message_names_what_is_configured() {
        let mut all = vec![];
        files(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut all);
        assert!(all.len() > 100, "{}", all.len());
        for words in ["k8s.io", "/etc/containerd/certs.d"] {
            let named = all.iter().filter(|(_, code)| {
                // An API group of Kubernetes is no namespace.
                code.replace("node.k8s.io", "").contains(words)
            });
            let named: Vec<_> = named.map(|(path, _)| path).collect();
            assert!(
                matches!(named[..], [path] if path.ends_with("src/config/sections.rs")),
                "{words}: {named:?}"
            );
        }
    }
}
