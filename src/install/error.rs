//! Why nothing, or not all, was installed or taken away.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::ConfigError;

/// What went wrong, and what helps.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Something that is not ours, or would start the plugin another time.
    #[error("{} is in the way: {what}; {remedy}", path.display())]
    InTheWay {
        /// Where it is.
        path: PathBuf,
        /// What it is.
        what: &'static str,
        /// What to do about it.
        remedy: &'static str,
    },
    /// A program that the node could not start from there.
    #[error("{} cannot be started from there: {why}; {remedy}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// Why not.
        why: String,
        /// What to do about it.
        remedy: String,
    },
    /// The configuration is wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

impl Error {
    pub(super) fn in_the_way(path: PathBuf, what: &'static str, remedy: &'static str) -> Self {
        Self::InTheWay { path, what, remedy }
    }

    pub(super) fn io(path: &Path, source: io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
