//! The data that the trait takes and returns: images, blobs, snapshots, leases, plugins, containers, events.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::SystemTime;

pub use containerd_client::types::{Descriptor, Mount};

/// Labels of an image, a blob, a snapshot or a lease.
pub type Labels = BTreeMap<String, String>;

/// The payloads of stream processors, by processor id.
pub type Payloads = HashMap<String, prost_types::Any>;

/// containerd's limit for one label, in bytes, key and value together (`pkg/labels/validate.go`).
pub const MAX_LABEL: usize = 4096;

/// A record of containerd's image store.
#[derive(Clone, Debug, PartialEq)]
pub struct Image {
    /// A reference (`docker.io/library/busybox:1`); for the record that CRI adds, the image id.
    pub name: String,
    /// The descriptor of the index or manifest.
    pub target: Descriptor,
    /// All labels, CRI's `io.cri-containerd.pinned` among them.
    pub labels: Labels,
    /// When the record was created.
    pub created_at: Option<SystemTime>,
}

/// A record of the content store.
#[derive(Clone, Debug, PartialEq)]
pub struct Blob {
    /// `sha256:…`
    pub digest: String,
    /// In bytes.
    pub size: u64,
    /// All labels, the references that garbage collection follows among them.
    pub labels: Labels,
    /// When the blob was completed.
    pub created_at: Option<SystemTime>,
}

/// Whether a snapshot is writable or committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SnapshotKind {
    /// Read-only and temporary.
    View,
    /// Writable: a container's own snapshot, or a layer that is being unpacked.
    Active,
    /// Immutable: a layer, named by its chain id.
    Committed,
}

/// A snapshot as containerd's metadata store knows it.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// For a committed layer its chain id, for a container's own snapshot the container's id.
    pub name: String,
    /// The name of the snapshot below it; `None` for a bottom layer.
    pub parent: Option<String>,
    /// Committed, active or a view.
    pub kind: SnapshotKind,
    /// Differs for a snapshot that was removed and made again under the same name.
    pub created_at: Option<SystemTime>,
    /// All labels, also those that the metadata store does not pass to the snapshotter.
    pub labels: Labels,
}

/// A lease, which keeps its resources from garbage collection.
#[derive(Clone, Debug, PartialEq)]
pub struct Lease {
    /// Unique in the namespace.
    pub id: String,
    /// All labels. `containerd.io/gc.*` have a meaning to containerd, others to the owner only.
    pub labels: Labels,
}

/// A snapshot or a blob that a lease holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// `content` or `snapshots/<snapshotter>`.
    pub kind: String,
    /// A digest or a snapshot's key.
    pub id: String,
}

impl Resource {
    /// Returns the resource of the snapshot `key` in `snapshotter`.
    pub fn snapshot(snapshotter: &str, key: &str) -> Self {
        Self {
            kind: format!("{SNAPSHOT_RESOURCE}{snapshotter}"),
            id: key.to_owned(),
        }
    }

    /// Returns the resource of the blob with this digest.
    pub fn blob(digest: &str) -> Self {
        Self {
            kind: "content".to_owned(),
            id: digest.to_owned(),
        }
    }

    /// Returns the snapshotter of a snapshot; `None` for a blob.
    pub fn snapshotter(&self) -> Option<&str> {
        self.kind.strip_prefix(SNAPSHOT_RESOURCE)
    }
}

const SNAPSHOT_RESOURCE: &str = "snapshots/";

/// A chunk of a blob that is being written to the content store.
#[derive(Clone, Debug, PartialEq)]
pub enum BlobChunk {
    /// The next bytes.
    Data(Vec<u8>),
    /// The end of the blob, with what containerd has to find.
    End {
        /// `sha256:…` of all bytes.
        digest: String,
        /// The number of all bytes.
        size: u64,
    },
}

/// Where an image's blobs are fetched from.
#[derive(Clone, Debug, PartialEq)]
pub struct Source {
    /// A repository and the digest of a manifest in it: `docker.io/library/busybox@sha256:…`.
    pub reference: String,
    /// The directory with containerd's registry configuration, one subdirectory for each host. It need
    /// not exist.
    pub hosts: PathBuf,
    /// Credentials for registries that require them.
    pub logins: Logins,
}

/// Credentials by host, as containerd names it: `registry-1.docker.io`, `registry.example:5000`.
pub type Logins = BTreeMap<String, Login>;

/// The credentials for one registry.
#[derive(Clone, PartialEq)]
pub struct Login {
    /// Empty if the secret is a token that identifies the user by itself.
    pub username: String,
    /// A password or a token.
    pub secret: String,
}

impl fmt::Debug for Login {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Login({})", self.username)
    }
}

/// A snapshotter that containerd lists, whether it started or not.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Snapshotter {
    /// `overlayfs`, `nydus`, …
    pub name: String,
    /// `rebase` is among them if layers can be unpacked in parallel.
    pub capabilities: Vec<String>,
    /// The plugin's exports, such as `root`.
    pub exports: Labels,
    /// Why it failed to start.
    pub init_error: Option<String>,
}

impl Snapshotter {
    /// Returns the address at which a proxy plugin listens; `None` for a built-in snapshotter, which exports
    /// none.
    pub fn proxy_address(&self) -> Option<&str> {
        self.exports.get("address").map(String::as_str)
    }
}

/// A plugin that containerd lists, whether it started or not. Disabled plugins are not listed.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListedPlugin {
    /// Type and id: `io.containerd.grpc.v1.cri`.
    pub uri: String,
    /// Why it failed to start.
    pub init_error: Option<String>,
}

/// A container that CRI lists, with what its pod says.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CriContainer {
    /// The id, which is also the key of the container's snapshot.
    pub id: String,
    /// The id of its pod.
    pub pod_id: String,
    /// The image as the container's creator named it.
    pub image: String,
    /// The pod's runtime handler; empty for the default one.
    pub runtime_handler: String,
    /// The pod's namespace.
    pub pod_namespace: String,
    /// The pod's annotations.
    pub pod_annotations: Arc<Labels>,
}

/// One event of containerd.
#[derive(Clone, Debug, PartialEq)]
pub struct Event {
    /// `/images/create`, `/snapshot/prepare`, …
    pub topic: String,
    /// The message's type URL and bytes, not decoded.
    pub payload: prost_types::Any,
}
