//! Leases, labels and snapshots that another process has left: the tests lay them as that process would have.

use std::collections::HashMap;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snapshots_api;
use prost_types::FieldMask;
use tonic::Status;

use crate::chains::leased;
use crate::store::{Labels, Store, namespaced};

impl Store {
    /// Creates a lease with this ID and these labels.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn put_lease(&self, id: &str, labels: &Labels) -> Result<(), Status> {
        let request = api::CreateRequest {
            id: id.to_owned(),
            labels: unsorted(labels),
        };
        self.client.leases().create(namespaced(request)).await?;
        Ok(())
    }

    /// Makes an active snapshot, which the lease holds. An empty parent is none.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn put_active(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<(), Status> {
        let request = snapshots_api::PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        self.client
            .snapshots()
            .prepare(leased(request, lease)?)
            .await?;
        Ok(())
    }

    /// Makes a read-only view, which the lease holds.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn put_view(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<(), Status> {
        let request = snapshots_api::ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
            parent: parent.to_owned(),
            labels: HashMap::new(),
        };
        self.client
            .snapshots()
            .view(leased(request, lease)?)
            .await?;
        Ok(())
    }

    /// Commits an empty snapshot with these labels, which the lease holds.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn put_committed(
        &self,
        lease: &str,
        snapshotter: &str,
        name: &str,
        parent: &str,
        labels: &Labels,
    ) -> Result<(), Status> {
        let key = format!("put {name}");
        self.put_active(lease, snapshotter, &key, parent).await?;
        let request = snapshots_api::CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key,
            labels: unsorted(labels),
        };
        self.client
            .snapshots()
            .commit(leased(request, lease)?)
            .await?;
        Ok(())
    }

    /// Adds labels to a blob. Its other labels stay.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn label_content(&self, digest: &str, labels: &Labels) -> Result<(), Status> {
        let request = api::UpdateRequest {
            info: Some(api::Info {
                digest: digest.to_owned(),
                labels: unsorted(labels),
                ..Default::default()
            }),
            update_mask: Some(mask(labels)),
        };
        self.client.content().update(namespaced(request)).await?;
        Ok(())
    }

    /// Adds labels to a snapshot. Its other labels stay.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn label_snapshot(
        &self,
        snapshotter: &str,
        key: &str,
        labels: &Labels,
    ) -> Result<(), Status> {
        let request = snapshots_api::UpdateSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            info: Some(snapshots_api::Info {
                name: key.to_owned(),
                labels: unsorted(labels),
                ..Default::default()
            }),
            update_mask: Some(mask(labels)),
        };
        self.client.snapshots().update(namespaced(request)).await?;
        Ok(())
    }
}

fn unsorted(labels: &Labels) -> HashMap<String, String> {
    labels.clone().into_iter().collect()
}

/// Returns the mask by which containerd changes these labels alone.
fn mask(labels: &Labels) -> FieldMask {
    let paths = labels.keys().map(|key| format!("labels.{key}"));
    FieldMask {
        paths: paths.collect(),
    }
}
