//! What uses the chains of a snapshotter, from one listing for all of them.

use std::collections::{HashMap, HashSet};

use crate::containerd::{self, Containerd, Snapshot};
use crate::unpack::snapshotter::lease::Leases;

/// The users of chains at the time of the listing.
#[derive(Default)]
pub(crate) struct Users {
    /// The names of the snapshots on each top layer.
    children: HashMap<String, Vec<String>>,
    /// The snapshots that leases of other clients hold.
    held: HashSet<String>,
}

impl Users {
    /// Reads the users of the chains with these top layers.
    pub(crate) async fn read(
        containerd: &dyn Containerd,
        snapshotter: &str,
        tops: &HashSet<&str>,
    ) -> Result<Self, containerd::Error> {
        // Leases are read before the list of snapshots: a container whose snapshot was made meanwhile is in the list.
        let held = Leases::held_by_others(containerd, snapshotter).await?;
        let mut children: HashMap<String, Vec<String>> = HashMap::new();
        let each = &mut |snapshot: Snapshot| {
            if let Some(parent) = snapshot.parent.filter(|it| tops.contains(it.as_str())) {
                children.entry(parent).or_default().push(snapshot.name);
            }
        };
        containerd.snapshots(snapshotter, each).await?;
        Ok(Self { children, held })
    }

    /// Returns the snapshots that stand on the chain with this top layer; `None` if nothing uses it.
    pub(crate) fn of(&self, top: &str) -> Option<&[String]> {
        let children = self.children.get(top).map(Vec::as_slice);
        children.or_else(|| self.held.contains(top).then_some(&[]))
    }
}
