//! The data that crosses the trait: images, blobs, snapshots, leases, plugins, containers, events.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

pub use containerd_client::types::{Descriptor, Mount};

/// Labels of an image, a blob, a snapshot or a lease.
pub type Labels = BTreeMap<String, String>;

/// What is handed to stream processors, by their ids.
pub type Payloads = HashMap<String, prost_types::Any>;

/// containerd's limit for one label: key and value together, in bytes (`pkg/labels/validate.go`).
pub const MAX_LABEL: usize = 4096;

/// A record of containerd's image store.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// A reference (`docker.io/library/busybox:1`), or, for the record that CRI adds, the image id.
    pub name: String,
    /// The index or manifest that the name stands for.
    pub target: Descriptor,
    /// Among them CRI's `io.cri-containerd.pinned`.
    pub labels: Labels,
    /// When the name was first given.
    pub created_at: Option<SystemTime>,
}

/// What the content store says of a blob.
#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// Among them the references that garbage collection follows.
    pub labels: Labels,
    /// When it was complete.
    pub created_at: Option<SystemTime>,
}

/// Whether a snapshot is being written or stands fast.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Read-only and temporary.
    View,
    /// Writable: a container's own, or a layer that is being extracted.
    Active,
    /// Immutable: a layer, named by its chain id.
    Committed,
}

/// A snapshot as containerd's metadata store knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The chain id of a committed layer, the container's id for its own snapshot.
    pub name: String,
    /// The name of the snapshot below it; `None` for a bottom layer.
    pub parent: Option<String>,
    /// Committed, active or a view.
    pub kind: SnapshotKind,
    /// Set once: a snapshot that was taken away and made again has another.
    pub created_at: Option<SystemTime>,
    /// All labels, also those that the snapshotter behind the store never sees.
    pub labels: Labels,
}

/// A lease: what it names is spared by garbage collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Unique in the namespace.
    pub id: String,
    /// Free for the owner's use, but for `containerd.io/gc.*`.
    pub labels: Labels,
}

/// Something that a lease holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// `content`, or `snapshots/<snapshotter>`.
    pub kind: String,
    /// A digest, or a snapshot's key.
    pub id: String,
}

impl Resource {
    /// The snapshot `key` of `snapshotter`.
    pub fn snapshot(snapshotter: &str, key: &str) -> Self {
        Self {
            kind: format!("{SNAPSHOT_RESOURCE}{snapshotter}"),
            id: key.to_owned(),
        }
    }

    /// The blob of this digest.
    pub fn blob(digest: &str) -> Self {
        Self {
            kind: "content".to_owned(),
            id: digest.to_owned(),
        }
    }

    /// The snapshotter of a snapshot resource; `None` for anything else.
    pub fn snapshotter(&self) -> Option<&str> {
        self.kind.strip_prefix(SNAPSHOT_RESOURCE)
    }
}

const SNAPSHOT_RESOURCE: &str = "snapshots/";

/// A piece of a blob on its way into the content store.
#[derive(Clone, Debug, PartialEq)]
pub enum BlobChunk {
    /// The next bytes.
    Data(Vec<u8>),
    /// That was all, and this is what it should amount to.
    End {
        /// `sha256:…` of all bytes.
        digest: String,
        /// How many they were.
        size: u64,
    },
}

/// Where an image's blobs are fetched from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// A repository and the digest of a manifest in it: `docker.io/library/busybox@sha256:…`.
    pub reference: String,
    /// The directory of the files that say how registries are reached, one directory for each host;
    /// it need not exist.
    pub hosts: PathBuf,
    /// For the registries that want it.
    pub logins: Logins,
}

/// Credentials by host, as containerd asks for them: `registry-1.docker.io`, `registry.example:5000`.
pub type Logins = BTreeMap<String, Login>;

/// What a registry is told about who asks.
#[derive(Clone, PartialEq)]
pub struct Login {
    /// Empty where the secret is a token that stands for the user as well.
    pub username: String,
    /// A password or a token.
    pub secret: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

/// A snapshotter that containerd lists, working or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshotter {
    /// `overlayfs`, `nydus`, …
    pub name: String,
    /// `rebase` among them where layers may be applied in parallel.
    pub capabilities: Vec<String>,
    /// `root`, and whatever else the plugin exports.
    pub exports: Labels,
    /// Why it did not come up.
    pub init_error: Option<String>,
}

impl Snapshotter {
    /// Where a proxy plugin listens: another process makes its snapshots. Only such a one exports it.
    pub fn proxy_address(&self) -> Option<&str> {
        self.exports.get("address").map(String::as_str)
    }
}

/// A plugin that containerd lists, working or not. One that is disabled is not listed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListedPlugin {
    /// Its type and its id: `io.containerd.grpc.v1.cri`.
    pub uri: String,
    /// Why it did not come up.
    pub init_error: Option<String>,
}

/// A container that CRI has, and what its pod says of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CriContainer {
    /// Its id, which is its snapshot's key.
    pub id: String,
    /// The image, as it was asked for.
    pub image: String,
    /// Its pod's; empty for the default one.
    pub runtime_handler: String,
    /// Its pod's.
    pub pod_annotations: Labels,
}

/// One event of containerd's exchange.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `/images/create`, `/snapshot/prepare`, …
    pub topic: String,
    /// The message's type URL and bytes; what they mean is the reader's to know.
    pub payload: prost_types::Any,
}
