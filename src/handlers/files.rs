//! Reads containerd's configuration files: the main file and its imports, in containerd's order.
//!
//! A file that cannot be read adds a problem and no values; it never stops the plugin. containerd itself
//! would not have started with such a file, so the file was changed later, or this process cannot see it.

use std::{
    collections::{BTreeSet, VecDeque},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use toml::{Table, Value};

use super::migration::{Files, Rules, version};
use super::tree::Tree;
use super::{document, go_glob, problem::Problem, settings::Settings, source::Reported};
use crate::config::line_and_column;

/// The largest number of files, more than any node has. A larger number shows imports that repeat endlessly
/// under new names.
const MAX_FILES: usize = 256;

/// The values of containerd's configuration files, and their problems.
#[derive(Debug, Default)]
pub struct FileConfig {
    pub(super) reported: Reported,
    pub(super) problems: Vec<Problem>,
    /// Whether the main file exists.
    pub(super) is_there: bool,
    settings: Settings,
    unseen: Vec<Unseen>,
}

/// A pattern of imports in a folder that this process cannot see.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} imports {}, a folder that does not exist for this process", by.display(), pattern.display())]
pub struct Unseen {
    /// The file that imports.
    pub by: PathBuf,
    /// The pattern.
    pub pattern: PathBuf,
}

impl FileConfig {
    /// Reads `path` and its imports as a containerd of this version does. Blocks while it reads a few small
    /// files.
    ///
    /// If `path` does not exist, containerd uses its defaults, or its file is elsewhere.
    pub fn read(path: &Path, containerd: Option<(u64, u64)>) -> Self {
        let mut config = Self::default();
        if matches!(path.try_exists(), Ok(false)) {
            config.settings = Settings::new(Tree::default(), Rules::of(containerd, 0));
            return config;
        }
        config.is_there = true;
        let path = clean(path);
        let files = config.load_all(path.clone());
        let main = files.first().filter(|(of, _)| **of == *path);
        let stated = main.map_or(0, |(_, table)| version(table));
        let rules = Rules::of(containerd, stated);
        let mut all = Files::new(rules);
        for (path, table) in files {
            all.add(table, &path);
        }
        let tree = all.finish().unwrap_or_else(|reason| {
            config.problems.push(Problem::Refused { path, reason });
            Tree::default()
        });
        config.reported = document::reported(&tree, rules);
        config.settings = Settings::new(tree, rules);
        config
    }

    /// Returns all keys of the files.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    /// Returns the problems of the files.
    pub fn problems(&self) -> &[Problem] {
        &self.problems
    }

    /// Returns the imports that may match files which this process cannot see.
    pub fn unseen(&self) -> &[Unseen] {
        &self.unseen
    }

    /// Whether all files were read, so that containerd's defaults hold for all other values.
    pub fn is_whole(&self) -> bool {
        self.is_there && self.problems.is_empty()
    }

    fn load_all(&mut self, main: PathBuf) -> Vec<(Arc<Path>, Table)> {
        let mut loaded = Vec::new();
        let mut pending = VecDeque::from([main]);
        let mut seen = BTreeSet::new();
        while let Some(path) = pending.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if seen.len() > MAX_FILES {
                let limit = MAX_FILES;
                self.problems.push(Problem::TooManyFiles { path, limit });
                break;
            }
            match load(&path) {
                Ok(table) => {
                    pending.extend(self.imports(&path, &table));
                    loaded.push((path.into(), table));
                }
                Err(problem) => self.problems.push(problem),
            }
        }
        loaded
    }

    /// Returns the files that a file imports, in order. Paths are relative to its folder, and the matches of a
    /// `*` are sorted.
    fn imports(&mut self, path: &Path, table: &Table) -> Vec<PathBuf> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let imports = table.get("imports").and_then(Value::as_array);
        let imports = imports.into_iter().flatten().filter_map(Value::as_str);
        let mut files = Vec::new();
        for import in imports {
            let pattern = clean(&folder.join(import));
            let text = pattern.to_string_lossy();
            if !text.contains('*') {
                files.push(pattern);
                continue;
            }
            match go_glob::glob(&text) {
                Ok(matches) => files.extend(matches),
                Err(go_glob::BadPattern) => self.problems.push(Problem::BadImport {
                    path: path.to_owned(),
                    import: import.to_owned(),
                }),
            }
            let is_plain =
                |part: &Component<'_>| !go_glob::has_meta(&part.as_os_str().to_string_lossy());
            let folder: PathBuf = pattern.components().take_while(is_plain).collect();
            if !folder.exists() {
                let by = path.to_owned();
                self.unseen.push(Unseen { by, pattern });
            }
        }
        files
    }
}

fn load(path: &Path) -> Result<Table, Problem> {
    let text = std::fs::read_to_string(path).map_err(|reason| Problem::Unreadable {
        path: path.to_owned(),
        reason,
    })?;
    text.parse().map_err(|error: toml::de::Error| {
        let (line, _) = line_and_column(&text, error.span());
        Problem::Malformed {
            path: path.to_owned(),
            line,
            reason: error.message().to_owned(),
        }
    })
}

/// Removes `.` and `..` from a path by its text alone, so that one file has one name.
fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => _ = clean.pop(),
            Component::CurDir => {}
            other => clean.push(other),
        }
    }
    clean
}
