//! What is wrong with what was read: each thing with where it was read and what to do about it.
//!
//! A problem is logged and shown; it never keeps the plugin from running with the rest.

use std::{io, path::PathBuf};

use super::origin::Origin;

/// Something that an operator should look at.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Problem {
    /// What CRI's `Status` reports is not the JSON that we know.
    #[error("cannot parse the configuration in containerd's CRI status: {reason}")]
    BadStatus {
        /// What the parser said.
        reason: serde_json::Error,
    },
    /// A file of containerd's configuration cannot be read.
    #[error("cannot read containerd's configuration {}: {reason}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What the operating system said.
        reason: io::Error,
    },
    /// A file of containerd's configuration is no TOML.
    #[error("cannot parse containerd's configuration {}:{line}: {reason}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What the parser said.
        reason: String,
    },
    /// An `imports` pattern is malformed.
    #[error(
        "containerd's configuration {} imports {import:?}, which is no pattern",
        path.display()
    )]
    BadImport {
        /// The file with the pattern.
        path: PathBuf,
        /// The pattern.
        import: String,
    },
    /// The imports do not end.
    #[error(
        "containerd's configuration imports more than {limit} files; {} and later ones are ignored",
        path.display()
    )]
    TooManyFiles {
        /// The first file that was not read.
        path: PathBuf,
        /// How many are read at most.
        limit: usize,
    },
    /// This containerd does not start with the files as they are.
    #[error(
        "containerd's configuration {} was changed after containerd started, or is not its own: {reason}",
        path.display()
    )]
    Refused {
        /// The main file.
        path: PathBuf,
        /// Why not.
        reason: String,
    },
    /// A file says other than the running containerd.
    #[error(
        "{what} is {running} in the running containerd ({running_from}), and {written} in {origin}: \
         the running containerd counts; restart it, or correct the file"
    )]
    Differs {
        /// The setting.
        what: String,
        /// What is in force.
        running: String,
        /// Who says that.
        running_from: Origin,
        /// What is written.
        written: String,
        /// Where.
        origin: Origin,
    },
    /// Nothing says what the default snapshotter is.
    #[error(
        "the default snapshotter is not known: containerd does not say it, and its configuration {} \
         (handlers that use it: {}): set containerd.config to the file that containerd was started with, or \
         name the snapshotter of these handlers in [handlers]",
        match is_there { true => "cannot be read", false => "is not at containerd.config" },
        handlers.join(", ")
    )]
    UnknownDefault {
        /// Whether there is a file to read.
        is_there: bool,
        /// The handlers that use it.
        handlers: Vec<String>,
    },
    /// containerd pulls for a runtime into another snapshotter than it creates containers in.
    #[error(
        "containerd pulls images for the runtime handler {handler:?} into {pulled:?} \
         (runtime_platforms in {origin}), but creates its containers in {used:?}: \
         give the runtime the same snapshotter"
    )]
    PulledElsewhere {
        /// The runtime handler.
        handler: String,
        /// The snapshotter that is pulled into.
        pulled: String,
        /// Where that is said.
        origin: Origin,
        /// The snapshotter that containers are created in.
        used: String,
    },
    /// `[handlers]` names a runtime handler that containerd does not have.
    #[error(
        "[handlers] names the runtime handler {handler:?}, which containerd does not have: \
         it has {}; correct the name, or take it out",
        known.join(", ")
    )]
    NoSuchHandler {
        /// The runtime handler.
        handler: String,
        /// Those that containerd has.
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
        /// Its snapshotter.
        snapshotter: String,
        /// Where that was read.
        origin: Origin,
        /// Those that containerd lists.
        known: Vec<String>,
    },
}
