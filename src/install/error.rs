//! Errors of `install` and `uninstall`.

use std::io;
use std::path::{Path, PathBuf};

use crate::config::ConfigError;

/// An error of `install` or `uninstall`, with its remedy.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file that `install` did not write, or that would start the plugin a second time.
    #[error("{} is in the way: {what}; {remedy}", path.display())]
    InTheWay {
        /// The path.
        path: PathBuf,
        /// What the path is or does.
        what: &'static str,
        /// The remedy.
        remedy: &'static str,
    },
    /// A program that the node cannot start from its path.
    #[error("{} cannot be started from there: {why}; {remedy}", path.display())]
    Program {
        /// The program.
        path: PathBuf,
        /// The reason.
        why: String,
        /// The remedy.
        remedy: String,
    },
    /// A program that `doctor` and `uninstall` would not find.
    #[error("{} has another name than nri-unpack, by which `doctor` and `uninstall` find it; rename it to nri-unpack, or to nri-unpack-VERSION", .0.display())]
    ProgramName(PathBuf),
    /// The configuration is invalid.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The reason.
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
