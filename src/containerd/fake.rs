//! containerd in memory, for what cannot be provoked on a real one: a fault in the middle of a step.
//!
//! It keeps the rules of the real metadata store that the unpack stands on (parents exist, names
//! are taken once, parents of others stay, leases and labels hold, the rest is collected), so that
//! a test sees what would be left behind.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use sha2::{Digest, Sha256};

use super::{
    Blob, Containerd, Descriptor, Error, ErrorKind, Event, Image, Labels, Lease, Mount, Piece,
    Resource, Result, Snapshot, SnapshotKind, Snapshotter,
};

/// containerd in memory.
#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    images: BTreeMap<String, Image>,
    blobs: BTreeMap<String, (Vec<u8>, Labels)>,
    /// What `apply` answers for a blob.
    diff_ids: HashMap<String, String>,
    /// What was written of blobs that are not finished.
    ingests: BTreeMap<String, Vec<u8>>,
    snapshots: BTreeMap<(String, String), Snapshot>,
    /// What a view of a snapshot mounts, and the inodes that the snapshot itself holds.
    views: HashMap<(String, String), (Vec<Mount>, u64)>,
    leases: BTreeMap<String, (Labels, BTreeSet<(String, String)>)>,
    faults: Vec<Fault>,
    calls: Vec<String>,
    made: u64,
}

/// The nth call of this kind from now on fails.
struct Fault {
    call: &'static str,
    after: usize,
    kind: ErrorKind,
}

impl Fake {
    /// Puts a document into the content store and describes it.
    pub(crate) fn document(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = sha256(bytes);
        let mut state = self.state();
        state
            .blobs
            .insert(digest.clone(), (bytes.to_vec(), Labels::new()));
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len().try_into().unwrap(),
            annotations: HashMap::new(),
        }
    }

    /// An image of `layers` layers, each a blob of its own; answers its record.
    pub(crate) fn image(&self, name: &str, layers: usize) -> Image {
        self.image_of(name, "application/vnd.oci.image.layer.v1.tar+gzip", layers)
    }

    /// An image whose layers have this media type.
    pub(crate) fn image_of(&self, name: &str, media_type: &str, layers: usize) -> Image {
        let described: Vec<_> = (0..layers)
            .map(|i| {
                let blob = self.document(media_type, format!("layer {i}").as_bytes());
                let diff_id = sha256(format!("diff {i}").as_bytes());
                self.state()
                    .diff_ids
                    .insert(blob.digest.clone(), diff_id.clone());
                (blob, diff_id)
            })
            .collect();
        let diff_ids: Vec<_> = described.iter().map(|(_, diff_id)| diff_id).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "name": name,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let media_type = "application/vnd.oci.image.config.v1+json";
        let config = self.document(media_type, config.to_string().as_bytes());
        let blobs: Vec<_> = described.iter().map(|(blob, _)| json(blob)).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type, "config": json(&config), "layers": blobs,
        });
        let target = self.document(media_type, manifest.to_string().as_bytes());
        self.tag(name, target)
    }

    /// Gives a target a name in the image store.
    pub(crate) fn tag(&self, name: &str, target: Descriptor) -> Image {
        let image = Image {
            name: name.to_owned(),
            target,
            labels: Labels::new(),
        };
        self.state().images.insert(name.to_owned(), image.clone());
        image
    }

    /// Changes what a blob's bytes are, against its digest.
    pub(crate) fn corrupt(&self, digest: &str, bytes: &[u8]) {
        self.state().blobs.get_mut(digest).unwrap().0 = bytes.to_vec();
    }

    /// Makes `apply` answer another digest for a blob.
    pub(crate) fn applies_as(&self, blob: &str, diff_id: &str) {
        self.state()
            .diff_ids
            .insert(blob.to_owned(), diff_id.to_owned());
    }

    /// Takes a blob away, as `discard_unpacked_layers` does.
    pub(crate) fn discard(&self, digest: &str) {
        self.state().blobs.remove(digest).unwrap();
    }

    /// From now on the call number `after` (0 is the next) of this name fails.
    pub(crate) fn fail(&self, call: &'static str, after: usize, kind: ErrorKind) {
        self.state().faults.push(Fault { call, after, kind });
    }

    /// From now on nothing fails.
    pub(crate) fn heal(&self) {
        self.state().faults.clear();
    }

    /// A snapshot that somebody else made: committed without any label.
    pub(crate) fn commit_unlabelled(&self, snapshotter: &str, name: &str, parent: Option<&str>) {
        let labels = Labels::new();
        let kind = SnapshotKind::Committed;
        self.state().add(snapshotter, name, parent, kind, labels);
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
        let at = (snapshotter.to_owned(), name.to_owned());
        self.state().views.insert(at, (vec![mount], inodes));
    }

    /// A snapshot is not there any more.
    pub(crate) fn forget(&self, snapshotter: &str, name: &str) {
        let at = (snapshotter.to_owned(), name.to_owned());
        self.state().snapshots.remove(&at).unwrap();
        self.state().views.remove(&at);
    }

    /// What was begun to be written and neither finished nor aborted.
    pub(crate) fn ingests(&self) -> Vec<String> {
        self.state().ingests.keys().cloned().collect()
    }

    /// A container's own snapshot.
    pub(crate) fn activate(&self, snapshotter: &str, key: &str, parent: &str) {
        let labels = Labels::new();
        let kind = SnapshotKind::Active;
        self.state()
            .add(snapshotter, key, Some(parent), kind, labels);
    }

    /// The names of the calls since the last time this was asked.
    pub(crate) fn calls(&self) -> Vec<String> {
        std::mem::take(&mut self.state().calls)
    }

    /// What is in a snapshotter.
    pub(crate) fn all(&self, snapshotter: &str) -> Vec<Snapshot> {
        let state = self.state();
        let of = |(key, snapshot): (&(String, String), &Snapshot)| {
            (key.0 == snapshotter).then(|| snapshot.clone())
        };
        state.snapshots.iter().filter_map(of).collect()
    }

    /// The ids of all leases.
    pub(crate) fn lease_ids(&self) -> Vec<String> {
        self.state().leases.keys().cloned().collect()
    }

    /// A lease of somebody.
    pub(crate) fn lease(&self, id: &str, labels: Labels, held: &[Resource]) {
        let held = held
            .iter()
            .map(|r| (r.kind.clone(), r.id.clone()))
            .collect();
        self.state().leases.insert(id.to_owned(), (labels, held));
    }

    /// Collects the snapshots that neither a lease nor a blob's label nor a child holds. Blobs stay.
    pub(crate) fn collect_garbage(&self) {
        let mut state = self.state();
        let mut held: BTreeSet<(String, String)> = BTreeSet::new();
        for (_, resources) in state.leases.values() {
            let snapshots = resources.iter().filter_map(|(kind, id)| {
                let snapshotter = kind.strip_prefix("snapshots/")?;
                Some((snapshotter.to_owned(), id.clone()))
            });
            held.extend(snapshots);
        }
        for (_, labels) in state.blobs.values() {
            held.extend(labels.iter().filter_map(|(key, value)| {
                let snapshotter = key.strip_prefix("containerd.io/gc.ref.snapshot.")?;
                Some((snapshotter.to_owned(), value.clone()))
            }));
        }
        // Active snapshots of containers are held by their containers.
        let active = state
            .snapshots
            .iter()
            .filter(|(key, s)| s.kind == SnapshotKind::Active && !key.1.starts_with("extract-"));
        held.extend(active.map(|(key, _)| key.clone()));
        let mut live = BTreeSet::new();
        for (snapshotter, key) in held {
            let mut next = Some(key);
            while let Some(key) = next {
                let at = (snapshotter.clone(), key);
                next = state.snapshots.get(&at).and_then(|s| s.parent.clone());
                live.insert(at);
            }
        }
        state.snapshots.retain(|key, _| live.contains(key));
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Notes the call and fails it where a test wants it to.
    fn enter(&self, call: &'static str, subject: &str) -> Result<MutexGuard<'_, State>> {
        let mut state = self.state();
        state.calls.push(call.to_owned());
        let mut failed = None;
        state.faults.retain_mut(|fault| {
            if fault.call != call || failed.is_some() {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            failed = Some(fault.kind);
            false
        });
        match failed {
            Some(kind) => Err(error(kind, call, subject)),
            None => Ok(state),
        }
    }
}

impl State {
    fn add(
        &mut self,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        kind: SnapshotKind,
        labels: Labels,
    ) {
        self.made += 1;
        let at = (snapshotter.to_owned(), key.to_owned());
        let snapshot = Snapshot {
            name: key.to_owned(),
            parent: parent.map(str::to_owned),
            kind,
            created_at: Some(SystemTime::UNIX_EPOCH + Duration::from_secs(self.made)),
            labels,
        };
        self.snapshots.insert(at, snapshot);
    }

    fn lease_snapshot(&mut self, lease: &str, snapshotter: &str, key: &str) -> Result<()> {
        self.hold(lease, Resource::snapshot(snapshotter, key))
    }

    fn hold(&mut self, lease: &str, resource: Resource) -> Result<()> {
        let held = self.leases.get_mut(lease);
        let (_, held) = held.ok_or_else(|| error(ErrorKind::NotFound, "use lease", lease))?;
        held.insert((resource.kind, resource.id));
        Ok(())
    }
}

fn error(kind: ErrorKind, call: &'static str, subject: &str) -> Error {
    Error {
        kind,
        call,
        subject: subject.to_owned(),
        message: format!("{kind:?}"),
    }
}

fn json(d: &Descriptor) -> serde_json::Value {
    serde_json::json!({"mediaType": d.media_type, "digest": d.digest, "size": d.size})
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<String>();
    format!("sha256:{hex}")
}

#[async_trait]
impl Containerd for Fake {
    async fn image(&self, name: &str) -> Result<Image> {
        let call = "get image";
        let state = self.enter(call, name)?;
        let image = state.images.get(name).cloned();
        image.ok_or_else(|| error(ErrorKind::NotFound, call, name))
    }

    async fn images(&self) -> Result<Vec<Image>> {
        Ok(self
            .enter("list images", "")?
            .images
            .values()
            .cloned()
            .collect())
    }

    async fn blob(&self, digest: &str) -> Result<Blob> {
        let call = "look up blob";
        let state = self.enter(call, digest)?;
        let blob = state.blobs.get(digest).map(|(bytes, labels)| Blob {
            digest: digest.to_owned(),
            size: bytes.len() as u64,
            labels: labels.clone(),
        });
        blob.ok_or_else(|| error(ErrorKind::NotFound, call, digest))
    }

    async fn read(&self, digest: &str, _limit: u64) -> Result<Vec<u8>> {
        let call = "read blob";
        let state = self.enter(call, digest)?;
        let blob = state.blobs.get(digest).map(|(bytes, _)| bytes.clone());
        blob.ok_or_else(|| error(ErrorKind::NotFound, call, digest))
    }

    async fn write_blob(
        &self,
        lease: &str,
        reference: &str,
        mut pieces: BoxStream<'static, Piece>,
    ) -> Result<()> {
        let call = "write blob";
        {
            let mut state = self.enter(call, reference)?;
            state.ingests.insert(reference.to_owned(), vec![]);
        }
        while let Some(piece) = pieces.next().await {
            // A fault in the middle: the pieces are not asked for any more.
            let mut state = self.enter("write piece", reference)?;
            let (digest, size) = match piece {
                Piece::Data(data) => {
                    state.ingests.get_mut(reference).unwrap().extend(data);
                    continue;
                }
                Piece::End { digest, size } => (digest, size),
            };
            let bytes = state.ingests.remove(reference).unwrap();
            assert_eq!((sha256(&bytes), bytes.len() as u64), (digest.clone(), size));
            if state.blobs.contains_key(&digest) {
                return Err(error(ErrorKind::AlreadyExists, call, reference));
            }
            state.hold(lease, Resource::blob(&digest))?;
            state.blobs.insert(digest, (bytes, Labels::new()));
            return Ok(());
        }
        Err(error(ErrorKind::Other, call, reference))
    }

    async fn abort_write(&self, reference: &str) -> Result<()> {
        let call = "abort write";
        let removed = self.enter(call, reference)?.ingests.remove(reference);
        removed
            .map(drop)
            .ok_or_else(|| error(ErrorKind::NotFound, call, reference))
    }

    async fn label_blob(&self, digest: &str, labels: Labels) -> Result<()> {
        let call = "label blob";
        let mut state = self.enter(call, digest)?;
        let blob = state.blobs.get_mut(digest);
        let (_, there) = blob.ok_or_else(|| error(ErrorKind::NotFound, call, digest))?;
        there.extend(labels);
        there.retain(|_, value| !value.is_empty());
        Ok(())
    }

    async fn stat(&self, snapshotter: &str, key: &str) -> Result<Snapshot> {
        let call = "stat snapshot";
        let state = self.enter(call, key)?;
        let at = (snapshotter.to_owned(), key.to_owned());
        let snapshot = state.snapshots.get(&at).cloned();
        snapshot.ok_or_else(|| error(ErrorKind::NotFound, call, key))
    }

    async fn snapshots(&self, snapshotter: &str) -> Result<Vec<Snapshot>> {
        drop(self.enter("list snapshots of", snapshotter)?);
        Ok(self.all(snapshotter))
    }

    async fn prepare(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let call = "prepare snapshot";
        let mut state = self.enter(call, key)?;
        let at = |name: &str| (snapshotter.to_owned(), name.to_owned());
        if let Some(target) = labels.get("containerd.io/snapshot.ref")
            && state.snapshots.contains_key(&at(target))
        {
            state.lease_snapshot(lease, snapshotter, target)?;
            return Err(error(ErrorKind::AlreadyExists, call, target));
        }
        if parent.is_some_and(|parent| !state.snapshots.contains_key(&at(parent))) {
            return Err(error(ErrorKind::NotFound, call, parent.unwrap()));
        }
        if state.snapshots.contains_key(&at(key)) {
            return Err(error(ErrorKind::AlreadyExists, call, key));
        }
        state.lease_snapshot(lease, snapshotter, key)?;
        state.add(snapshotter, key, parent, SnapshotKind::Active, labels);
        Ok(vec![Mount::default()])
    }

    async fn view(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>> {
        let call = "view snapshot";
        let mut state = self.enter(call, parent)?;
        let at = |name: &str| (snapshotter.to_owned(), name.to_owned());
        if state.snapshots.contains_key(&at(key)) {
            return Err(error(ErrorKind::AlreadyExists, call, key));
        }
        let mounts = state
            .views
            .get(&at(parent))
            .map(|(mounts, _)| mounts.clone());
        let mounts = mounts.ok_or_else(|| error(ErrorKind::NotFound, call, parent))?;
        state.lease_snapshot(lease, snapshotter, key)?;
        let kind = SnapshotKind::View;
        state.add(snapshotter, key, Some(parent), kind, Labels::new());
        Ok(mounts)
    }

    async fn inodes(&self, snapshotter: &str, key: &str) -> Result<u64> {
        let call = "ask usage of snapshot";
        let state = self.enter(call, key)?;
        let view = state.views.get(&(snapshotter.to_owned(), key.to_owned()));
        view.map(|(_, inodes)| *inodes)
            .ok_or_else(|| error(ErrorKind::NotFound, call, key))
    }

    async fn commit(
        &self,
        lease: &str,
        snapshotter: &str,
        name: &str,
        key: &str,
        labels: Labels,
    ) -> Result<()> {
        let call = "commit snapshot";
        let mut state = self.enter(call, name)?;
        let at = |name: &str| (snapshotter.to_owned(), name.to_owned());
        if state.snapshots.contains_key(&at(name)) {
            return Err(error(ErrorKind::AlreadyExists, call, name));
        }
        let active = state.snapshots.remove(&at(key));
        let active = active.ok_or_else(|| error(ErrorKind::NotFound, call, key))?;
        let parent = active.parent.as_deref();
        state.add(snapshotter, name, parent, SnapshotKind::Committed, labels);
        state.lease_snapshot(lease, snapshotter, name)
    }

    async fn remove(&self, snapshotter: &str, key: &str) -> Result<()> {
        let call = "remove snapshot";
        let mut state = self.enter(call, key)?;
        let is_child = |(at, s): (&(String, String), &Snapshot)| {
            at.0 == snapshotter && s.parent.as_deref() == Some(key)
        };
        if state.snapshots.iter().any(is_child) {
            return Err(error(ErrorKind::FailedPrecondition, call, key));
        }
        let removed = state
            .snapshots
            .remove(&(snapshotter.to_owned(), key.to_owned()));
        removed
            .map(drop)
            .ok_or_else(|| error(ErrorKind::NotFound, call, key))
    }

    async fn label_snapshot(&self, snapshotter: &str, key: &str, labels: Labels) -> Result<()> {
        let call = "label snapshot";
        let mut state = self.enter(call, key)?;
        let at = (snapshotter.to_owned(), key.to_owned());
        let snapshot = state.snapshots.get_mut(&at);
        let snapshot = snapshot.ok_or_else(|| error(ErrorKind::NotFound, call, key))?;
        snapshot.labels.extend(labels);
        Ok(())
    }

    async fn apply(&self, layer: &Descriptor, _mounts: Vec<Mount>) -> Result<String> {
        let call = "apply layer";
        // Real work takes a moment, in which others get their turn.
        tokio::time::sleep(Duration::from_millis(2)).await;
        let state = self.enter(call, &layer.digest)?;
        if !state.blobs.contains_key(&layer.digest) {
            return Err(error(ErrorKind::NotFound, call, &layer.digest));
        }
        // A blob without a diff id of its own is a plain tar.
        let diff_id = state.diff_ids.get(&layer.digest);
        Ok(diff_id.unwrap_or(&layer.digest).clone())
    }

    async fn create_lease(&self, id: &str, labels: Labels) -> Result<()> {
        let mut state = self.enter("create lease", id)?;
        state
            .leases
            .insert(id.to_owned(), (labels, BTreeSet::new()));
        Ok(())
    }

    async fn delete_lease(&self, id: &str, _sync: bool) -> Result<()> {
        let call = "delete lease";
        let removed = self.enter(call, id)?.leases.remove(id);
        removed
            .map(drop)
            .ok_or_else(|| error(ErrorKind::NotFound, call, id))
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        let state = self.enter("list leases", "")?;
        let lease = |(id, (labels, _)): (&String, &(Labels, _))| Lease {
            id: id.clone(),
            labels: labels.clone(),
        };
        Ok(state.leases.iter().map(lease).collect())
    }

    async fn lease_resources(&self, id: &str) -> Result<Vec<Resource>> {
        let call = "list resources of lease";
        let state = self.enter(call, id)?;
        let (_, held) = state
            .leases
            .get(id)
            .ok_or_else(|| error(ErrorKind::NotFound, call, id))?;
        let resource = |(kind, id): &(String, String)| Resource {
            kind: kind.clone(),
            id: id.clone(),
        };
        Ok(held.iter().map(resource).collect())
    }

    async fn hold(&self, lease: &str, resource: Resource) -> Result<()> {
        self.enter("add to lease", lease)?.hold(lease, resource)
    }

    async fn events(&self, _filters: &[&str]) -> Result<BoxStream<'static, Result<Event>>> {
        Ok(stream::empty().boxed())
    }

    async fn snapshotters(&self) -> Result<Vec<Snapshotter>> {
        Ok(vec![])
    }

    async fn version(&self) -> Result<String> {
        Ok("fake".to_owned())
    }

    async fn cri_config(&self) -> Result<Option<String>> {
        Ok(None)
    }
}
