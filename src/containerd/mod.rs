//! The part of containerd's API that this plugin uses, as one trait.
//!
//! [`grpc::Grpc`] implements it over containerd's socket. Tests use a fake in memory, which can
//! inject a fault into the middle of a step. Nothing here knows images, layers or hooks.

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

/// Takes the records of a long list one by one, so that only what is used of them has to be held.
pub type Each<'a, T> = &'a mut (dyn FnMut(T) + Send);

/// containerd, in one namespace.
///
/// Every call has its own deadline. A failed call returns an [`Error`] that names the call and its
/// subject.
#[async_trait]
pub trait Containerd: Send + Sync {
    /// Returns an id of this containerd and namespace, the same in all processes of the node for as long as
    /// containerd runs; `None` if containerd's socket does not exist.
    fn identity(&self) -> Option<String> {
        None
    }

    /// Returns the image record with exactly this name.
    async fn image(&self, name: &str) -> Result<Image>;
    /// Lists all image records, without the label that CRI puts on each of them.
    async fn images(&self) -> Result<Vec<Image>>;
    /// Lists the image records with this target, in the order and with the labels of [`Containerd::images`]. containerd
    /// compares all records, but sends only these.
    async fn images_of(&self, target: &str) -> Result<Vec<Image>>;

    /// Returns the content store's record of a blob.
    async fn blob(&self, digest: &str) -> Result<Blob>;
    /// Passes the records of all blobs in the content store to `each`, as they arrive.
    async fn blobs(&self, each: Each<'_, Blob>) -> Result<()>;
    /// Passes the blobs that refer to a config to `each`, as they arrive: all manifests, also those of images
    /// that are still being pulled.
    async fn manifests(&self, each: Each<'_, Blob>) -> Result<()>;
    /// Reads a whole blob, for documents. A blob of more than `limit` bytes is an error.
    async fn read(&self, digest: &str, limit: u64) -> Result<Vec<u8>>;
    /// Writes a blob under `reference`, which no other writer may use; the lease holds the blob.
    /// Chunks that stop without [`BlobChunk::End`] are an error, and the blob stays unfinished until
    /// [`Containerd::abort_write`]. *AlreadyExists* if the blob exists: the lease does not hold the
    /// existing one.
    async fn write_blob(
        &self,
        lease: &str,
        reference: &str,
        chunks: BoxStream<'static, BlobChunk>,
    ) -> Result<()>;
    /// Removes the unfinished blob that was written under `reference`.
    async fn abort_write(&self, reference: &str) -> Result<()>;
    /// Has containerd fetch the blobs of a manifest that the content store lacks; the lease holds
    /// them. No image record is made or changed, but the manifest's labels keep the blobs
    /// afterwards. Success does not guarantee that a blob exists: look it up.
    async fn fetch(&self, lease: &str, source: &Source) -> Result<()>;
    /// Adds these labels to a blob, or replaces their values. Other labels stay. An empty value
    /// removes a label.
    async fn label_blob(&self, digest: &str, labels: Labels) -> Result<()>;

    /// Returns one snapshot.
    async fn stat(&self, snapshotter: &str, key: &str) -> Result<Snapshot>;
    /// Whether containerd's metadata has a snapshot of this name, also if the snapshotter has lost it. [`Containerd::stat`]
    /// and [`Containerd::snapshots`] do not show a lost snapshot.
    async fn has_record(&self, snapshotter: &str, name: &str) -> Result<bool>;
    /// Passes all snapshots of a snapshotter to `each`, as they arrive.
    async fn snapshots(&self, snapshotter: &str, each: Each<'_, Snapshot>) -> Result<()>;
    /// Prepares a new active snapshot, which the lease holds. *AlreadyExists* if a snapshot is
    /// committed under the chain id in the label `containerd.io/snapshot.ref`: the lease then holds
    /// that one.
    async fn prepare(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>>;
    /// Makes a read-only view of `parent` and all snapshots below it; the lease holds the view.
    async fn view(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>>;
    /// Returns the mounts of an active snapshot or a view.
    async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>>;
    /// Returns the number of inodes (files, directories and others) in a snapshot, without its
    /// parents. For a committed snapshot it is what the snapshotter counted at the commit.
    async fn inodes(&self, snapshotter: &str, key: &str) -> Result<u64>;
    /// Commits the active snapshot `key` as `name`, which the lease holds. A snapshot that was
    /// prepared without a parent may get one here, if the snapshotter has the capability `rebase` and
    /// containerd is 2.2 or later; any other containerd ignores the parent. *NotFound* if that parent
    /// does not exist.
    async fn commit(
        &self,
        lease: &str,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<()>;
    /// Removes a snapshot. containerd refuses to remove one that has children.
    async fn remove(&self, snapshotter: &str, key: &str) -> Result<()>;
    /// Adds these labels to a snapshot, or replaces their values, in the metadata store and in the
    /// snapshotter. Other labels stay.
    async fn label_snapshot(&self, snapshotter: &str, key: &str, labels: Labels) -> Result<()>;

    /// Unpacks a layer's blob into mounts and returns the digest of the uncompressed stream.
    /// `payloads` go to the stream processors that read the blob.
    async fn apply(
        &self,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        payloads: Payloads,
    ) -> Result<String>;

    /// Creates a lease with this id.
    async fn create_lease(&self, id: &str, labels: Labels) -> Result<()>;
    /// Deletes a lease. With `sync` it returns after a garbage collection.
    async fn delete_lease(&self, id: &str, sync: bool) -> Result<()>;
    /// Lists all leases.
    async fn leases(&self) -> Result<Vec<Lease>>;
    /// Lists what a lease holds.
    async fn lease_resources(&self, id: &str) -> Result<Vec<Resource>>;
    /// Adds a resource to a lease.
    async fn hold(&self, lease: &str, resource: Resource) -> Result<()>;
    /// Takes a resource out of a lease.
    async fn release(&self, lease: &str, resource: Resource) -> Result<()>;

    /// Subscribes to containerd's events of these topics. The call returns when the first event
    /// arrives, and the stream has every event since the call began. It ends with the connection.
    async fn events(&self, topics: &[&str]) -> Result<BoxStream<'static, Result<Event>>>;

    /// Lists containerd's snapshotters, also those that failed to start.
    async fn snapshotters(&self) -> Result<Vec<Snapshotter>>;
    /// Lists all of containerd's plugins, also those that failed to start.
    async fn plugins(&self) -> Result<Vec<ListedPlugin>>;
    /// Returns containerd's version, such as `2.1.9`.
    async fn version(&self) -> Result<String>;
    /// Returns the CRI plugin's configuration as JSON, from its verbose `Status`; `None` if the answer has
    /// none.
    async fn cri_config(&self) -> Result<Option<String>>;
    /// Returns the size in bytes of the annotations and labels of CRI's pods and containers: nearly all of the
    /// state that NRI sends to a plugin.
    async fn cri_state_bytes(&self) -> Result<usize>;
    /// Returns the values of this annotation on CRI's pods.
    async fn pod_annotation(&self, key: &str) -> Result<BTreeSet<String>>;
    /// Returns the mount point of CRI's first image file system, which is the default snapshotter's
    /// directory; `None` if CRI lists none.
    async fn image_file_system(&self) -> Result<Option<String>>;
    /// Lists CRI's pods: the id of each, which is also the key of its sandbox's snapshot, and `namespace/name`.
    async fn cri_pods(&self) -> Result<Vec<(String, String)>>;
    /// Lists CRI's containers whose pods CRI lists.
    async fn cri_containers(&self) -> Result<Vec<CriContainer>>;
}
