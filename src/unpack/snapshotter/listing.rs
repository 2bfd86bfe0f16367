//! All snapshots of a snapshotter and all blobs, read with two calls: a check of many images needs no call for each
//! layer.
//!
//! A node has tens of thousands of them. The lists are read as a stream, and only what a check uses is kept.

mod kept;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use tokio::sync::OnceCell;

use crate::containerd::{self, Blob, Containerd, Labels, Snapshot, SnapshotKind};
use crate::image::{Digest, MAX_LAYERS};
use crate::unpack::chain::profile::is_proxied;
use kept::{KeptLabels, LabelPool};

/// The label of the snapshot of an image volume into which all layers were applied.
pub(crate) const FILLED: &str = "nri-unpack/volume";

/// The prefix of the anchor: the label on the image's config blob that keeps a chain from garbage collection. The name
/// of the snapshotter follows.
pub(crate) const ANCHOR: &str = "containerd.io/gc.ref.snapshot.";

/// Whether a label of a config blob keeps a chain of its image in this snapshotter. An image may have several.
pub(crate) fn is_anchor(key: &str, snapshotter: &str) -> bool {
    let key = key.strip_prefix(ANCHOR);
    let suffix = key.and_then(|key| key.strip_prefix(snapshotter));
    suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('/'))
}

/// The suffix of the anchor of a lost image.
const LOSS: &str = "/nri-unpack-kept";

/// Returns the key of the anchor of an image that the snapshotter has lost: of the layers that are left, or [`NOTHING_LEFT`].
/// It is there from the removal of the lost records until the image is anchored again, or a reconcile finds it ready.
pub(crate) fn loss_anchor(snapshotter: &str) -> String {
    format!("{ANCHOR}{snapshotter}{LOSS}")
}

/// The value of that anchor if no layer is left. No snapshot has this name, and garbage collection ignores it.
pub(crate) const NOTHING_LEFT: &str = "nothing";

/// The prefix of the label of a config blob that shows whether a container has used the image in a snapshotter. The name
/// of the snapshotter follows.
pub(crate) const USAGE: &str = "nri-unpack/usage.";

/// The prefix of this program's own labels, on blobs and on snapshots.
pub(crate) const OWN_LABELS: &str = "nri-unpack/";

/// The beginning of the suffixes of the anchors that only this program sets. The anchor of an image's own chain has no
/// suffix, and is the same as containerd's.
pub(crate) const OWN_ANCHORS: &str = "/nri-unpack";

/// Whether all layers were applied into the image volume whose snapshot has these labels.
pub(crate) fn is_filled(labels: &Labels) -> bool {
    labels.contains_key(FILLED)
}

/// The snapshots of a snapshotter and the blobs of the content store, at the time of the call.
#[derive(Debug)]
pub struct Listing {
    pub(crate) snapshotter: String,
    snapshots: HashMap<Digest, Listed>,
    labels: LabelPool,
    blobs: Arc<Blobs>,
    newest_guest_layer: Option<(Option<SystemTime>, Digest)>,
    /// Whether the snapshots show that the guest pulls images: it is found out once for all images.
    pub(crate) seems_to_pull: OnceCell<bool>,
}

/// What is kept of a snapshot.
#[derive(Debug)]
struct Listed {
    parent: Option<Digest>,
    kind: SnapshotKind,
    is_filled: bool,
    labels: KeptLabels,
}

/// What is kept of the blobs of the content store.
#[derive(Debug, Default)]
struct Blobs {
    digests: HashSet<Digest>,
    /// The anchors of each blob that has one, and the labels of its usage.
    anchors: HashMap<Digest, Labels>,
}

/// Reads the listings of several snapshotters. All of them share one list of blobs, which is read with the first.
pub struct Lists<'a> {
    containerd: &'a dyn Containerd,
    blobs: Option<Arc<Blobs>>,
}

impl<'a> Lists<'a> {
    pub(crate) fn new(containerd: &'a dyn Containerd) -> Self {
        Self {
            containerd,
            blobs: None,
        }
    }

    /// Reads all snapshots of a snapshotter.
    pub async fn read(&mut self, snapshotter: &str) -> Result<Listing, containerd::Error> {
        let containerd = self.containerd;
        let mut listing = Listing {
            snapshotter: snapshotter.to_owned(),
            snapshots: HashMap::new(),
            labels: LabelPool::default(),
            blobs: Arc::default(),
            newest_guest_layer: None,
            seems_to_pull: OnceCell::new(),
        };
        let each = &mut |snapshot| listing.add(snapshot);
        let blobs = async {
            match &self.blobs {
                Some(blobs) => Ok(blobs.clone()),
                None => Blobs::read(containerd).await.map(Arc::new),
            }
        };
        let snapshots = containerd.snapshots(snapshotter, each);
        let ((), blobs) = futures::try_join!(snapshots, blobs)?;
        self.blobs = Some(blobs.clone());
        listing.blobs = blobs;
        listing.labels.complete();
        Ok(listing)
    }
}

impl Blobs {
    async fn read(containerd: &dyn Containerd) -> Result<Self, containerd::Error> {
        let mut blobs = Self::default();
        containerd.blobs(&mut |blob| blobs.add(blob)).await?;
        Ok(blobs)
    }

    fn add(&mut self, mut blob: Blob) {
        let is_anchored = blob.labels.keys().any(|key| key.starts_with(ANCHOR));
        blob.labels
            .retain(|key, _| key.starts_with(ANCHOR) || key.starts_with(USAGE));
        let digest = Digest::of(&blob.digest);
        if is_anchored {
            self.anchors.insert(digest.clone(), blob.labels);
        }
        self.digests.insert(digest);
    }
}

impl Listing {
    fn add(&mut self, snapshot: Snapshot) {
        let name = Digest::of(&snapshot.name);
        if is_proxied(&snapshot.labels) {
            let newest = (snapshot.created_at, name.clone());
            self.newest_guest_layer = self.newest_guest_layer.take().max(Some(newest));
        }
        let listed = Listed {
            parent: snapshot.parent.as_deref().map(Digest::of),
            kind: snapshot.kind,
            is_filled: is_filled(&snapshot.labels),
            labels: self.labels.keep(snapshot.labels),
        };
        self.snapshots.insert(name, listed);
    }

    /// Returns the name of the snapshotter.
    pub fn name(&self) -> &str {
        &self.snapshotter
    }

    /// Returns the number of snapshots, including those of containers.
    pub fn len(&self) -> usize {
        self.snapshots.len()
    }

    /// Whether there is no snapshot.
    pub fn is_empty(&self) -> bool {
        self.snapshots.is_empty()
    }

    /// Returns the keys of the snapshots that are not named by a chain id.
    pub fn other_names(&self) -> impl Iterator<Item = &str> {
        self.snapshots.keys().filter_map(Digest::other)
    }

    /// Whether there is a snapshot of this name.
    pub fn has(&self, name: &str) -> bool {
        self.snapshots.contains_key(&Digest::of(name))
    }

    /// Returns what a check uses of the labels of a snapshot: every key, but only the values that
    /// [`KeptLabels`] has; `None` if there is no such snapshot.
    pub(crate) fn labels(&self, name: &str) -> Option<Labels> {
        let listed = self.snapshots.get(&Digest::of(name))?;
        Some(self.labels.labels(&listed.labels))
    }

    /// Returns the keys of the active snapshots on guest-pulled layers, without image volumes into which the layers
    /// were applied.
    pub fn on_guest_layers(&self) -> impl Iterator<Item = &str> {
        let all = self.snapshots.iter();
        let active = all.filter(|(_, s)| s.kind == SnapshotKind::Active);
        let incomplete = active.filter(|(_, s)| !s.is_filled && self.is_above_guest_layer(s));
        incomplete.filter_map(|(name, _)| name.other())
    }

    /// Returns the keys of the active snapshots whose parent is marked as guest-pulled.
    pub(crate) fn directly_on_guest_layers(&self) -> impl Iterator<Item = String> {
        let active = self.snapshots.iter();
        let is_on = move |(_, s): &(&Digest, &Listed)| {
            let parent = s.parent.as_ref().and_then(|it| self.snapshots.get(it));
            s.kind == SnapshotKind::Active && parent.is_some_and(|it| it.labels.is_proxied())
        };
        active.filter(is_on).map(|(name, _)| name.text())
    }

    /// Returns the newest layer that is marked as guest-pulled.
    pub(crate) fn newest_guest_layer(&self) -> Option<String> {
        self.newest_guest_layer
            .as_ref()
            .map(|(_, name)| name.text())
    }

    fn is_above_guest_layer(&self, snapshot: &Listed) -> bool {
        let parent = |s: &&Listed| self.snapshots.get(s.parent.as_ref()?);
        let mut below = std::iter::successors(parent(&snapshot), parent).take(MAX_LAYERS);
        below.any(|layer| layer.labels.is_proxied())
    }

    pub(crate) fn has_blob(&self, digest: &str) -> bool {
        self.blobs.digests.contains(&Digest::of(digest))
    }

    /// Whether an image is unpacked in the snapshotter.
    pub(crate) fn has_anchors(&self) -> bool {
        let mut keys = self.blobs.anchors.values().flat_map(Labels::keys);
        keys.any(|key| is_anchor(key, &self.snapshotter))
    }

    /// Whether an image has the mark of a loss.
    pub(crate) fn has_loss(&self) -> bool {
        let key = loss_anchor(&self.snapshotter);
        let mut anchors = self.blobs.anchors.values();
        anchors.any(|anchors| anchors.contains_key(&key))
    }

    /// Returns the anchors of a blob, and the labels of its usage.
    pub(crate) fn anchors(&self, digest: &str) -> Option<&Labels> {
        self.blobs.anchors.get(&Digest::of(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;

    const NYDUS: &str = "nydus";

    #[tokio::test]
    async fn listings_of_several_snapshotters_share_the_blobs() {
        let fake = Fake::default();
        let image = fake.image("r.example/app:1", 2);
        let mut lists = Lists::new(&fake);
        let nydus = lists.read(NYDUS).await.unwrap();
        let native = lists.read("native").await.unwrap();
        assert!(Arc::ptr_eq(&nydus.blobs, &native.blobs));
        assert!(native.has_blob(&image.target.digest));
        assert!(native.newest_guest_layer().is_none());
        let calls = ["list snapshots of", "list", "list snapshots of"];
        assert_eq!(fake.calls(), calls);
    }

    #[tokio::test]
    async fn snapshots_are_found_by_their_names() {
        let fake = Fake::default();
        let chain = format!("sha256:{}", "0a".repeat(32));
        let label = |key: &str, value: &str| Labels::from([(key.to_owned(), value.to_owned())]);
        fake.put(NYDUS, &chain, None, label("a", "b"));
        fake.put(NYDUS, "private", Some(&chain), Labels::new());
        let listing = Lists::new(&fake).read(NYDUS).await.unwrap();
        assert!(listing.has(&chain) && listing.has("private") && !listing.has("sha256:0"));
        assert_eq!(listing.len(), 2);
        assert_eq!(listing.other_names().collect::<Vec<_>>(), ["private"]);
        assert_eq!(listing.labels(&chain), Some(label("a", "")));
        assert_eq!(listing.labels("private"), Some(Labels::new()));
        assert_eq!(listing.labels("sha256:0"), None);
    }
}
