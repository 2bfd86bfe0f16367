//! Rebuilds the blob of a layer from overlayfs: the files that were unpacked there become a blob again.
//!
//! The new blob is a plain tar whose bytes differ from those of the image's own, so its digest cannot be compared
//! with the image's diff id. The plugin trusts instead that overlayfs committed this directory under this chain id
//! after containerd had verified the content, and that only root can have changed it since. It verifies that
//! - the directory holds as many inodes as were counted at that commit: it is on this node, and complete;
//! - nothing in it points to data elsewhere;
//! - containerd stored the bytes that were written here;
//! - all of the blob was applied (the caller that applies it verifies this).

mod archive;
mod attributes;
mod chunks;
mod entry;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod names;
mod source;
#[cfg(test)]
mod tests;
mod trusted;

use std::path::PathBuf;

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;
use tokio::task;
use tokio_util::sync::CancellationToken;

use crate::containerd::{self, BlobChunk, Containerd, Descriptor, Resource};
use crate::unpack::snapshotter::lease::Lease;
use chunks::Chunks;
use source::Directory;

pub(crate) use trusted::attributes_are_seen;

/// The snapshotter that layers are rebuilt from.
pub(crate) const SOURCE: &str = "overlayfs";

/// Why the blob was not rebuilt.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error("{SOURCE} does not have the layer either")]
    NotThere,
    #[error("{SOURCE} does not show the layer's own directory: its view mounts {0:?}")]
    Mounts(Vec<String>),
    #[error(
        "{} is not there: in a container, nri-unpack needs containerd's root directory of the host \
         at the same path", .0.display()
    )]
    OutOfReach(PathBuf),
    #[error(
        "the kernel hides {SOURCE}' own attributes from this process: run it as root with \
         CAP_SYS_ADMIN, in no user namespace"
    )]
    Hidden,
    #[error(transparent)]
    Archive(#[from] archive::Error),
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    #[error("stopped")]
    Stopped,
}

/// The rebuild of one layer's blob.
pub(crate) struct Rebuild<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) lease: &'a Lease,
    pub(crate) chain_id: &'a str,
    /// Whether no layer is below this one.
    pub(crate) is_lowest: bool,
    pub(crate) stop: &'a CancellationToken,
}

impl Rebuild<'_> {
    /// Writes the layer's blob. It is removed with the lease. After a failure nothing of it remains.
    pub(crate) async fn blob(&self) -> Result<Descriptor, Failure> {
        let layer = Resource::snapshot(SOURCE, self.chain_id);
        self.containerd.hold(self.lease.id(), layer).await?;
        let directory =
            source::directory(self.containerd, self.lease, self.chain_id, self.is_lowest).await?;
        let inodes = self.containerd.inodes(SOURCE, self.chain_id).await?;
        if !directory.path.exists() {
            return Err(Failure::OutOfReach(directory.path));
        }
        if !attributes_are_seen() {
            return Err(Failure::Hidden);
        }
        match self.write(directory.clone(), inodes).await {
            // An equal blob existed, and was collected before the lease held it.
            Err(Failure::Containerd(e)) if e.already_exists() => {
                self.write(directory, inodes).await
            }
            written => written,
        }
    }

    /// Reads the directory in a thread, and writes the blob as a stream at the same time.
    async fn write(&self, directory: Directory, inodes: u64) -> Result<Descriptor, Failure> {
        let reference = self.lease.write_reference(self.chain_id);
        let (sender, mut receiver) = mpsc::channel::<BlobChunk>(chunks::WAITING);
        let root = directory.path.clone();
        let read = task::spawn_blocking(move || {
            let mut chunks = Chunks::new(sender);
            archive::write(&directory, inodes, &mut chunks)?;
            chunks.end().map_err(|source| archive::Error::Io {
                path: directory.path,
                source,
            })
        });
        let chunks = stream::poll_fn(move |context| receiver.poll_recv(context)).boxed();
        let write = self
            .containerd
            .write_blob(self.lease.id(), &reference, chunks);
        let written = self.stop.run_until_cancelled(write).await;
        // If the write has ended, the reader ends at its next piece.
        let read = read.await.map_err(std::io::Error::other);
        let read = read.map_err(|source| archive::Error::Io { path: root, source })?;
        let outcome = match (written, read) {
            (None, _) => Err(Failure::Stopped),
            (Some(Ok(())), Ok(blob)) => return Ok(blob),
            (Some(Err(e)), Ok(blob)) if e.already_exists() => self.hold_equal(blob, e).await,
            // The reader failed first, and ended the stream.
            (Some(_), Err(e)) if !e.is_unwanted() => Err(e.into()),
            (Some(Err(e)), _) => Err(e.into()),
            (Some(Ok(())), Err(e)) => Err(e.into()),
        };
        self.abort(&reference).await;
        outcome
    }

    /// Returns a blob that exists already: equal layers make the same blob. The lease must hold it.
    async fn hold_equal(
        &self,
        blob: Descriptor,
        exists: containerd::Error,
    ) -> Result<Descriptor, Failure> {
        let resource = Resource::blob(&blob.digest);
        self.containerd.hold(self.lease.id(), resource).await?;
        match self.containerd.blob(&blob.digest).await {
            Ok(_) => Ok(blob),
            // It was removed before the lease held it.
            Err(e) if e.is_not_found() => Err(exists.into()),
            Err(e) => Err(e.into()),
        }
    }

    /// Removes the unfinished blob. If that fails, it is removed with the lease.
    async fn abort(&self, reference: &str) {
        match self.containerd.abort_write(reference).await {
            Err(e) if !e.is_not_found() => {
                log::debug!(reference, error:% = e; "unfinished blob could not be removed: it is removed with its lease");
            }
            _ => {}
        }
    }
}
