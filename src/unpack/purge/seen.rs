//! The snapshots of one snapshotter, as far as they belong to the plugin or show what is in use.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::containerd::{self, Containerd, Snapshot, SnapshotKind};
use crate::image::MAX_LAYERS;
use crate::unpack::chain::profile::is_proxied;
use crate::unpack::snapshotter::guest_pull::{is_private, is_surely_empty};
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::OWN_LABELS;
use crate::unpack::snapshotter::temporary::is_temporary;

/// What the snapshots of one snapshotter show.
#[derive(Default)]
pub(super) struct Seen {
    /// The temporary snapshots.
    pub(super) temporary: BTreeSet<String>,
    /// The private chains: the snapshots that have no other snapshot of their chain above them.
    pub(super) private: BTreeSet<String>,
    /// The guest-pulled layers.
    proxied: HashSet<String>,
    /// The top layers of chains with a layer that could not be looked into, and why.
    unknown: HashMap<String, String>,
    /// The parents of committed snapshots.
    parents: HashMap<String, String>,
    /// The parents of the snapshots of containers.
    used: HashSet<String>,
    /// The snapshots in leases of other clients.
    held: HashSet<String>,
    /// The labels of this program, as the key of the snapshot, its kind, and the key of the label.
    pub(super) labels: Vec<(String, SnapshotKind, String)>,
}

impl Seen {
    pub(super) async fn read(
        containerd: &dyn Containerd,
        snapshotter: &str,
    ) -> Result<Self, containerd::Error> {
        // Leases are read before the list of snapshots: a container whose snapshot was made meanwhile is in the list.
        let held = Leases::held_by_others(containerd, snapshotter).await?;
        let mut seen = Self {
            held,
            ..Self::default()
        };
        let mut below_private = HashSet::new();
        let each = &mut |snapshot: Snapshot| {
            let own = snapshot.labels.keys();
            let own = own.filter(|key| key.starts_with(OWN_LABELS)).cloned();
            let own = own.map(|label| (snapshot.name.clone(), snapshot.kind, label));
            seen.labels.extend(own);
            if is_proxied(&snapshot.labels) {
                seen.proxied.insert(snapshot.name.clone());
            }
            if let (SnapshotKind::Committed, Some(parent)) = (snapshot.kind, &snapshot.parent) {
                seen.parents.insert(snapshot.name.clone(), parent.clone());
            }
            if is_temporary(&snapshot.name) {
                seen.temporary.insert(snapshot.name);
            } else if is_private(&snapshot.name) {
                below_private.extend(snapshot.parent);
                seen.private.insert(snapshot.name);
            } else if snapshot.kind != SnapshotKind::Committed {
                seen.used.extend(snapshot.parent);
            }
        };
        containerd.snapshots(snapshotter, each).await?;
        seen.private.retain(|name| !below_private.contains(name));
        if seen.proxied.is_empty() {
            seen.parents.clear();
        }
        Ok(seen)
    }

    /// Whether the chain with this top layer is guest-pulled.
    pub(super) fn is_proxied(&self, top: &str) -> bool {
        self.proxied.contains(top)
    }

    /// Returns the highest guest-pulled layer below layers that the host has unpacked, if the chain with this top layer has
    /// both.
    pub(super) fn below_host_layers<'a>(&'a self, top: &'a str) -> Option<&'a str> {
        if self.is_proxied(top) {
            return None;
        }
        let parent = |layer: &&'a str| self.parents.get(*layer).map(String::as_str);
        // An answer may describe a snapshot that is below itself.
        let mut chain = std::iter::successors(Some(top), parent).take(MAX_LAYERS);
        chain.find(|layer| self.proxied.contains(*layer))
    }

    /// Forgets the marks of guest-pulled layers in a built-in snapshotter: annotations of images have brought them.
    pub(super) fn forget_all_marks(&mut self) {
        self.proxied.clear();
        self.parents.clear();
    }

    /// Forgets the mark of layers with content below these tops: an annotation of an image may have brought it.
    pub(super) async fn forget_false_marks(
        &mut self,
        containerd: &dyn Containerd,
        snapshotter: &str,
        tops: impl Iterator<Item = &String>,
    ) {
        for top in tops {
            while let Some(layer) = self.below_host_layers(top).map(str::to_owned) {
                match is_surely_empty(containerd, snapshotter, &layer).await {
                    Ok(true) => break,
                    Ok(false) => drop(self.proxied.remove(&layer)),
                    Err(e) => {
                        self.unknown.insert(top.clone(), e.to_string());
                        break;
                    }
                }
            }
        }
    }

    /// Returns why it is unknown whether the chain with this top layer has guest-pulled layers.
    pub(super) fn unknown(&self, top: &str) -> Option<&String> {
        self.unknown.get(top)
    }

    /// Whether a container uses the chain with this top layer, or is about to.
    pub(super) fn is_used(&self, top: &str) -> bool {
        self.used.contains(top) || self.held.contains(top)
    }
}
