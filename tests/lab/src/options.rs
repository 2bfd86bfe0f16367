//! What of a containerd tests choose: the version, the handlers, a few switches.

use std::path::PathBuf;
use std::time::Duration;

/// The containerds that the tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Debian 13's 1.7.24, with NRI 0.6.
    V1_7,
    /// Debian forky's 2.1, with NRI 0.8.
    V2_1,
}

impl Version {
    /// Both, for tests that hold on either.
    pub const ALL: [Version; 2] = [Version::V1_7, Version::V2_1];

    /// The start of the version of Debian's package.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Version::V1_7 => "1.7.",
            Version::V2_1 => "2.1.",
        }
    }

    /// What the kernel has to have for its snapshotters.
    pub(crate) fn file_systems(self) -> &'static [&'static str] {
        match self {
            Version::V1_7 => &["overlay"],
            Version::V2_1 => &["overlay", "erofs"],
        }
    }
}

/// A runtime handler: runc under another name, with a snapshotter of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// What pods ask for.
    pub name: String,
    /// Its snapshotter; empty for the default one.
    pub snapshotter: String,
}

impl Handler {
    /// A handler `name` on `snapshotter`.
    pub fn new(name: &str, snapshotter: &str) -> Self {
        Self {
            name: name.to_owned(),
            snapshotter: snapshotter.to_owned(),
        }
    }
}

/// A remote snapshotter: a daemon of its own beside containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// nydus-snapshotter 0.13 in proxy mode: the guest pulls, the host keeps nothing.
    Nydus,
    /// SOCI 0.4: layers are mounted from the registry, file by file.
    Soci,
    /// stargz 0.14: layers in its own format are mounted from the registry, file by file.
    Stargz,
}

impl Remote {
    /// Its name as a snapshotter, and the name of the handler that uses it.
    pub fn name(self) -> &'static str {
        match self {
            Remote::Nydus => "nydus",
            Remote::Soci => "soci",
            Remote::Stargz => "stargz",
        }
    }
}

/// What of a containerd's configuration tests choose. Beside the handlers here there is always `runc`, the default,
/// on overlayfs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The further handlers, on snapshotters of containerd's own; `blockfile` gets the file that it needs.
    pub handlers: Vec<Handler>,
    /// Remote snapshotters to start before containerd, each with a handler of its name.
    pub remotes: Vec<Remote>,
    /// Whether containerd labels the snapshots that it unpacks in a pull. Its own default is that it does not.
    pub snapshot_annotations: bool,
    /// Whether a pull keeps the layers' blobs only until they are unpacked, as managed nodes do.
    pub discard_unpacked_layers: bool,
    /// Lets `PullImage` unpack into the snapshotter of the handler that its sandbox names. 1.7 always does.
    pub pull_by_handler: bool,
    /// How long a plugin may take to answer an event; containerd's default is 2 s.
    pub request_timeout: Duration,
    /// How long a plugin may take to register; containerd's default is 5 s.
    pub registration_timeout: Duration,
    /// Plugins that containerd starts itself.
    pub launched: Vec<Launched>,
    /// The directory below which containerd's root and state are; the run's own by default.
    pub root_below: Option<PathBuf>,
    /// Whether a service on a [`crate::Systemd`] sees containerd's root wherever that is: units commonly hide `/root`,
    /// `/home` and `/tmp`, where people clone. containerd is given a path below `/run` then.
    pub root_seen_by_services: bool,
    /// TOML tables to append to the configuration.
    pub extra_config: String,
}

/// A plugin that containerd launches from its plugin directory.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The executable.
    pub program: PathBuf,
    /// Two digits and a name: `10-nri-unpack`.
    pub name: String,
    /// What containerd hands to the plugin as its configuration.
    pub config: String,
}

impl Options {
    /// The handlers that the version's own snapshotters allow: `native`, and on 2.1 `erofs` as well.
    pub fn new(version: Version) -> Self {
        let mut handlers = vec![Handler::new("native", "native")];
        if version == Version::V2_1 {
            handlers.push(Handler::new("erofs", "erofs"));
        }
        Self {
            handlers,
            remotes: Vec::new(),
            snapshot_annotations: false,
            discard_unpacked_layers: false,
            pull_by_handler: false,
            request_timeout: Duration::from_secs(2),
            registration_timeout: Duration::from_secs(5),
            launched: Vec::new(),
            root_below: None,
            root_seen_by_services: false,
            extra_config: String::new(),
        }
    }

    /// Every handler but the default one.
    pub(crate) fn all_handlers(&self) -> impl Iterator<Item = Handler> {
        let remotes = self
            .remotes
            .iter()
            .map(|r| Handler::new(r.name(), r.name()));
        self.handlers.iter().cloned().chain(remotes)
    }
}
