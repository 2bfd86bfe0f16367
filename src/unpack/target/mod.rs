//! What one `ensure` is to make ready, and how that stands now.

pub(crate) mod content_needs;
pub(crate) mod find;
pub(crate) mod gc_protect;
pub(crate) mod images;
pub(crate) mod label_policy;
pub(crate) mod labelling;
pub(crate) mod request;
pub(crate) mod resolve;
pub(crate) mod stuck;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::containerd::{self, Containerd, Labels, Snapshot};
use crate::ctr::Ctr;
use crate::image::{LAYER_DIGEST, LayerLabels, Manifest};
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::Repair;
use crate::unpack::chain::state::{ChainStatus, Rules, State};
use crate::unpack::layer::unpack::Failure;
use crate::unpack::snapshotter::guest_pull;
use crate::unpack::snapshotter::listing::Listing;

/// What the label of a config blob begins with that keeps a chain from garbage collection; the
/// snapshotter's name follows.
const ANCHOR: &str = "containerd.io/gc.ref.snapshot.";

/// Snapshots that are asked for at once: enough to hide the round trips, few enough for others.
const PARALLEL_STATS: usize = 16;

/// One image in one snapshotter.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// For messages.
    pub(crate) image: String,
    /// What its record points at: an index or a manifest.
    pub(crate) record: String,
    pub(crate) manifest: Arc<Manifest>,
    /// What a layer gets when it is unpacked or relabelled.
    pub(crate) labels: LayerLabels,
    /// When it is ready.
    pub(crate) rules: Rules,
    /// Chains at which other images end, where this one may have to be taken away.
    pub(crate) others: HashSet<String>,
    /// A container is known to stand on it: who else does has not to be found out.
    pub(crate) in_use: bool,
    /// Nothing can be moved that stands on it: it runs.
    pub(crate) is_sandbox: bool,
    /// It is still being pulled.
    pub(crate) arrives: bool,
    /// The snapshotter leaves layers with labels to the guest.
    pub(crate) leaves_to_guest: bool,
    /// The container stands on a copy of the chain, whose files have other owners: on the host, a user
    /// namespace without id-mapped mounts.
    pub(crate) is_copied: bool,
    /// It is left to containerd, by its pod or by the configuration: all that is looked at is whether
    /// the container can start from it.
    pub(crate) left_alone: bool,
    pub(crate) snapshotter: String,
    /// For the remedies in errors.
    pub(crate) ctr: Ctr,
}

impl Target {
    /// The label of the config blob that keeps the chain from garbage collection. A second chain of
    /// the image carries it with a suffix, `/…`.
    pub(crate) fn anchor(&self) -> String {
        let suffix = match self.manifest.chain_id() {
            Some(chain) if guest_pull::is_on_host(chain) => "/nri-unpack-host",
            _ => "",
        };
        format!("{ANCHOR}{}{suffix}", self.snapshotter)
    }

    /// Whether the snapshotter leaves a layer with this image's labels to the guest.
    pub(crate) fn is_for_guest(&self) -> bool {
        let top = self.labels.last();
        self.leaves_to_guest && top.is_some_and(|labels| labels.contains_key(LAYER_DIGEST))
    }

    /// The same image under private names, unpacked on the host from the lowest layer on and without any
    /// label: what containerd's own unpack gives where no other image has left a layer to the guest. It
    /// has a label of its own on the config blob, and goes with the image.
    pub(crate) fn on_host(&self) -> Self {
        let mut manifest = (*self.manifest).clone();
        for layer in &mut manifest.layers {
            layer.chain_id = guest_pull::host_name(&layer.chain_id);
        }
        let labels = vec![Labels::new(); manifest.layers.len()];
        Self {
            image: self.image.clone(),
            record: self.record.clone(),
            manifest: Arc::new(manifest),
            labels: labels.clone(),
            rules: Rules {
                required: labels,
                origin: None,
                repair: Repair::Relabel,
                guest_pulls: false,
            },
            others: HashSet::new(),
            in_use: false,
            is_sandbox: false,
            arrives: false,
            leaves_to_guest: self.leaves_to_guest,
            is_copied: false,
            left_alone: false,
            snapshotter: self.snapshotter.clone(),
            ctr: self.ctr.clone(),
        }
    }

    /// What a container stands on. A copy of layers that were left to the guest holds nothing of them.
    pub(crate) fn state_below_container(&self, status: &ChainStatus) -> State {
        match status.state(&self.rules) {
            _ if self.is_copied && status.has_guest_layers() => State::Mixed,
            State::Ready | State::Unanchored | State::Foreign
                if self.is_copied && self.rules.guest_pulls =>
            {
                State::Unlabelled
            }
            state => state,
        }
    }

    /// Why nothing may be unpacked here: the host's layers would lie on layers that the snapshotter
    /// holds empty.
    pub(crate) fn refused(&self, status: &ChainStatus) -> Option<Error> {
        let state = status.state(&self.rules);
        let is_refused = match state {
            State::Mixed => !self.is_for_guest(),
            State::Partial => status.has_guest_layers() && !self.is_for_guest(),
            _ => false,
        };
        is_refused.then(|| Error::OnGuestLayers {
            image: self.image.clone(),
            snapshotter: self.snapshotter.clone(),
            state,
        })
    }

    /// How the chain stands now, and when its top layer was made.
    pub(crate) async fn look(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<(ChainStatus, Option<SystemTime>), Error> {
        let seen = self.see(containerd).await;
        seen.map_err(|e| self.failed(e))
    }

    /// The same from a listing, without a call.
    pub(crate) fn look_in(&self, listing: &Listing) -> ChainStatus {
        let layers = self.manifest.layers.iter();
        let snapshots = layers.map(|l| listing.snapshot(&l.chain_id).cloned());
        let config = listing.blob(&self.manifest.config);
        ChainStatus {
            anchored: config.is_some_and(|config| self.is_anchored(&config.labels)),
            layers: without_gaps(snapshots),
        }
    }

    /// Whether the blobs of all layers that have to be unpacked were there.
    pub(crate) fn has_blobs_in(&self, listing: &Listing, status: &ChainStatus) -> bool {
        let mut missing = self.manifest.layers.iter().skip(status.committed());
        missing.all(|layer| listing.blob(&layer.blob.digest).is_some())
    }

    async fn see(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<(ChainStatus, Option<SystemTime>), containerd::Error> {
        let layers = self.manifest.layers.iter();
        let stats: Vec<_> = layers.map(|l| self.stat(containerd, &l.chain_id)).collect();
        let stats = stream::iter(stats).buffered(PARALLEL_STATS);
        let config = containerd.blob(&self.manifest.config);
        let (snapshots, config) = futures::join!(stats.try_collect::<Vec<_>>(), config);
        let snapshots = snapshots?;
        let top = snapshots.last().and_then(Option::as_ref);
        let created_at = top.and_then(|snapshot| snapshot.created_at);
        let status = ChainStatus {
            anchored: self.is_anchored(&config?.labels),
            layers: without_gaps(snapshots),
        };
        Ok((status, created_at))
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
        let anchor = format!("{ANCHOR}{}", self.snapshotter);
        labels.iter().any(|(key, value)| {
            let suffix = key.strip_prefix(&anchor);
            suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('/'))
                && Some(value.as_str()) == self.manifest.chain_id()
        })
    }

    /// A call failed.
    pub(crate) fn failed(&self, source: containerd::Error) -> Error {
        Error::Containerd {
            image: self.image.clone(),
            snapshotter: self.snapshotter.clone(),
            source,
        }
    }

    /// Why this layer could not be made.
    pub(crate) fn layer_failed(&self, i: usize, failure: Failure) -> Error {
        let layers = &self.manifest.layers;
        let (image, position) = (self.image.clone(), i + 1);
        let digest = layers[i].blob.digest.clone();
        match failure {
            Failure::Containerd(source) => self.failed(source),
            Failure::Stopped | Failure::ParentGone => Error::Stopped(image),
            Failure::NoBlob(tried) => self.unavailable(i, tried),
            Failure::Encrypted(e) => Error::Encrypted {
                image,
                digest,
                position,
                layers: layers.len(),
                reason: e.to_string(),
            },
            Failure::WrongDiffId(applied) => Error::WrongDiffId {
                image,
                digest,
                position,
                layers: layers.len(),
                applied,
                expected: layers[i].diff_id.clone(),
            },
        }
    }

    /// The blob of this layer is gone; with what became of each means to do without.
    pub(crate) fn unavailable(&self, layer: usize, tried: Vec<String>) -> Error {
        let layers = &self.manifest.layers;
        Error::Unavailable {
            image: self.image.clone(),
            digest: layers[layer].blob.digest.clone(),
            position: layer + 1,
            layers: layers.len(),
            tried,
            ctr: Box::new(self.ctr.clone()),
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
