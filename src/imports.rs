//! Which part of the program may import which: `docs/architecture.md` draws it, these tests hold it.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The floors of `src`, from the top. A part imports parts of lower floors only.
const FLOORS: [&[&str]; 16] = [
    &["main"],
    &["cli", "fuzz"],
    &["daemon", "doctor"],
    &["hooks"],
    &["kubernetes"],
    &["ahead"],
    &["node"],
    &["policy"],
    &["unpack"],
    &["image", "install"],
    &["handlers"],
    &["free_space", "logs"],
    &["metrics"],
    &["containerd", "ctr"],
    &["config", "panics"],
    &["peak", "peer", "printable", "question", "retry", "unquoted"],
];

/// The same for the rooms of `src/unpack`.
const UNPACK: [&[&str]; 10] = [
    &["admit"],
    &["engine"],
    &["serve"],
    &["flight", "inspect", "purge"],
    &["repair"],
    &["target"],
    &["layer"],
    &["schedule", "ready_cache"],
    &["snapshotter"],
    &["chain"],
];

/// Names that no file of a part may contain, since the part must not know what they stand for.
const UNKNOWN: [(&str, &[&str]); 5] = [
    (
        "kubernetes",
        &[
            "nri::",
            "crate::unpack",
            "crate::containerd",
            "crate::image",
        ],
    ),
    ("unpack", &["nri::", "crate::hooks", "crate::handlers"]),
    ("image", &["nri::", "crate::unpack", "snapshotter: &str"]),
    (
        "containerd",
        &["nri::", "crate::image", "crate::unpack", "crate::handlers"],
    ),
    ("policy", &["std::fs", "tokio::", "async fn"]),
];

/// A source file without its tests.
struct Source {
    /// Relative to `src`.
    path: PathBuf,
    text: String,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut directories = vec![root.clone()];
    let mut sources = vec![];
    while let Some(directory) = directories.pop() {
        for entry in std::fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_stem().unwrap().to_str().unwrap();
            if name == "tests" || name == "imports" {
                continue;
            }
            if path.is_dir() {
                directories.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
                sources.push(Source {
                    path: path.strip_prefix(&root).unwrap().to_owned(),
                    text: text.to_owned(),
                });
            }
        }
    }
    assert!(sources.len() > 100, "the sources were not found");
    sources
}

/// The first folder or file name of a path, without its extension.
fn first(path: &Path) -> String {
    let first = path.components().next().unwrap().as_os_str();
    first.to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The names that follow `prefix` in a text: `prefix::{a, b::c}` gives a and b.
fn named(text: &str, prefix: &str) -> BTreeSet<String> {
    let word = |text: &str| -> String {
        let is_word = |c: &char| c.is_alphanumeric() || *c == '_';
        text.chars().take_while(is_word).collect()
    };
    let mut names = BTreeSet::new();
    for (at, _) in text.match_indices(prefix) {
        let rest = &text[at + prefix.len()..];
        let Some(group) = rest.strip_prefix('{') else {
            names.insert(word(rest));
            continue;
        };
        let mut depth = 0;
        let mut starts = true;
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth == 0 => break,
                '}' => depth -= 1,
                ',' if depth == 0 => starts = true,
                c if c.is_whitespace() => {}
                _ if starts => {
                    names.insert(word(&group[i..]));
                    starts = false;
                }
                _ => {}
            }
        }
    }
    names
}

fn floor(floors: &[&[&str]], part: &str) -> Option<usize> {
    floors.iter().position(|floor| floor.contains(&part))
}

fn assert_down(floors: &[&[&str]], from: &str, path: &Path, imported: BTreeSet<String>) {
    let here = floor(floors, from);
    let here = here.unwrap_or_else(|| panic!("{from} has no floor in this test"));
    for part in imported {
        if let Some(there) = floor(floors, &part) {
            assert!(
                there > here || part == from,
                "{}: imports {part}, which is not on a lower floor than {from}",
                path.display()
            );
        }
    }
}

#[test]
fn imports_run_down() {
    for Source { path, text } in sources() {
        let part = first(&path);
        if part != "lib" {
            assert_down(&FLOORS, &part, &path, named(&text, "crate::"));
        }
        let Ok(inside) = path.strip_prefix("unpack") else {
            continue;
        };
        let room = first(inside);
        if room != "mod" {
            assert_down(&UNPACK, &room, &path, named(&text, "crate::unpack::"));
        }
    }
}

#[test]
fn no_part_knows_what_it_must_not_know() {
    for Source { path, text } in sources() {
        let part = first(&path);
        for (_, names) in UNKNOWN.iter().filter(|(of, _)| *of == part) {
            for name in *names {
                assert!(
                    !text.contains(name),
                    "{}: {part} must not know {name}",
                    path.display()
                );
            }
        }
    }
}

/// Siblings are the files and folders of one folder.
#[test]
fn no_siblings_import_one_another_in_a_circle() {
    let mut folders: BTreeMap<PathBuf, BTreeMap<String, BTreeSet<String>>> = BTreeMap::new();
    for Source { path, text } in sources() {
        let folder = path.parent().unwrap().to_owned();
        let name = first(Path::new(path.file_name().unwrap()));
        let siblings = folders.entry(folder).or_default();
        siblings.insert(name, named(&text, "super::"));
    }
    for (folder, mut siblings) in folders {
        let names: BTreeSet<_> = siblings.keys().cloned().collect();
        for (name, imports) in &mut siblings {
            imports.retain(|import| names.contains(import) && import != name);
        }
        // Takes away what imports nothing of what is left, until nothing changes.
        while let Some(leaf) = siblings
            .iter()
            .find_map(|(name, imports)| imports.is_empty().then(|| name.clone()))
        {
            siblings.remove(&leaf);
            for imports in siblings.values_mut() {
                imports.remove(&leaf);
            }
        }
        assert!(
            siblings.is_empty(),
            "a circle of imports in src/{}: {siblings:?}",
            folder.display()
        );
    }
}

#[test]
fn imports_are_recognized() {
    let text = "use crate::a::B;\nuse crate::{c, d::{self, E}, f};\nfn g() { crate::h::i() }";
    let found: Vec<_> = named(text, "crate::").into_iter().collect();
    assert_eq!(found, ["a", "c", "d", "f", "h"]);
}

#[test]
fn the_architecture_names_files_that_exist() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = std::fs::read_to_string(root.join("docs/architecture.md")).unwrap();
    let spans = page.split('`').skip(1).step_by(2);
    let named: Vec<_> = spans.filter(|span| span.ends_with(".rs")).collect();
    assert!(named.len() > 30, "{named:?}");
    for name in named {
        let directories = ["", "src", "src/config"];
        let is_there = directories
            .iter()
            .any(|it| root.join(it).join(name).is_file());
        assert!(
            is_there,
            "docs/architecture.md names {name}, which does not exist"
        );
    }
}
