//! Snapshots, leases and snapshotters that a test puts into the fake, and what is left of them.

use std::collections::BTreeMap;
use std::path::Path;

use super::Fake;
use super::types::at;
use crate::containerd::{Descriptor, Labels, Mount, Resource, Snapshot, SnapshotKind};

impl Fake {
    /// It is containerd of this version, and lists the capability `rebase` for the snapshotter.
    pub(crate) fn can_rebase(&self, snapshotter: &str, version: &str) {
        let mut state = self.state();
        version.clone_into(&mut state.version);
        state.store.rebases.insert(snapshotter.to_owned());
    }

    /// It does not list it any more.
    pub(crate) fn cannot_rebase(&self, snapshotter: &str) {
        self.state().store.rebases.remove(snapshotter);
    }

    /// The snapshotter is a proxy plugin, which mounts the layers of these blobs lazily where they have labels.
    pub(crate) fn is_lazy(&self, snapshotter: &str, blobs: &[Descriptor]) {
        let mut state = self.state();
        let digests = blobs.iter().map(|blob| blob.digest.clone());
        let lazy = &mut state.store.lazy;
        lazy.entry(snapshotter.to_owned())
            .or_default()
            .extend(digests);
    }

    /// The snapshotter has what is in this blob already, and puts it into the snapshot that is
    /// prepared for the chain id.
    pub(crate) fn stage(&self, snapshotter: &str, chain_id: &str, blob: &str) {
        let mut state = self.state();
        let staged = &mut state.store.staged;
        staged.insert(at(snapshotter, chain_id), blob.to_owned());
    }

    /// The files that a container on this snapshot sees.
    pub(crate) fn tree(&self, snapshotter: &str, name: &str) -> BTreeMap<String, String> {
        self.state().store.tree(snapshotter, name)
    }

    /// A layer that somebody else made.
    pub(crate) fn put(&self, snapshotter: &str, name: &str, parent: Option<&str>, labels: Labels) {
        let kind = SnapshotKind::Committed;
        let mut state = self.state();
        state.store.add(snapshotter, name, parent, kind, labels);
    }

    /// A layer that somebody else made: committed without any label.
    pub(crate) fn commit_unlabelled(&self, snapshotter: &str, name: &str, parent: Option<&str>) {
        self.put(snapshotter, name, parent, Labels::new());
    }

    /// From now on a view of the snapshot `name` has these layers' directories, the highest first,
    /// and the snapshot itself is known to hold `inodes`.
    pub(crate) fn show(&self, snapshotter: &str, name: &str, layers: &[&Path], inodes: u64) {
        let text = |path: &Path| path.to_str().unwrap().to_owned();
        let mount = match layers {
            [only] => Mount {
                r#type: "bind".to_owned(),
                source: text(only),
                options: vec!["ro".to_owned(), "rbind".to_owned()],
                ..Default::default()
            },
            _ => {
                let layers: Vec<_> = layers.iter().map(|layer| text(layer)).collect();
                Mount {
                    r#type: "overlay".to_owned(),
                    source: "overlay".to_owned(),
                    options: vec![format!("lowerdir={}", layers.join(":"))],
                    ..Default::default()
                }
            }
        };
        let shown = (vec![mount], inodes);
        let mut state = self.state();
        state.store.shown.insert(at(snapshotter, name), shown);
    }

    /// A snapshot is not there any more.
    pub(crate) fn forget(&self, snapshotter: &str, name: &str) {
        self.state().store.forget(snapshotter, name);
    }

    /// A container's own snapshot.
    pub(crate) fn activate(&self, snapshotter: &str, key: &str, parent: &str) {
        self.state().store.activate(snapshotter, key, parent);
    }

    /// A creation has failed, or a container was removed: garbage collection takes its snapshot.
    pub(crate) fn collect_container(&self, snapshotter: &str, key: &str) {
        let mut state = self.state();
        state.store.abandon(snapshotter, key);
        state.store.collect_garbage();
    }

    /// What is in a snapshotter.
    pub(crate) fn all(&self, snapshotter: &str) -> Vec<Snapshot> {
        let state = self.state();
        let of = |(key, snapshot): (&(String, String), &Snapshot)| {
            (key.0 == snapshotter).then(|| snapshot.clone())
        };
        state.store.snapshots.iter().filter_map(of).collect()
    }

    /// The ids of all leases.
    pub(crate) fn lease_ids(&self) -> Vec<String> {
        self.state().store.leases.keys().cloned().collect()
    }

    /// A lease of somebody.
    pub(crate) fn lease(&self, id: &str, labels: Labels, held: &[Resource]) {
        let held = held
            .iter()
            .map(|r| (r.kind.clone(), r.id.clone()))
            .collect();
        let mut state = self.state();
        state.store.leases.insert(id.to_owned(), (labels, held));
    }

    /// Collects the snapshots that nothing holds. Blobs stay.
    pub(crate) fn collect_garbage(&self) {
        self.state().store.collect_garbage();
    }
}
