//! The problems of the sources, each with its source and a remedy.
//!
//! A problem is logged and shown. The plugin continues with the other values.

use std::{io, path::PathBuf};

use super::origin::Origin;

/// A problem that an operator should solve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// The configuration in CRI's `Status` is not the expected JSON.
    #[error("cannot parse the configuration in containerd's CRI status: {reason}")]
    BadStatus {
        /// The parser's message.
        reason: String,
    },
    /// A file of containerd's configuration cannot be read.
    #[error("cannot read containerd's configuration {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The system's error.
        reason: io::Error,
    },
    /// A file of containerd's configuration is not TOML.
    #[error("cannot parse containerd's configuration {}:{line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The parser's message.
        reason: String,
    },
    /// An `imports` pattern is malformed.
    #[error(
        "containerd's configuration {} imports {import:?}, which is not a valid pattern: correct it",
        path.display()
    )]
    BadImport {
        /// The file with the pattern.
        path: PathBuf,
        /// The pattern.
        import: String,
    },
    /// There are too many imports.
    #[error(
        "containerd's configuration imports more than {limit} files; {} and later ones are ignored",
        path.display()
    )]
    TooManyFiles {
        /// The first file that was not read.
        path: PathBuf,
        /// The largest number of files that are read.
        limit: usize,
    },
    /// This containerd version would not start with the present files.
    #[error(
        "containerd's configuration {} was changed after containerd started, or is not the file of this containerd: {reason}",
        path.display()
    )]
    Refused {
        /// The main file.
        path: PathBuf,
        /// The reason.
        reason: String,
    },
    /// A value in a file differs from the running containerd.
    #[error(
        "{what} is {running} in the running containerd ({running_from}), and {written} in {origin}: \
         the value of the running containerd is used; restart containerd, or correct the file"
    )]
    Differs {
        /// The setting.
        what: String,
        /// The value of the running containerd.
        running: String,
        /// The source of that value.
        running_from: Origin,
        /// The value in the file.
        written: String,
        /// The file.
        origin: Origin,
    },
    /// No source has the default snapshotter.
    #[error(
        "the default snapshotter is not known: containerd does not report it, and its configuration {} \
         (handlers that use it: {}): set containerd.config to the file that containerd was started with, or \
         name the snapshotter of these handlers in [handlers]",
        match is_there { true => "cannot be read", false => "does not exist at containerd.config" },
        handlers.join(", ")
    )]
    UnknownDefault {
        /// Whether the main file exists.
        is_there: bool,
        /// The handlers that use the default snapshotter.
        handlers: Vec<String>,
    },
    /// containerd pulls a runtime's images into another snapshotter than its containers use.
    #[error(
        "containerd pulls images for the runtime handler {handler:?} into {pulled:?} \
         (runtime_platforms in {origin}), but creates its containers in {used:?}: \
         give the runtime the same snapshotter"
    )]
    PulledElsewhere {
        /// The runtime handler.
        handler: String,
        /// The snapshotter into which images are pulled.
        pulled: String,
        /// The source of that value.
        origin: Origin,
        /// The snapshotter in which containers are created.
        used: String,
    },
    /// `[handlers]` names a runtime handler that containerd does not have.
    #[error(
        "[handlers] names the runtime handler {handler:?}, which containerd does not have: \
         it has {}; correct the name, or remove it",
        known.join(", ")
    )]
    NoSuchHandler {
        /// The runtime handler.
        handler: String,
        /// containerd's handlers.
        known: Vec<String>,
    },
    /// A runtime handler uses a snapshotter that containerd does not list.
    #[error(
        "the runtime handler {handler:?} uses the snapshotter {snapshotter:?} ({origin}), \
         which containerd does not list: it lists {}; \
         load the snapshotter's plugin, or add it to containerd's proxy_plugins",
        known.join(", ")
    )]
    NoSuchSnapshotter {
        /// The runtime handler.
        handler: String,
        /// The handler's snapshotter.
        snapshotter: String,
        /// The source of that value.
        origin: Origin,
        /// The snapshotters that containerd lists.
        known: Vec<String>,
    },
}
