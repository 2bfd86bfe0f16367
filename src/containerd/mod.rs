//! What this plugin uses of containerd's API, as one trait.
//!
//! [`grpc::Grpc`] is the real thing. Under test a fake holds everything in memory, so that a
//! fault can be put into the middle of a step. Nothing here knows images, layers or hooks.

mod error;
pub(crate) mod events;
#[cfg(test)]
pub(crate) mod fake;
pub mod grpc;
mod types;
mod version;

use std::collections::BTreeSet;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use error::{Error, Kind as ErrorKind, Result};
pub use types::{
    Blob, BlobChunk, CriContainer, Descriptor, Event, Image, Labels, Lease, ListedPlugin, Login,
    Logins, MAX_LABEL, Mount, Payloads, Resource, Snapshot, SnapshotKind, Snapshotter, Source,
};
pub use version::{labels_lineage, numbers};

/// containerd, in one namespace.
///
/// Every call has a deadline of its own and answers [`Error`] with the call and its subject in it.
#[async_trait]
pub trait Containerd: Send + Sync {
    /// What all processes of this node know this containerd and this namespace by, while it runs; `None`
    /// where it is not there.
    fn identity(&self) -> Option<String> {
        None
    }

    /// The image record of exactly this name.
    async fn image(&self, name: &str) -> Result<Image>;
    /// All image records.
    async fn images(&self) -> Result<Vec<Image>>;

    /// What the content store knows of a blob.
    async fn blob(&self, digest: &str) -> Result<Blob>;
    /// What the content store knows of all its blobs.
    async fn blobs(&self) -> Result<Vec<Blob>>;
    /// The blobs that refer to a config: all manifests, also those of images that are still being
    /// pulled.
    async fn manifests(&self) -> Result<Vec<Blob>>;
    /// A whole blob, for documents: more than `limit` bytes is an error.
    async fn read(&self, digest: &str, limit: u64) -> Result<Vec<u8>>;
    /// Writes a blob, held by the lease, under a `reference` that nobody else uses. Pieces that stop
    /// without their [`BlobChunk::End`] are an error, and the blob stays unfinished until
    /// [`Containerd::abort_write`]. *AlreadyExists* where there is such a blob: the lease does not
    /// hold that one.
    async fn write_blob(
        &self,
        lease: &str,
        reference: &str,
        chunks: BoxStream<'static, BlobChunk>,
    ) -> Result<()>;
    /// Takes away what was written under `reference` and not finished.
    async fn abort_write(&self, reference: &str) -> Result<()>;
    /// Has containerd fetch the blobs of a manifest that the content store lacks; they are held by
    /// the lease. No image record is made or changed, but the manifest's labels keep the blobs
    /// afterwards. Whether a blob is there is to be looked up: a success does not promise it.
    async fn fetch(&self, lease: &str, source: &Source) -> Result<()>;
    /// Adds these labels to a blob, or replaces their values; others stay. An empty value takes a
    /// label away.
    async fn label_blob(&self, digest: &str, labels: Labels) -> Result<()>;

    /// One snapshot.
    async fn stat(&self, snapshotter: &str, key: &str) -> Result<Snapshot>;
    /// All snapshots of a snapshotter.
    async fn snapshots(&self, snapshotter: &str) -> Result<Vec<Snapshot>>;
    /// A new active snapshot, held by the lease. *AlreadyExists* where the chain id in the label
    /// `containerd.io/snapshot.ref` is committed already: that is then held by the lease, too.
    async fn prepare(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>>;
    /// A new read-only snapshot of what `parent` and all below it hold, held by the lease.
    async fn view(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>>;
    /// How many files, directories and others a snapshot itself holds, without its parents: for a
    /// committed one as the snapshotter counted them at the commit, each inode once.
    async fn inodes(&self, snapshotter: &str, key: &str) -> Result<u64>;
    /// Turns the active snapshot `key` into the committed one `name`, held by the lease. Where it was
    /// prepared without a parent, it may get one now: only if the snapshotter has the capability
    /// `rebase` and containerd is 2.2 or later, which commits it without a parent otherwise.
    /// *NotFound* where that parent is not there.
    async fn commit(
        &self,
        lease: &str,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<()>;
    /// Takes a snapshot away; one with children is refused.
    async fn remove(&self, snapshotter: &str, key: &str) -> Result<()>;
    /// Adds these labels to a snapshot, or replaces their values, in the metadata store and in the
    /// snapshotter behind it; others stay.
    async fn label_snapshot(&self, snapshotter: &str, key: &str, labels: Labels) -> Result<()>;

    /// Unpacks a layer's blob into mounts; answers the digest of the uncompressed stream. A stream
    /// processor that reads the blob gets its payload.
    async fn apply(
        &self,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        payloads: Payloads,
    ) -> Result<String>;

    /// A new lease of this id.
    async fn create_lease(&self, id: &str, labels: Labels) -> Result<()>;
    /// Lets a lease go; with `sync` a garbage collection has run when this returns.
    async fn delete_lease(&self, id: &str, sync: bool) -> Result<()>;
    /// All leases.
    async fn leases(&self) -> Result<Vec<Lease>>;
    /// What a lease holds.
    async fn lease_resources(&self, id: &str) -> Result<Vec<Resource>>;
    /// Lets a lease hold one thing more.
    async fn hold(&self, lease: &str, resource: Resource) -> Result<()>;

    /// containerd's events of these topics; the stream ends when the connection does. Answers when the
    /// first event comes, but misses none from when it was asked.
    async fn events(&self, topics: &[&str]) -> Result<BoxStream<'static, Result<Event>>>;

    /// The snapshotters that containerd lists, with those that failed to come up.
    async fn snapshotters(&self) -> Result<Vec<Snapshotter>>;
    /// All plugins that containerd lists.
    async fn plugins(&self) -> Result<Vec<ListedPlugin>>;
    /// containerd's version, such as `2.1.9`.
    async fn version(&self) -> Result<String>;
    /// The CRI plugin's running configuration as JSON (`Status`, verbose); `None` where it shows none.
    async fn cri_config(&self) -> Result<Option<String>>;
    /// How many bytes the annotations and labels of CRI's pods and containers have: nearly all of what NRI
    /// tells a plugin of them.
    async fn cri_state_bytes(&self) -> Result<usize>;
    /// The values that this annotation has on CRI's pods.
    async fn pod_annotation(&self, key: &str) -> Result<BTreeSet<String>>;
    /// Where CRI's first image file system is mounted, which is the default snapshotter's directory; `None`
    /// where it shows none.
    async fn image_file_system(&self) -> Result<Option<String>>;
    /// The containers that CRI has, of pods that it has.
    async fn cri_containers(&self) -> Result<Vec<CriContainer>>;
}
