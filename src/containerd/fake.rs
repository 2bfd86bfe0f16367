//! containerd in memory, for what cannot be provoked on a real one: a fault in the middle of a step.
//!
//! What a call does is the [`store`]'s to know; here calls are noted, delayed, failed, or their
//! answers lost, so that a test sees what would be left behind.

mod calls;
mod directories;
mod store;
mod types;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{
    Descriptor, Error, ErrorKind, Event, Image, Labels, Mount, Resource, Result, Snapshot,
    SnapshotKind, Source,
};
pub(crate) use directories::Change;
use store::Store;
use types::{Effect, at};

/// The calls that change something.
pub(crate) const WRITES: [&str; 14] = [
    "fetch",
    "write blob",
    "write piece",
    "abort write",
    "label blob",
    "prepare snapshot",
    "view snapshot",
    "commit snapshot",
    "remove snapshot",
    "label snapshot",
    "apply layer",
    "create lease",
    "delete lease",
    "add to lease",
];

/// containerd in memory.
#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    store: Store,
    faults: Vec<Fault>,
    slow: HashMap<&'static str, Duration>,
    /// How long it takes to apply these blobs, where not as long as any other.
    apply: HashMap<String, Duration>,
    /// The stream processors that got a payload with each blob that was applied.
    payloads: Vec<Vec<String>>,
    /// Blobs that are being applied now, and the most that ever were.
    applying: (usize, usize),
    down: bool,
    /// Who wants to hear of events.
    listeners: Vec<mpsc::UnboundedSender<Event>>,
    /// Each with its subject.
    calls: Vec<(&'static str, String)>,
    /// Empty for one that is of no known version.
    version: String,
}

/// The nth call of this kind from now on fails.
#[derive(Clone)]
struct Fault {
    call: &'static str,
    after: usize,
    kind: ErrorKind,
    /// The call does its work; only the answer gets lost.
    lost: bool,
}

impl Fake {
    /// Puts a document into the content store and describes it.
    pub(crate) fn document(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = sha256(bytes);
        let blob = (bytes.to_vec(), Labels::new());
        self.state().store.blobs.insert(digest.clone(), blob);
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
        let blobs: Vec<_> = (0..layers)
            .map(|i| self.document(media_type, format!("layer {i}").as_bytes()))
            .collect();
        self.image_from(name, &blobs)
    }

    /// An image whose layers make these changes, the lowest first.
    pub(crate) fn image_with(&self, name: &str, layers: &[Vec<Change>]) -> Image {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let described = layers.iter().map(|changes| {
            let blob = self.document(media_type, format!("{changes:?}").as_bytes());
            let mut state = self.state();
            let store = &mut state.store;
            store.changes.insert(blob.digest.clone(), changes.clone());
            blob
        });
        self.image_from(name, &described.collect::<Vec<_>>())
    }

    pub(crate) fn image_from(&self, name: &str, blobs: &[Descriptor]) -> Image {
        let described = blobs.iter().map(|blob| {
            let diff_id = sha256(format!("what is in {}", blob.digest).as_bytes());
            let mut state = self.state();
            let diff_ids = &mut state.store.diff_ids;
            diff_ids.insert(blob.digest.clone(), diff_id.clone());
            (blob, diff_id)
        });
        let described: Vec<_> = described.collect();
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
            created_at: None,
        };
        let mut state = self.state();
        state.store.images.insert(name.to_owned(), image.clone());
        drop(state);
        image
    }

    /// Puts labels on an image's record.
    pub(crate) fn label_image(&self, image: &Image, labels: Labels) {
        let mut state = self.state();
        let record = state.store.images.get_mut(&image.name).unwrap();
        record.labels.extend(labels);
    }

    /// An image's record was made so many seconds after the first that could be.
    pub(crate) fn came(&self, image: &Image, after: u64) {
        let mut state = self.state();
        let record = state.store.images.get_mut(&image.name).unwrap();
        record.created_at = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(after));
    }

    /// Changes what a blob's bytes are, against its digest.
    pub(crate) fn corrupt(&self, digest: &str, bytes: &[u8]) {
        self.state().store.blobs.get_mut(digest).unwrap().0 = bytes.to_vec();
    }

    /// Makes `apply` answer another digest for a blob.
    pub(crate) fn applies_as(&self, blob: &str, diff_id: &str) {
        self.state()
            .store
            .diff_ids
            .insert(blob.to_owned(), diff_id.to_owned());
    }

    /// Takes a blob away, as `discard_unpacked_layers` does.
    pub(crate) fn discard(&self, digest: &str) {
        self.state().store.blobs.remove(digest).unwrap();
    }

    /// Removes the record of an image that has no other name, and has its documents collected.
    pub(crate) fn remove_image(&self, image: &Image) {
        let mut state = self.state();
        let store = &mut state.store;
        store.images.remove(&image.name).unwrap();
        let (manifest, _) = store.blobs.remove(&image.target.digest).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        store.blobs.remove(config).unwrap();
        store.collect_garbage();
    }

    /// The digests of an image's manifest and config.
    pub(crate) fn documents_of(&self, image: &Image) -> [String; 2] {
        let manifest = self.state().store.blobs[&image.target.digest].0.clone();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        [image.target.digest.clone(), config.to_owned()]
    }

    /// Takes a name away; what it stood for stays.
    pub(crate) fn untag(&self, name: &str) {
        self.state().store.images.remove(name).unwrap();
    }

    /// From now on the call number `after` (0 is the next) of this name fails.
    pub(crate) fn fail(&self, call: &'static str, after: usize, kind: ErrorKind) {
        self.fault(call, after, kind, false);
    }

    /// From now on the call number `after` of this name does its work, and its answer gets lost.
    pub(crate) fn lose(&self, call: &'static str, after: usize) {
        self.fault(call, after, ErrorKind::TimedOut, true);
    }

    fn fault(&self, call: &'static str, after: usize, kind: ErrorKind, lost: bool) {
        self.state().faults.push(Fault {
            call,
            after,
            kind,
            lost,
        });
    }

    /// From now on nothing fails.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.down = false;
    }

    /// From now on nobody answers.
    pub(crate) fn go_down(&self) {
        self.state().down = true;
    }

    /// From now on calls of this name take so long.
    pub(crate) fn slow(&self, call: &'static str, time: Duration) {
        self.state().slow.insert(call, time);
    }

    /// From now on it takes so long to apply this blob.
    pub(crate) fn applies_in(&self, blob: &str, time: Duration) {
        self.state().apply.insert(blob.to_owned(), time);
    }

    /// The stream processors that got a payload with each blob that was applied, since the last time this was
    /// asked.
    pub(crate) fn payloads(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.state().payloads)
    }

    /// The most blobs that were being applied at the same time.
    pub(crate) fn most_applied_at_once(&self) -> usize {
        self.state().applying.1
    }

    /// It is containerd of this version.
    pub(crate) fn is_version(&self, version: &str) {
        version.clone_into(&mut self.state().version);
    }

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

    /// A registry has what is here now, and this version of containerd may be told to ask it.
    pub(crate) fn publish(&self, version: &str) {
        let mut state = self.state();
        version.clone_into(&mut state.version);
        state.store.publish();
    }

    /// The registry does not have a blob any more.
    pub(crate) fn unpublish(&self, digest: &str) {
        self.state().store.published.remove(digest).unwrap();
    }

    /// From where blobs were fetched.
    pub(crate) fn fetched(&self) -> Vec<Source> {
        self.state().store.fetched.clone()
    }

    /// What was begun to be written and neither finished nor aborted.
    pub(crate) fn ingests(&self) -> Vec<String> {
        self.state().store.ingests.keys().cloned().collect()
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

    /// Something happened, and whoever listens hears it; nobody does after a restart.
    pub(crate) fn emit(&self, event: &Event) {
        let mut state = self.state();
        state.listeners.retain(|l| l.send(event.clone()).is_ok());
    }

    /// Every subscription ends.
    pub(crate) fn hang_up(&self) {
        self.state().listeners.clear();
    }

    /// The names of the calls since the last time this was asked.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state().calls);
        calls.into_iter().map(|(call, _)| call.to_owned()).collect()
    }

    /// What the calls of this name were about, in their order, since calls were last asked for.
    pub(crate) fn subjects(&self, call: &str) -> Vec<String> {
        let state = self.state();
        let of = state.calls.iter().filter(|(name, _)| *name == call);
        of.map(|(_, subject)| subject.clone()).collect()
    }

    /// Whether any of these calls changes something.
    pub(crate) fn writes(calls: &[String]) -> bool {
        calls.iter().any(|call| WRITES.contains(&call.as_str()))
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

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// One call: noted, and failed where a test wants it to.
    async fn call<T>(
        &self,
        call: &'static str,
        subject: &str,
        effect: impl FnOnce(&mut Store) -> Effect<T> + Send,
    ) -> Result<T> {
        let slow = self.state().slow.get(call).copied();
        if let Some(time) = slow {
            tokio::time::sleep(time).await;
        }
        let mut state = self.state();
        state.calls.push((call, subject.to_owned()));
        let effect = match state.fault(call) {
            _ if state.down => Err(ErrorKind::Unreachable),
            None => effect(&mut state.store),
            Some(fault) => {
                if fault.lost {
                    let _ = effect(&mut state.store);
                }
                Err(fault.kind)
            }
        };
        effect.map_err(|kind| Error {
            kind,
            call,
            subject: subject.to_owned(),
            message: format!("{kind:?}"),
        })
    }
}

impl State {
    /// The fault that this call meets; every other one comes nearer.
    fn fault(&mut self, call: &'static str) -> Option<Fault> {
        let mut met = None;
        self.faults.retain_mut(|fault| {
            if fault.call != call || met.is_some() {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            met = Some(fault.clone());
            false
        });
        met
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
