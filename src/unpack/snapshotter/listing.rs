//! All snapshots of a snapshotter and all blobs, read with two calls: a check of many images needs no call for each
//! layer.
//!
//! A node has tens of thousands of them. The lists are read as a stream, only what a check uses is kept, and equal
//! strings and sets of labels are held once.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::SystemTime;

use crate::containerd::{self, Blob, Containerd, Labels, Snapshot, SnapshotKind};
use crate::image::{IMAGE_LAYERS, IMAGE_REF, MANIFEST_DIGEST, PROXY_MODE};
use crate::unpack::chain::profile::is_proxied;

/// The label of the snapshot of an image volume into which all layers were applied.
pub(crate) const FILLED: &str = "nri-unpack/volume";

/// The prefix of the anchor: the label on the image's config blob that keeps a chain from garbage collection. The name
/// of the snapshotter follows.
pub(crate) const ANCHOR: &str = "containerd.io/gc.ref.snapshot.";

/// The labels of snapshots whose values are kept. Of all others only the keys are.
const VALUES: [&str; 3] = [IMAGE_REF, MANIFEST_DIGEST, PROXY_MODE];

/// Whether all layers were applied into the image volume whose snapshot has these labels.
pub(crate) fn is_filled(labels: &Labels) -> bool {
    labels.contains_key(FILLED)
}

/// The snapshots of a snapshotter and the blobs of the content store, at the time of the call.
#[derive(Clone, Debug)]
pub struct Listing {
    pub(crate) snapshotter: String,
    snapshots: HashMap<Arc<str>, Listed>,
    blobs: Arc<Blobs>,
}

/// What is kept of a snapshot.
#[derive(Clone, Debug)]
pub(crate) struct Listed {
    parent: Option<Arc<str>>,
    kind: SnapshotKind,
    created_at: Option<SystemTime>,
    /// Every key, but only the values of [`VALUES`]. Of [`IMAGE_LAYERS`] only a comma is kept, if it lists more than
    /// one layer.
    pub(crate) labels: Arc<Labels>,
}

/// What is kept of the blobs of the content store.
#[derive(Debug, Default)]
struct Blobs {
    digests: HashSet<Box<str>>,
    /// The anchors of each blob that has one.
    anchors: HashMap<Box<str>, Labels>,
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
            blobs: Arc::default(),
        };
        let mut known = Known::default();
        let each = &mut |snapshot| listing.add(snapshot, &mut known);
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
        blob.labels.retain(|key, _| key.starts_with(ANCHOR));
        let digest = blob.digest.into_boxed_str();
        if !blob.labels.is_empty() {
            self.anchors.insert(digest.clone(), blob.labels);
        }
        self.digests.insert(digest);
    }
}

impl Listing {
    fn add(&mut self, snapshot: Snapshot, known: &mut Known) {
        let is_layer = snapshot.kind == SnapshotKind::Committed;
        let listed = Listed {
            parent: snapshot.parent.map(|parent| known.name(parent)),
            kind: snapshot.kind,
            created_at: snapshot.created_at,
            labels: known.labels(snapshot.labels),
        };
        let name = match is_layer {
            true => known.name(snapshot.name),
            // No other snapshot names it.
            false => snapshot.name.into(),
        };
        self.snapshots.insert(name, listed);
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
        self.snapshots.keys().map(|name| &**name)
    }

    /// Returns the keys of the active snapshots on guest-pulled layers, without image volumes into which the layers
    /// were applied.
    pub fn on_guest_layers(&self) -> impl Iterator<Item = &str> {
        let active = self.snapshots.iter();
        let active = active.filter(|(_, s)| s.kind == SnapshotKind::Active);
        let incomplete =
            active.filter(|(_, s)| !is_filled(&s.labels) && self.is_above_guest_layer(s));
        incomplete.map(|(name, _)| &**name)
    }

    /// Returns the key of an active snapshot whose parent is marked as guest-pulled.
    pub(crate) fn directly_on_guest_layer(&self) -> Option<&str> {
        let mut active = self.snapshots.iter();
        let is_on = |(_, s): &(&Arc<str>, &Listed)| {
            let parent = s.parent.as_deref().and_then(|parent| self.snapshot(parent));
            s.kind == SnapshotKind::Active && parent.is_some_and(|p| is_proxied(&p.labels))
        };
        active.find(is_on).map(|(name, _)| &**name)
    }

    /// Returns the newest layer that is marked as guest-pulled.
    pub(crate) fn newest_guest_layer(&self) -> Option<&str> {
        let marked = self.snapshots.iter().filter(|(_, s)| is_proxied(&s.labels));
        let newest = marked.max_by_key(|(_, snapshot)| snapshot.created_at);
        newest.map(|(name, _)| &**name)
    }

    fn is_above_guest_layer(&self, snapshot: &Listed) -> bool {
        let parent = |s: &&Listed| self.snapshot(s.parent.as_deref()?);
        let mut below = std::iter::successors(parent(&snapshot), parent);
        below.any(|layer| is_proxied(&layer.labels))
    }

    pub(crate) fn snapshot(&self, name: &str) -> Option<&Listed> {
        self.snapshots.get(name)
    }

    pub(crate) fn has_blob(&self, digest: &str) -> bool {
        self.blobs.digests.contains(digest)
    }

    /// Returns the anchors of a blob.
    pub(crate) fn anchors(&self, digest: &str) -> Option<&Labels> {
        self.blobs.anchors.get(digest)
    }
}

/// The strings and the sets of labels that were met in a list.
#[derive(Default)]
struct Known {
    names: HashSet<Arc<str>>,
    labels: HashSet<Arc<Labels>>,
}

impl Known {
    fn name(&mut self, name: String) -> Arc<str> {
        if let Some(known) = self.names.get(name.as_str()) {
            return known.clone();
        }
        let name: Arc<str> = name.into();
        self.names.insert(name.clone());
        name
    }

    /// The layers of one image differ only in values that are not kept.
    fn labels(&mut self, mut labels: Labels) -> Arc<Labels> {
        for (key, value) in &mut labels {
            match key.as_str() {
                IMAGE_LAYERS if value.contains(',') => *value = ",".to_owned(),
                key if VALUES.contains(&key) => {}
                _ => *value = String::new(),
            }
        }
        if let Some(known) = self.labels.get(&labels) {
            return known.clone();
        }
        let labels = Arc::new(labels);
        self.labels.insert(labels.clone());
        labels
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;
    use crate::image::{LAYER_DIGEST, SNAPSHOT_REF};

    const NYDUS: &str = "nydus";

    fn labels(layer: &str, layers: &str) -> Labels {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Labels::from([
            label(SNAPSHOT_REF, layer),
            label(LAYER_DIGEST, layer),
            label(IMAGE_LAYERS, layers),
            label(IMAGE_REF, "r.example/app:1"),
            label(PROXY_MODE, "true"),
        ])
    }

    #[tokio::test]
    async fn the_layers_of_an_image_share_their_strings() {
        let fake = Fake::default();
        fake.put(NYDUS, "a", None, labels("a", "a,b,c"));
        fake.put(NYDUS, "b", Some("a"), labels("b", "b,c"));
        fake.put(NYDUS, "c", Some("b"), labels("c", "c"));
        let listing = Lists::new(&fake).read(NYDUS).await.unwrap();
        let [a, b, c] = ["a", "b", "c"].map(|name| listing.snapshot(name).unwrap());
        assert!(Arc::ptr_eq(&a.labels, &b.labels));
        assert!(!Arc::ptr_eq(&b.labels, &c.labels));
        let names = listing.snapshots.get_key_value("b").unwrap().0;
        assert!(Arc::ptr_eq(c.parent.as_ref().unwrap(), names));

        let kept = |listed: &Listed, key: &str| listed.labels.get(key).cloned();
        assert_eq!(kept(b, IMAGE_REF).as_deref(), Some("r.example/app:1"));
        assert_eq!(kept(b, IMAGE_LAYERS).as_deref(), Some(","));
        assert_eq!(kept(c, IMAGE_LAYERS).as_deref(), Some(""));
        assert_eq!(kept(c, LAYER_DIGEST).as_deref(), Some(""));
        assert!(is_proxied(&c.labels) && listing.newest_guest_layer().is_some());
    }

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
}
