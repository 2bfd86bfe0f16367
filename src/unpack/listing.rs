//! All snapshots of a snapshotter, read in one go: what looks at many images needs no `Stat` for each
//! layer of each.

use std::collections::HashMap;

use crate::containerd::{self, Containerd, Snapshot};

/// What a snapshotter had when it was asked.
#[derive(Clone, Debug)]
pub struct Listing {
    pub(super) snapshotter: String,
    snapshots: HashMap<String, Snapshot>,
}

impl Listing {
    pub(super) async fn read(
        containerd: &dyn Containerd,
        snapshotter: &str,
    ) -> Result<Self, containerd::Error> {
        let snapshots = containerd.snapshots(snapshotter).await?.into_iter();
        Ok(Self {
            snapshotter: snapshotter.to_owned(),
            snapshots: snapshots.map(|s| (s.name.clone(), s)).collect(),
        })
    }

    /// How many snapshots there are, those of containers among them.
    pub fn len(&self) -> usize {
        self.snapshots.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
    }

    /// The keys of all of them.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.snapshots.keys().map(String::as_str)
    }

    pub(super) fn snapshot(&self, name: &str) -> Option<&Snapshot> {
        self.snapshots.get(name)
    }

    pub(super) fn all(&self) -> impl Iterator<Item = &Snapshot> {
        self.snapshots.values()
    }
}
