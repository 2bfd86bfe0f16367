//! The mounts of a snapshot. They show whether a container runs from the host's layers, from a lazily loaded
//! file system, or from a guest pull.

use containerd_client::services::v1::snapshots::MountsRequest;
use tonic::Status;

use crate::store::{Store, namespaced};

/// A mount as a snapshotter returns it to its client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The type of the file system: `overlay`, `fuse.nydus-overlayfs`.
    pub kind: String,
    /// A device, a directory, or another source that the type supports.
    pub source: String,
    /// The options, unchanged.
    pub options: Vec<String>,
}

impl Store {
    /// Returns the mounts of an active snapshot or a view, such as the one whose key is a container's ID.
    ///
    /// # Errors
    /// If containerd returns an error; `NotFound` if there is no such snapshot.
    pub async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>, Status> {
        let request = MountsRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        let response = self.client.snapshots().mounts(namespaced(request)).await?;
        let mounts = response.into_inner().mounts.into_iter();
        Ok(mounts
            .map(|mount| Mount {
                kind: mount.r#type,
                source: mount.source,
                options: mount.options,
            })
            .collect())
    }
}
