//! What one `ensure` is to make ready, and how that stands now.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::containerd::{self, Containerd, Labels, Snapshot};
use crate::image::{LayerLabels, Manifest};

use super::state::Rules;
use super::{Error, Listing, Sight};

/// Snapshots that are asked for at once: enough to hide the round trips, few enough for others.
const PARALLEL_STATS: usize = 16;

/// One image in one snapshotter.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// For messages.
    pub(super) image: String,
    pub(super) manifest: Arc<Manifest>,
    /// What a layer gets when it is unpacked or relabelled.
    pub(super) labels: LayerLabels,
    /// When it is ready.
    pub(super) rules: Rules,
    /// Chains at which other images end, where this one may have to be taken away.
    pub(super) others: HashSet<String>,
    /// A container is known to stand on it: who else does has not to be found out.
    pub(super) in_use: bool,
    /// It is still being pulled.
    pub(super) arrives: bool,
    pub(super) snapshotter: String,
}

impl Target {
    /// The label of the config blob that keeps the chain from garbage collection. A second chain of
    /// the image carries it with a suffix, `/…`.
    pub(super) fn anchor(&self) -> String {
        format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter)
    }

    /// How the chain stands now, and when its top layer was made.
    pub(super) async fn look(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<(Sight, Option<SystemTime>), Error> {
        let seen = self.see(containerd).await;
        seen.map_err(|e| self.failed(e))
    }

    /// The same from a listing, without a call.
    pub(super) fn look_in(&self, listing: &Listing) -> Sight {
        let layers = self.manifest.layers.iter();
        let snapshots = layers.map(|l| listing.snapshot(&l.chain_id).cloned());
        let config = listing.blob(&self.manifest.config);
        Sight {
            anchored: config.is_some_and(|config| self.is_anchored(&config.labels)),
            layers: without_gaps(snapshots),
        }
    }

    /// Whether the blobs of all layers that have to be unpacked were there.
    pub(super) fn has_blobs_in(&self, listing: &Listing, sight: &Sight) -> bool {
        let mut missing = self.manifest.layers.iter().skip(sight.committed());
        missing.all(|layer| listing.blob(&layer.blob.digest).is_some())
    }

    async fn see(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<(Sight, Option<SystemTime>), containerd::Error> {
        let layers = self.manifest.layers.iter();
        let stats: Vec<_> = layers.map(|l| self.stat(containerd, &l.chain_id)).collect();
        let stats = stream::iter(stats).buffered(PARALLEL_STATS);
        let config = containerd.blob(&self.manifest.config);
        let (snapshots, config) = futures::join!(stats.try_collect::<Vec<_>>(), config);
        let snapshots = snapshots?;
        let top = snapshots.last().and_then(Option::as_ref);
        let created_at = top.and_then(|snapshot| snapshot.created_at);
        let sight = Sight {
            anchored: self.is_anchored(&config?.labels),
            layers: without_gaps(snapshots),
        };
        Ok((sight, created_at))
    }

    async fn stat(
        &self,
        containerd: &dyn Containerd,
        chain_id: &str,
    ) -> Result<Option<Snapshot>, containerd::Error> {
        match containerd.stat(&self.snapshotter, chain_id).await {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn is_anchored(&self, labels: &Labels) -> bool {
        let anchor = self.anchor();
        labels.iter().any(|(key, value)| {
            let suffix = key.strip_prefix(&anchor);
            suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('/'))
                && Some(value.as_str()) == self.manifest.chain_id()
        })
    }

    /// A call failed.
    pub(super) fn failed(&self, source: containerd::Error) -> Error {
        Error::Containerd {
            image: self.image.clone(),
            snapshotter: self.snapshotter.clone(),
            source,
        }
    }

    /// The blob of this layer is gone; with what became of each means to do without.
    pub(super) fn unavailable(&self, layer: usize, tried: Vec<String>) -> Error {
        let layers = &self.manifest.layers;
        Error::Unavailable {
            image: self.image.clone(),
            digest: layers[layer].blob.digest.clone(),
            position: layer + 1,
            layers: layers.len(),
            tried,
        }
    }
}

/// The layers are asked for one by one: where somebody unpacks the chain at the same time, a lower
/// one may still have been missing when a higher one was there already.
fn without_gaps(snapshots: impl IntoIterator<Item = Option<Snapshot>>) -> Vec<Option<Labels>> {
    let mut gap = false;
    let layers = snapshots.into_iter().map(|snapshot| {
        gap |= snapshot.is_none();
        snapshot.filter(|_| !gap).map(|snapshot| snapshot.labels)
    });
    layers.collect()
}
