//! Removes snapshots of a remote snapshotter without containerd: its metadata keeps the records, as if the snapshotter
//! had lost them. Quicker than a restart with an empty directory, and some snapshots can stay.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use containerd_client::Client;
use containerd_client::services::v1::snapshots::{ListSnapshotsRequest, RemoveSnapshotRequest};

use crate::proxy::ProxySnapshotter;
use crate::store::namespaced;

impl ProxySnapshotter {
    /// Removes the snapshots that have one of these keys in containerd, and all that stand on them. Returns how many.
    ///
    /// # Errors
    /// If the snapshotter returns an error.
    pub async fn lose(&self, keys: &[String]) -> Result<usize> {
        let client = Client::from_path(self.socket()).await?;
        let request = namespaced(ListSnapshotsRequest::default());
        let mut stream = client.snapshots().list(request).await?.into_inner();
        let mut parents = BTreeMap::new();
        while let Some(response) = stream.message().await? {
            let infos = response.info.into_iter();
            parents.extend(infos.map(|info| (info.name, info.parent)));
        }
        // containerd names a snapshot by a namespace, a number and its key; a layer that the snapshotter has committed by
        // itself has the name in its label.
        let is_named = |name: &str| {
            let key = name.splitn(3, '/').nth(2).unwrap_or(name);
            keys.iter().any(|it| it == key)
        };
        let mut lost: BTreeSet<&String> = parents.keys().filter(|name| is_named(name)).collect();
        loop {
            let above = parents.iter().filter(|(_, parent)| lost.contains(parent));
            let above: Vec<_> = above.map(|(name, _)| name).collect();
            let before = lost.len();
            lost.extend(above);
            if lost.len() == before {
                break;
            }
        }
        let count = lost.len();
        while !lost.is_empty() {
            let mut names = lost.iter();
            let leaf = names.find(|name| !lost.iter().any(|other| parents[*other] == ***name));
            let leaf = *leaf.context("snapshots in a circle")?;
            let request = RemoveSnapshotRequest {
                key: leaf.clone(),
                ..Default::default()
            };
            client.snapshots().remove(namespaced(request)).await?;
            lost.remove(leaf);
        }
        Ok(count)
    }
}
