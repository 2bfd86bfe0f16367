//! The rules of containerd's metadata store that an unpack depends on: a parent must exist, a name must
//! be free, a snapshot with children cannot be removed, and garbage collection removes the snapshots that
//! neither a lease nor a label keeps.
//!
//! Knows no calls and faults. Each method succeeds or changes nothing, except for a write that cannot be
//! finished.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::time::{Duration, SystemTime};

use super::super::{
    Blob, ErrorKind, Image, Labels, Mount, Resource, Snapshot, SnapshotKind, Source,
};
use super::directories::{Change, Directories};
use super::sha256;
use super::types::{At, Effect, at};

/// The snapshotter whose layers the guest pulls, unless a test restarts it in another mode.
const GUEST_PULLS: &str = "nydus";

/// The label by which a `Prepare` names the committed snapshot that it is for.
const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";

/// The label that tells nydus what the guest pulls.
const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";

/// The label that nydus puts on a guest-pulled layer.
const PROXY_MODE: &str = "containerd.io/snapshot/nydus-proxy-mode";

/// The option of a mount whose image the guest pulls: `{"volume_type":"image_guest_pull"}`.
const KATA_VOLUME: &str =
    "io.katacontainers.volume=eyJ2b2x1bWVfdHlwZSI6ImltYWdlX2d1ZXN0X3B1bGwifQ==";

/// The prefix of a blob's label that keeps a snapshot. The snapshotter follows, and for further snapshots a
/// slash and any word.
const GC_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// The prefix of a blob's label that keeps another blob.
const GC_CONTENT: &str = "containerd.io/gc.ref.content.";

#[derive(Default)]
pub(super) struct Store {
    pub(super) images: BTreeMap<String, Image>,
    pub(super) blobs: BTreeMap<String, (Vec<u8>, Labels)>,
    /// The digest of each blob's uncompressed stream.
    pub(super) diff_ids: HashMap<String, String>,
    /// The changes that a blob makes in the directory that it is applied to; none for other blobs.
    pub(super) changes: HashMap<String, Vec<Change>>,
    /// The blobs that the registry has.
    pub(super) published: BTreeMap<String, Vec<u8>>,
    /// The sources of all fetches.
    pub(super) fetched: Vec<Source>,
    /// The bytes of unfinished blobs, by reference.
    pub(super) ingests: BTreeMap<String, Vec<u8>>,
    pub(super) snapshots: BTreeMap<At, Snapshot>,
    /// The snapshots that the snapshotter has lost.
    lost: BTreeSet<At>,
    /// The directories of the snapshots that were prepared here.
    directories: Directories,
    /// The snapshotters with the capability `rebase`.
    pub(super) rebases: BTreeSet<String>,
    /// The blob whose content the snapshotter puts into the snapshot that is prepared for a chain id.
    pub(super) staged: HashMap<At, String>,
    /// The proxy plugins, and the blobs that each mounts lazily.
    pub(super) lazy: BTreeMap<String, BTreeSet<String>>,
    /// Whether the snapshotters that a test has restarted leave layers to the guest.
    pub(super) guest_pulls: HashMap<String, bool>,
    /// The sockets of proxy plugins that exist as files.
    pub(super) sockets: HashMap<String, String>,
    /// The layers that hold files.
    pub(super) full: BTreeSet<At>,
    /// The mounts of a view of a snapshot, and the snapshot's number of inodes.
    pub(super) shown: HashMap<At, (Vec<Mount>, u64)>,
    /// Parents with their children. The removal of a child removes its entry. A child that was collected
    /// keeps its entry until the parent is collected, as in the real store.
    children: BTreeSet<(At, String)>,
    /// The snapshots of containers that exist or are being created.
    containers: BTreeSet<At>,
    pub(super) leases: BTreeMap<String, (Labels, BTreeSet<(String, String)>)>,
    made: u64,
}

impl Store {
    pub(super) fn add(
        &mut self,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        kind: SnapshotKind,
        mut labels: Labels,
    ) {
        // The real store drops labels with an empty value.
        labels.retain(|_, value| !value.is_empty());
        self.made += 1;
        let snapshot = Snapshot {
            name: key.to_owned(),
            parent: parent.map(str::to_owned),
            kind,
            created_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(self.made)),
            labels,
        };
        if let Some(parent) = parent {
            self.children
                .insert((at(snapshotter, parent), key.to_owned()));
        }
        self.lost.remove(&at(snapshotter, key));
        self.snapshots.insert(at(snapshotter, key), snapshot);
    }

    pub(super) fn blobs_that(&self, is_meant: impl Fn(&[u8]) -> bool) -> Vec<Blob> {
        let meant = self.blobs.iter().filter(|(_, (bytes, _))| is_meant(bytes));
        let blob = |(digest, (bytes, labels)): (&String, &(Vec<u8>, Labels))| Blob {
            digest: digest.clone(),
            size: bytes.len() as u64,
            labels: labels.clone(),
            created_at: None,
        };
        meant.map(blob).collect()
    }

    /// Adds a container's own snapshot, which stays until [`Self::abandon`].
    pub(super) fn activate(&mut self, snapshotter: &str, key: &str, parent: &str) {
        self.containers.insert(at(snapshotter, key));
        let kind = SnapshotKind::Active;
        self.add(snapshotter, key, Some(parent), kind, Labels::new());
    }

    /// Sets the time at which a snapshot was created.
    pub(super) fn set_created(&mut self, snapshotter: &str, key: &str, created_at: SystemTime) {
        let snapshot = self.snapshots.get_mut(&at(snapshotter, key));
        snapshot.unwrap().created_at = Some(created_at);
    }

    /// Removes a container; garbage collection then removes its snapshot.
    pub(super) fn abandon(&mut self, snapshotter: &str, key: &str) {
        self.containers.remove(&at(snapshotter, key));
    }

    /// Removes a snapshot, also one that has children.
    pub(super) fn forget(&mut self, snapshotter: &str, key: &str) {
        self.take(snapshotter, key).unwrap();
        self.shown.remove(&at(snapshotter, key));
    }

    pub(super) fn lose(&mut self, snapshotter: &str) {
        let keys = self.snapshots.keys().filter(|(of, _)| of == snapshotter);
        self.lost.extend(keys.cloned());
    }

    pub(super) fn find(&mut self, snapshotter: &str, key: &str) {
        self.lost.remove(&at(snapshotter, key));
    }

    pub(super) fn has_record(&self, snapshotter: &str, key: &str) -> bool {
        self.snapshots.contains_key(&at(snapshotter, key))
    }

    /// Returns a snapshot that the snapshotter has.
    pub(super) fn snapshot(&self, snapshotter: &str, key: &str) -> Option<&Snapshot> {
        let here = at(snapshotter, key);
        let snapshot = self.snapshots.get(&here);
        snapshot.filter(|_| !self.lost.contains(&here))
    }

    fn take(&mut self, snapshotter: &str, key: &str) -> Effect<Snapshot> {
        let taken = self.snapshots.remove(&at(snapshotter, key));
        let taken = taken.ok_or(ErrorKind::NotFound)?;
        if let Some(parent) = &taken.parent {
            self.children
                .remove(&(at(snapshotter, parent), key.to_owned()));
        }
        Ok(taken)
    }

    pub(super) fn prepare(
        &mut self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        mut labels: Labels,
    ) -> Effect<Vec<Mount>> {
        let exists = |key: &str| self.snapshots.contains_key(&at(snapshotter, key));
        let target = labels.get(SNAPSHOT_REF).cloned();
        if let Some(target) = &target
            && exists(target)
        {
            self.hold(lease, Resource::snapshot(snapshotter, target))?;
            return Err(ErrorKind::AlreadyExists);
        }
        if parent.is_some_and(|parent| self.snapshot(snapshotter, parent).is_none()) {
            return Err(ErrorKind::NotFound);
        }
        if exists(key) {
            return Err(ErrorKind::AlreadyExists);
        }
        let lazy = self.lazy.get(snapshotter);
        let blob = labels.get(LAYER_DIGEST);
        let is_lazy = lazy
            .zip(blob)
            .is_some_and(|(lazy, blob)| lazy.contains(blob));
        if let Some(target) = target.as_ref().filter(|_| is_lazy) {
            self.hold(lease, Resource::snapshot(snapshotter, target))?;
            self.add(snapshotter, target, parent, SnapshotKind::Committed, labels);
            return Err(ErrorKind::AlreadyExists);
        }
        match target.filter(|_| self.leaves_to_guest(snapshotter)) {
            Some(_) if !labels.contains_key(LAYER_DIGEST) => Err(ErrorKind::Other),
            Some(target) => {
                self.hold(lease, Resource::snapshot(snapshotter, &target))?;
                labels.insert(PROXY_MODE.to_owned(), "true".to_owned());
                let kind = SnapshotKind::Committed;
                self.add(snapshotter, &target, parent, kind, labels);
                Err(ErrorKind::AlreadyExists)
            }
            None => {
                self.hold(lease, Resource::snapshot(snapshotter, key))?;
                let target = labels.get(SNAPSHOT_REF).cloned().unwrap_or_default();
                self.add(snapshotter, key, parent, SnapshotKind::Active, labels);
                Ok(self.mounts(snapshotter, key, &target))
            }
        }
    }

    /// Returns the mounts of a new snapshot over those below it; read-only if its content is staged.
    fn mounts(&mut self, snapshotter: &str, key: &str, target: &str) -> Vec<Mount> {
        let chain = self.chain(snapshotter, key);
        let staged = self.staged.get(&at(snapshotter, target));
        let changes = staged.map(|blob| self.changes.get(blob).cloned().unwrap_or_default());
        self.directories.make(&chain, changes.as_deref())
    }

    /// Returns a snapshot and those below it.
    fn chain(&self, snapshotter: &str, key: &str) -> Vec<At> {
        let mut chain = vec![at(snapshotter, key)];
        while let Some(snapshot) = chain.last().and_then(|here| self.snapshots.get(here)) {
            let Some(parent) = &snapshot.parent else {
                break;
            };
            chain.push(at(snapshotter, parent));
        }
        chain
    }

    pub(super) fn apply(&mut self, blob: &str, mounts: &[Mount]) -> Effect {
        let changes = self.changes.get(blob).map(Vec::as_slice);
        self.directories.apply(changes.unwrap_or_default(), mounts)
    }

    pub(super) fn tree(&self, snapshotter: &str, name: &str) -> BTreeMap<String, String> {
        self.directories.merged(&self.chain(snapshotter, name))
    }

    pub(super) fn view(
        &mut self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Effect<Vec<Mount>> {
        if self.snapshots.contains_key(&at(snapshotter, key)) {
            return Err(ErrorKind::AlreadyExists);
        }
        let (mounts, _) = self.shown(snapshotter, parent)?;
        self.hold(lease, Resource::snapshot(snapshotter, key))?;
        let kind = SnapshotKind::View;
        self.add(snapshotter, key, Some(parent), kind, Labels::new());
        Ok(mounts)
    }

    pub(super) fn shown(&self, snapshotter: &str, key: &str) -> Effect<(Vec<Mount>, u64)> {
        let here = at(snapshotter, key);
        let shown = self.shown.get(&here).cloned();
        let shown = shown.filter(|_| self.snapshots.contains_key(&here));
        shown.ok_or(ErrorKind::NotFound)
    }

    /// Whether the snapshotter leaves labelled layers to the guest.
    fn leaves_to_guest(&self, snapshotter: &str) -> bool {
        let set = self.guest_pulls.get(snapshotter);
        set.copied().unwrap_or(snapshotter == GUEST_PULLS)
    }

    /// Returns the mounts of an active snapshot. nydus decides by the label of its parent.
    pub(super) fn mounts_of(&self, snapshotter: &str, key: &str) -> Effect<Vec<Mount>> {
        let own = self.snapshots.get(&at(snapshotter, key));
        let parent = own.ok_or(ErrorKind::NotFound)?.parent.as_deref();
        let parent = parent.and_then(|parent| self.snapshots.get(&at(snapshotter, parent)));
        let is_marked = parent.is_some_and(|parent| parent.labels.contains_key(PROXY_MODE));
        match (is_marked, self.leaves_to_guest(snapshotter)) {
            (true, false) => Err(ErrorKind::Other),
            (true, true) => Ok(vec![Mount {
                r#type: "fuse.nydus-overlayfs".to_owned(),
                options: vec![KATA_VOLUME.to_owned()],
                ..Default::default()
            }]),
            (false, _) => Ok(vec![]),
        }
    }

    /// Returns the number of inodes of a snapshot: its own directory, if nothing else is known of it.
    pub(super) fn inodes(&self, snapshotter: &str, key: &str) -> Effect<u64> {
        let here = at(snapshotter, key);
        match self.shown(snapshotter, key) {
            Err(_) if self.snapshots.contains_key(&here) => {
                Ok(if self.full.contains(&here) { 2 } else { 1 })
            }
            shown => shown.map(|(_, inodes)| inodes),
        }
    }

    pub(super) fn commit(
        &mut self,
        lease: &str,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Effect {
        if self.snapshots.contains_key(&at(snapshotter, name)) {
            return Err(ErrorKind::AlreadyExists);
        }
        let active = self.snapshots.get(&at(snapshotter, key));
        let prepared_on = active.ok_or(ErrorKind::NotFound)?.parent.clone();
        let parent = match (prepared_on, parent) {
            (None, Some(parent)) => {
                self.check_rebase(snapshotter, parent)?;
                Some(parent.to_owned())
            }
            (prepared_on, _) => prepared_on,
        };
        self.take(snapshotter, key)?;
        let kind = SnapshotKind::Committed;
        self.add(snapshotter, name, parent.as_deref(), kind, labels);
        let (from, to) = (at(snapshotter, key), at(snapshotter, name));
        self.directories.rename(&from, to);
        self.hold(lease, Resource::snapshot(snapshotter, name))
    }

    /// Checks that a snapshot which was prepared without a parent may be committed onto this one. Without
    /// the capability `rebase`, a real containerd would commit it without a parent.
    fn check_rebase(&self, snapshotter: &str, parent: &str) -> Effect {
        if !self.rebases.contains(snapshotter) {
            return Err(ErrorKind::Other);
        }
        match self.snapshots.get(&at(snapshotter, parent)) {
            None => Err(ErrorKind::NotFound),
            Some(parent) if parent.kind != SnapshotKind::Committed => {
                Err(ErrorKind::FailedPrecondition)
            }
            Some(_) => Ok(()),
        }
    }

    pub(super) fn remove(&mut self, snapshotter: &str, key: &str) -> Effect {
        let here = at(snapshotter, key);
        if self.children.iter().any(|(parent, _)| *parent == here) {
            return Err(ErrorKind::FailedPrecondition);
        }
        self.take(snapshotter, key)?;
        self.directories.retain(|snapshot| *snapshot != here);
        Ok(())
    }

    pub(super) fn hold(&mut self, lease: &str, resource: Resource) -> Effect {
        let (_, held) = self.leases.get_mut(lease).ok_or(ErrorKind::NotFound)?;
        held.insert((resource.kind, resource.id));
        Ok(())
    }

    pub(super) fn release(&mut self, lease: &str, resource: Resource) -> Effect {
        let (_, held) = self.leases.get_mut(lease).ok_or(ErrorKind::NotFound)?;
        held.remove(&(resource.kind, resource.id));
        Ok(())
    }

    pub(super) fn publish(&mut self) {
        let blobs = self.blobs.iter();
        self.published = blobs
            .map(|(d, (bytes, _))| (d.clone(), bytes.clone()))
            .collect();
    }

    /// Fetches all blobs that are published; the manifest's labels keep them.
    pub(super) fn fetch(&mut self, lease: &str, source: &Source) -> Effect {
        self.fetched.push(source.clone());
        let (_, manifest) = source.reference.rsplit_once('@').unwrap();
        let mut kept = Labels::new();
        for (digest, bytes) in self.published.clone() {
            self.hold(lease, Resource::blob(&digest))?;
            kept.insert(format!("{GC_CONTENT}{digest}"), digest.clone());
            let fetched = (bytes, Labels::new());
            self.blobs.entry(digest).or_insert(fetched);
        }
        self.label_blob(manifest, kept)
    }

    /// Begins a write; an unfinished blob of this reference is dropped.
    pub(super) fn begin(&mut self, reference: &str) {
        self.ingests.insert(reference.to_owned(), vec![]);
    }

    pub(super) fn append(&mut self, reference: &str, data: &[u8]) -> Effect {
        let written = self.ingests.get_mut(reference);
        written.ok_or(ErrorKind::NotFound)?.extend(data);
        Ok(())
    }

    /// Turns an unfinished blob into a blob. If that blob exists, only the unfinished one is removed.
    pub(super) fn finish(
        &mut self,
        lease: &str,
        reference: &str,
        digest: &str,
        size: u64,
    ) -> Effect {
        let written = self.ingests.remove(reference);
        let bytes = written.ok_or(ErrorKind::NotFound)?;
        assert_eq!((&*sha256(&bytes), bytes.len() as u64), (digest, size));
        if self.blobs.contains_key(digest) {
            return Err(ErrorKind::AlreadyExists);
        }
        self.hold(lease, Resource::blob(digest))?;
        self.blobs.insert(digest.to_owned(), (bytes, Labels::new()));
        Ok(())
    }

    pub(super) fn label_blob(&mut self, digest: &str, labels: Labels) -> Effect {
        let blob = self.blobs.get_mut(digest);
        merge(&mut blob.ok_or(ErrorKind::NotFound)?.1, labels);
        Ok(())
    }

    pub(super) fn label_snapshot(
        &mut self,
        snapshotter: &str,
        key: &str,
        labels: Labels,
    ) -> Effect {
        let snapshot = self.snapshots.get_mut(&at(snapshotter, key));
        merge(&mut snapshot.ok_or(ErrorKind::NotFound)?.labels, labels);
        Ok(())
    }

    /// Removes the snapshots that neither a container, a lease nor a blob's label holds, directly or through a
    /// child.
    pub(super) fn collect_garbage(&mut self) {
        let mut live = BTreeSet::new();
        for mut next in self.roots() {
            while let Some(parent) = self.snapshots.get(&next).map(|s| s.parent.clone()) {
                let above = parent.map(|parent| at(&next.0, &parent));
                live.insert(next);
                let Some(above) = above else { break };
                next = above;
            }
        }
        self.snapshots.retain(|key, _| live.contains(key));
        self.directories.retain(|key| live.contains(key));
        self.children.retain(|(parent, _)| live.contains(parent));
    }

    fn roots(&self) -> Vec<At> {
        let leased = self.leases.values().flat_map(|(_, held)| held);
        let leased = leased.filter_map(|(kind, id)| {
            let snapshotter = kind.strip_prefix("snapshots/")?;
            Some(at(snapshotter, id))
        });
        let labels = self.blobs.values().flat_map(|(_, labels)| labels);
        let labelled = labels.filter_map(|(key, value)| {
            let snapshotter = key.strip_prefix(GC_SNAPSHOT)?.split('/').next()?;
            Some(at(snapshotter, value))
        });
        let containers = self.containers.iter().cloned();
        containers.chain(leased).chain(labelled).collect()
    }
}

/// Adds labels or replaces their values. An empty value removes a label.
fn merge(labels: &mut Labels, more: Labels) {
    labels.extend(more);
    labels.retain(|_, value| !value.is_empty());
}
