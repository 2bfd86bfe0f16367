//! The reader of containerd's configuration files: the main one and, in containerd's order, those
//! that it imports.
//!
//! A file that cannot be read costs what it would have said and leaves a reason; it never stops
//! the plugin. containerd itself would not have started with it, so it was changed since.

use std::{
    collections::{BTreeSet, VecDeque},
    path::{Component, Path, PathBuf},
};

use super::{document::Document, problem::Problem, settings::Settings, source::Reported};
use crate::config::line_and_column;

/// The version of a main file that states none.
const VERSION_UNSTATED: u32 = 1;

/// More files than any node has; beyond it, imports lead in circles under ever new names.
const MAX_FILES: usize = 256;

/// What containerd's configuration files say, and what was wrong with them.
#[derive(Debug, Default)]
pub struct FileConfig {
    pub(super) reported: Reported,
    pub(super) problems: Vec<Problem>,
    settings: Settings,
}

impl FileConfig {
    /// Reads `path` and what it imports. Blocks, for as long as it takes to read some small files.
    ///
    /// If `path` does not exist, containerd runs on its defaults; that is not a problem.
    pub fn read(path: &Path) -> Self {
        let mut config = Self::default();
        if matches!(path.try_exists(), Ok(false)) {
            return config;
        }
        let mut pending = VecDeque::from([clean(path)]);
        let mut seen = BTreeSet::new();
        let mut main_version = None;
        while let Some(path) = pending.pop_front() {
            if !seen.insert(path.clone()) {
                continue;
            }
            if seen.len() > MAX_FILES {
                let limit = MAX_FILES;
                config.problems.push(Problem::TooManyFiles { path, limit });
                break;
            }
            match load(&path) {
                Ok((document, text)) => {
                    config.settings.add(&path, &text);
                    // A file without a version is of the main one's.
                    let stated = document.version.or(main_version);
                    let version = stated.unwrap_or(VERSION_UNSTATED);
                    main_version.get_or_insert(version);
                    pending.extend(config.imports(&path, &document));
                    config.add(document, version, path);
                }
                Err(problem) => config.problems.push(problem),
            }
        }
        config
    }

    /// Every key that the files have.
    pub fn settings(&self) -> &Settings {
        &self.settings
    }

    fn add(&mut self, document: Document, version: u32, path: PathBuf) {
        let too_old = document.is_too_old(version);
        let reported = document.reported(version, &path);
        self.reported = std::mem::take(&mut self.reported).overlaid_by(reported);
        if too_old {
            self.problems.push(Problem::TooOld { path });
        }
    }

    /// The files that `document` imports, in order: relative to its own folder, and with `*` any
    /// number of them, sorted.
    fn imports(&mut self, path: &Path, document: &Document) -> Vec<PathBuf> {
        let folder = path.parent().unwrap_or(Path::new("/"));
        let mut files = Vec::new();
        for import in &document.imports {
            let pattern = clean(&folder.join(import));
            if !import.contains('*') {
                files.push(pattern);
                continue;
            }
            match glob::glob(&pattern.to_string_lossy()) {
                // What cannot be looked into holds no files, as for containerd.
                Ok(matches) => files.extend(matches.filter_map(Result::ok)),
                Err(error) => self.problems.push(Problem::BadImport {
                    path: path.to_owned(),
                    import: import.clone(),
                    reason: error.msg,
                }),
            }
        }
        files
    }
}

/// The file, parsed, and its text.
fn load(path: &Path) -> Result<(Document, String), Problem> {
    let text = std::fs::read_to_string(path).map_err(|reason| Problem::Unreadable {
        path: path.to_owned(),
        reason,
    })?;
    let document = Document::parse(&text).map_err(|error| {
        let (line, _) = line_and_column(&text, error.span());
        Problem::Malformed {
            path: path.to_owned(),
            line,
            reason: error.message().to_owned(),
        }
    })?;
    Ok((document, text))
}

/// The path without `.` and `..`, by its text alone, so that one file has one name.
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
