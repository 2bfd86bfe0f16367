//! The options of a test's containerd: the version, the handlers, some switches.

use std::path::PathBuf;
use std::time::Duration;

use crate::tree::Tree;

/// The versions of containerd in the tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Debian 13's 1.7.24, with NRI 0.6.
    V1_7,
    /// Debian forky's 2.1, with NRI 0.8.
    V2_1,
}

impl Version {
    /// Both versions, for tests that apply to both.
    pub const ALL: [Version; 2] = [Version::V1_7, Version::V2_1];

    /// Returns the start of the version of Debian's package.
    pub(crate) fn prefix(self) -> &'static str {
        match self {
            Version::V1_7 => "1.7.",
            Version::V2_1 => "2.1.",
        }
    }

    /// Returns the file systems that its snapshotters need.
    pub(crate) fn file_systems(self) -> &'static [&'static str] {
        match self {
            Version::V1_7 => &["overlay"],
            Version::V2_1 => &["overlay", "erofs"],
        }
    }
}

/// A runtime handler: runc under another name, with its own snapshotter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// The name that pods request.
    pub name: String,
    /// Its snapshotter; empty for the default one.
    pub snapshotter: String,
}

impl Handler {
    /// Returns a handler `name` with `snapshotter`.
    pub fn new(name: &str, snapshotter: &str) -> Self {
        Self {
            name: name.to_owned(),
            snapshotter: snapshotter.to_owned(),
        }
    }
}

/// A remote snapshotter: a separate daemon beside containerd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remote {
    /// nydus-snapshotter 0.13 in proxy mode: the guest pulls, the host stores no layers.
    Nydus,
    /// SOCI 0.4: mounts layers from the registry, and fetches files on demand.
    Soci,
    /// stargz 0.14: mounts layers in its own format from the registry, and fetches files on demand.
    Stargz,
}

impl Remote {
    /// Returns its name as a snapshotter, which is also the name of its handler.
    pub fn name(self) -> &'static str {
        match self {
            Remote::Nydus => "nydus",
            Remote::Soci => "soci",
            Remote::Stargz => "stargz",
        }
    }
}

/// The options of a test's containerd. Besides these handlers there is always `runc`, the default, with
/// overlayfs.
#[derive(Debug, Clone)]
pub struct Options {
    /// Additional handlers, with snapshotters of containerd; `blockfile` gets the file that it needs.
    pub handlers: Vec<Handler>,
    /// Remote snapshotters to start before containerd, each with a handler of its name.
    pub remotes: Vec<Remote>,
    /// Whether containerd labels the snapshots of a pull. containerd's default is false.
    pub snapshot_annotations: bool,
    /// Whether a pull deletes the layers' blobs after their unpack, as on managed nodes.
    pub discard_unpacked_layers: bool,
    /// Whether `PullImage` unpacks into the snapshotter of its sandbox's handler. 1.7 always does.
    pub pull_by_handler: bool,
    /// The timeout for a plugin's response to an event; containerd's default is 2 s.
    pub request_timeout: Duration,
    /// The timeout for a plugin's registration; containerd's default is 5 s.
    pub registration_timeout: Duration,
    /// Plugins that containerd launches.
    pub launched: Vec<Launched>,
    /// The parent directory of containerd's root and state; by default that of the run.
    pub root_below: Option<PathBuf>,
    /// The size of the file system of containerd's root, in MiB; by default it is on the disk of the checkout.
    pub root_size: Option<u64>,
    /// Whether reads and writes on that file system can be made to hang, by [`crate::Lab::disk`].
    pub root_can_hang: bool,
    /// Whether services on a [`crate::Systemd`] see containerd's root at any path: units often hide `/root`,
    /// `/home` and `/tmp`, which hold checkouts. containerd then gets a path below `/run`.
    pub root_seen_by_services: bool,
    /// TOML tables to append to the configuration.
    pub extra_config: String,
    /// The node of a distribution, whose configuration takes the place of all other options.
    pub tree: Option<Tree>,
}

/// A plugin that containerd launches from its plugin directory.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The executable.
    pub program: PathBuf,
    /// Two digits and a name: `10-nri-unpack`.
    pub name: String,
    /// The configuration that containerd passes to the plugin.
    pub config: String,
}

impl Options {
    /// Returns the handlers for the version's own snapshotters: `native`, and on 2.1 also `erofs`.
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
            root_size: None,
            root_can_hang: false,
            root_seen_by_services: false,
            extra_config: String::new(),
            tree: None,
        }
    }

    /// Returns every handler but the default one.
    pub(crate) fn all_handlers(&self) -> impl Iterator<Item = Handler> {
        let remotes = self
            .remotes
            .iter()
            .map(|r| Handler::new(r.name(), r.name()));
        self.handlers.iter().cloned().chain(remotes)
    }
}
