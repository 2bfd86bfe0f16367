//! The snapshots, leases and properties of snapshotters that a test sets in the fake and reads back.

use std::collections::BTreeMap;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::time::SystemTime;

use super::Fake;
use super::types::at;
use crate::containerd::{Descriptor, Labels, Mount, Resource, Snapshot, SnapshotKind};

impl Fake {
    /// Sets containerd's version, and lists the capability `rebase` for the snapshotter.
    pub(crate) fn can_rebase(&self, snapshotter: &str, version: &str) {
        let mut state = self.state();
        version.clone_into(&mut state.version);
        state.store.rebases.insert(snapshotter.to_owned());
    }

    /// Removes the capability `rebase` from the snapshotter.
    pub(crate) fn cannot_rebase(&self, snapshotter: &str) {
        self.state().store.rebases.remove(snapshotter);
    }

    /// Makes the snapshotter a proxy plugin that mounts the layers of these blobs lazily if they have labels.
    pub(crate) fn is_lazy(&self, snapshotter: &str, blobs: &[Descriptor]) {
        let mut state = self.state();
        let digests = blobs.iter().map(|blob| blob.digest.clone());
        let lazy = &mut state.store.lazy;
        lazy.entry(snapshotter.to_owned())
            .or_default()
            .extend(digests);
    }

    /// Restarts the snapshotter, a proxy plugin that listens at this socket, in a mode in which it leaves labelled layers
    /// to the guest, or in another one.
    pub(crate) fn restart(&self, snapshotter: &str, socket: &Path, guest_pulls: bool) {
        self.set_mode(snapshotter, guest_pulls);
        let path = socket.to_str().unwrap().to_owned();
        let name = snapshotter.to_owned();
        self.state().store.sockets.insert(name, path);
        let _ = std::fs::remove_file(socket);
        drop(UnixListener::bind(socket).unwrap());
    }

    /// Sets whether the snapshotter leaves labelled layers to the guest.
    pub(crate) fn set_mode(&self, snapshotter: &str, guest_pulls: bool) {
        let name = snapshotter.to_owned();
        self.state().store.guest_pulls.insert(name, guest_pulls);
    }

    /// Marks a layer as one that holds files.
    pub(crate) fn fill(&self, snapshotter: &str, name: &str) {
        self.state().store.full.insert(at(snapshotter, name));
    }

    /// Makes the snapshotter fill the snapshot that is prepared for the chain id with the content of this
    /// blob.
    pub(crate) fn stage(&self, snapshotter: &str, chain_id: &str, blob: &str) {
        let mut state = self.state();
        let staged = &mut state.store.staged;
        staged.insert(at(snapshotter, chain_id), blob.to_owned());
    }

    /// Returns the files that a container on this snapshot sees.
    pub(crate) fn tree(&self, snapshotter: &str, name: &str) -> BTreeMap<String, String> {
        self.state().store.tree(snapshotter, name)
    }

    /// Adds a committed snapshot, as another client of containerd makes it.
    pub(crate) fn put(&self, snapshotter: &str, name: &str, parent: Option<&str>, labels: Labels) {
        let kind = SnapshotKind::Committed;
        let mut state = self.state();
        state.store.add(snapshotter, name, parent, kind, labels);
    }

    /// Adds a committed snapshot without labels, as another client of containerd makes it.
    pub(crate) fn commit_unlabelled(&self, snapshotter: &str, name: &str, parent: Option<&str>) {
        self.put(snapshotter, name, parent, Labels::new());
    }

    /// Sets what a view of the snapshot `name` mounts, the top layer's directory first, and how many inodes
    /// the snapshot has.
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

    /// Removes a snapshot, also one that has children.
    pub(crate) fn forget(&self, snapshotter: &str, name: &str) {
        self.state().store.forget(snapshotter, name);
    }

    /// Makes the snapshotter lose its snapshots. containerd's metadata keeps their records.
    pub(crate) fn lose_snapshots(&self, snapshotter: &str) {
        self.state().store.lose(snapshotter);
    }

    /// Makes the snapshotter have a lost snapshot again.
    pub(crate) fn find(&self, snapshotter: &str, name: &str) {
        self.state().store.find(snapshotter, name);
    }

    /// Adds a container's own snapshot.
    pub(crate) fn activate(&self, snapshotter: &str, key: &str, parent: &str) {
        self.state().store.activate(snapshotter, key, parent);
    }

    /// Adds the extraction snapshot of another client, created at this time.
    pub(crate) fn extract(
        &self,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        created_at: SystemTime,
    ) {
        let store = &mut self.state().store;
        let kind = SnapshotKind::Active;
        store.add(snapshotter, key, parent, kind, Labels::new());
        store.set_created(snapshotter, key, created_at);
    }

    /// Sets the time at which a snapshot was created. Otherwise it is some seconds after the epoch.
    pub(crate) fn set_created(&self, snapshotter: &str, key: &str, created_at: SystemTime) {
        let store = &mut self.state().store;
        store.set_created(snapshotter, key, created_at);
    }

    /// Collects a container's snapshot, as after a failed creation or the removal of the container.
    pub(crate) fn collect_container(&self, snapshotter: &str, key: &str) {
        let mut state = self.state();
        state.store.abandon(snapshotter, key);
        state.store.collect_garbage();
    }

    /// Returns all snapshots of a snapshotter.
    pub(crate) fn all(&self, snapshotter: &str) -> Vec<Snapshot> {
        let state = self.state();
        let of = |(key, snapshot): (&(String, String), &Snapshot)| {
            let is_listed = key.0 == snapshotter && state.store.snapshot(&key.0, &key.1).is_some();
            is_listed.then(|| snapshot.clone())
        };
        state.store.snapshots.iter().filter_map(of).collect()
    }

    /// Returns the ids of all leases.
    pub(crate) fn lease_ids(&self) -> Vec<String> {
        self.state().store.leases.keys().cloned().collect()
    }

    /// Adds a lease that holds these resources.
    pub(crate) fn lease(&self, id: &str, labels: Labels, held: &[Resource]) {
        let held = held
            .iter()
            .map(|r| (r.kind.clone(), r.id.clone()))
            .collect();
        let mut state = self.state();
        state.store.leases.insert(id.to_owned(), (labels, held));
    }

    /// Collects the snapshots that no lease, label or container holds. Blobs stay.
    pub(crate) fn collect_garbage(&self) {
        self.state().store.collect_garbage();
    }
}
