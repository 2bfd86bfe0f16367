//! All snapshots of a snapshotter and all blobs, read with two calls: a check of many images needs no call for each
//! layer.

use std::collections::HashMap;

use crate::containerd::{self, Blob, Containerd, Labels, Snapshot, SnapshotKind};
use crate::unpack::chain::profile::is_proxied;

/// The label of the snapshot of an image volume into which all layers were applied.
pub(crate) const FILLED: &str = "nri-unpack/volume";

/// Whether all layers were applied into the image volume whose snapshot has these labels.
pub(crate) fn is_filled(labels: &Labels) -> bool {
    labels.contains_key(FILLED)
}

/// The snapshots of a snapshotter and the blobs of the content store, at the time of the call.
#[derive(Clone, Debug)]
pub struct Listing {
    pub(crate) snapshotter: String,
    snapshots: HashMap<String, Snapshot>,
    blobs: HashMap<String, Blob>,
}

impl Listing {
    pub(crate) async fn read(
        containerd: &dyn Containerd,
        snapshotter: &str,
    ) -> Result<Self, containerd::Error> {
        let (snapshots, blobs) =
            futures::try_join!(containerd.snapshots(snapshotter), containerd.blobs())?;
        let snapshots = snapshots.into_iter().map(|s| (s.name.clone(), s));
        let blobs = blobs.into_iter().map(|b| (b.digest.clone(), b));
        Ok(Self {
            snapshotter: snapshotter.to_owned(),
            snapshots: snapshots.collect(),
            blobs: blobs.collect(),
        })
    }

    /// Returns the number of snapshots, including those of containers.
    pub fn len(&self) -> usize {
        self.snapshots.len()
    }

    /// Whether there is no snapshot.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
    }

    /// Returns the keys of all snapshots.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.snapshots.keys().map(String::as_str)
    }

    /// Returns the keys of the active snapshots on guest-pulled layers, without image volumes into which the layers
    /// were applied.
    pub fn on_guest_layers(&self) -> impl Iterator<Item = &str> {
        let active = self.all().filter(|s| s.kind == SnapshotKind::Active);
        let incomplete = active.filter(|s| !is_filled(&s.labels) && self.is_above_guest_layer(s));
        incomplete.map(|snapshot| snapshot.name.as_str())
    }

    /// Returns the key of an active snapshot whose parent is marked as guest-pulled.
    pub(crate) fn directly_on_guest_layer(&self) -> Option<&str> {
        let mut active = self.all().filter(|s| s.kind == SnapshotKind::Active);
        let is_on = |s: &&Snapshot| {
            let parent = s.parent.as_deref().and_then(|parent| self.snapshot(parent));
            parent.is_some_and(|parent| is_proxied(&parent.labels))
        };
        active.find(is_on).map(|snapshot| snapshot.name.as_str())
    }

    /// Returns the newest layer that is marked as guest-pulled.
    pub(crate) fn newest_guest_layer(&self) -> Option<&str> {
        let marked = self.all().filter(|s| is_proxied(&s.labels));
        let newest = marked.max_by_key(|snapshot| snapshot.created_at);
        newest.map(|snapshot| snapshot.name.as_str())
    }

    fn is_above_guest_layer(&self, snapshot: &Snapshot) -> bool {
        let parent = |s: &&Snapshot| self.snapshot(s.parent.as_deref()?);
        let mut below = std::iter::successors(parent(&snapshot), parent);
        below.any(|layer| is_proxied(&layer.labels))
    }

    pub(crate) fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.get(name)
    }

    pub(crate) fn blob(&self, digest: &str) -> Option<&Blob> {
        self.blobs.get(digest)
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.values()
    }
}
