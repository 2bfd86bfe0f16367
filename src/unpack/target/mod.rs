//! The target of an `ensure`: one image in one snapshotter, its wanted labels, and its current status.

pub(crate) mod content_needs;
pub(crate) mod find;
pub(crate) mod gc_protect;
pub(crate) mod guest_mode;
pub(crate) mod images;
pub(crate) mod label_policy;
pub(crate) mod labelling;
pub(crate) mod request;
pub(crate) mod resolve;
pub(crate) mod store_images;
pub(crate) mod stuck;
pub(crate) mod usage;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::containerd::{self, Containerd, Labels, Snapshot};
use crate::ctr::Ctr;
use crate::image::{
    LAYER_DIGEST, LayerLabels, Manifest, PROXY_MODE, is_from_the_pull, is_named_by,
};
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::{Repair, is_proxied};
use crate::unpack::chain::state::{ChainStatus, Rules, State};
use crate::unpack::layer::unpack::Failure;
use crate::unpack::ready_cache::Top;
use crate::unpack::snapshotter::guest_pull;
use crate::unpack::snapshotter::listing::{ANCHOR, Listing, is_anchor};

/// The number of `Stat` calls at the same time: enough to hide the round trips, few enough for other clients.
const PARALLEL_STATS: usize = 16;

/// One image in one snapshotter.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The image's name, for messages.
    pub(crate) image: String,
    /// The digest that the image's record points at: of an index or of a manifest.
    pub(crate) record: String,
    pub(crate) manifest: Arc<Manifest>,
    /// The labels that each layer gets when it is unpacked or relabelled.
    pub(crate) labels: LayerLabels,
    /// The conditions under which the chain is ready.
    pub(crate) rules: Rules,
    /// The chain ids of other images, read only if this chain may have to be replaced.
    pub(crate) others: HashSet<String>,
    /// A container is known to use the chain, so its other users need not be looked up.
    pub(crate) in_use: bool,
    /// That container is a sandbox. It runs already and cannot be moved.
    pub(crate) is_sandbox: bool,
    /// The image is still being pulled.
    pub(crate) arrives: bool,
    /// The guest pulls the labelled images of the snapshotter.
    pub(crate) supports_guest_pull: bool,
    /// The snapshotter may have guest-pulled layers, also if it does not leave images to a guest now.
    pub(crate) may_have_guest_layers: bool,
    /// The container is based on a copy of the chain, in which the files have other owners. containerd makes it for a
    /// user namespace where the snapshotter has no id-mapped mounts.
    pub(crate) is_copied: bool,
    /// The image is left to containerd, since its pod is skipped or the image is excluded: only whether the container
    /// can start from the chain is checked.
    pub(crate) left_to_containerd: bool,
    pub(crate) snapshotter: String,
    /// The `ctr` command for the remedies in errors.
    pub(crate) ctr: Ctr,
}

impl Target {
    /// Returns the key of the anchor. The anchor of an image's second chain has a suffix (`/…`).
    pub(crate) fn anchor(&self) -> String {
        let suffix = match self.manifest.chain_id() {
            Some(chain) if guest_pull::is_on_host(chain) => guest_pull::ON_HOST_ANCHOR_SUFFIX,
            _ => "",
        };
        format!("{ANCHOR}{}{suffix}", self.snapshotter)
    }

    /// Whether the guest pulls this image: the snapshotter supports it, and the image's labels allow it.
    pub(crate) fn is_for_guest(&self) -> bool {
        self.supports_guest_pull && self.labels.top_has(LAYER_DIGEST)
    }

    /// Returns a target for the image's private chain, which is unpacked on the host from the lowest layer on and
    /// without labels: the same content as that of containerd's own unpack without guest-pulled layers below. The
    /// private chain has an anchor of its own, so it is collected when the image is removed.
    pub(crate) fn on_host(&self) -> Self {
        let mut manifest = (*self.manifest).clone();
        for layer in &mut manifest.layers {
            layer.chain_id = guest_pull::host_name(&layer.chain_id);
        }
        let labels = LayerLabels::none(manifest.layers.len());
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
                supports_guest_pull: self.supports_guest_pull,
            },
            others: HashSet::new(),
            in_use: false,
            is_sandbox: false,
            arrives: false,
            supports_guest_pull: self.supports_guest_pull,
            may_have_guest_layers: self.may_have_guest_layers,
            is_copied: false,
            left_to_containerd: false,
            snapshotter: self.snapshotter.clone(),
            ctr: self.ctr.clone(),
        }
    }

    /// Returns what is remembered of this chain when it is ready.
    pub(crate) fn top(&self, created_at: SystemTime) -> Top {
        Top {
            created_at,
            guest_pulls: self.supports_guest_pull,
        }
    }

    /// Returns the state of the chain that a container is based on. A copy of guest-pulled layers has no content.
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

    /// Returns an error if no layer may be unpacked here: it would lie on guest-pulled layers, which the snapshotter
    /// committed without content.
    pub(crate) fn refused(&self, status: &ChainStatus) -> Option<Error> {
        let state = status.state(&self.rules);
        let is_refused = match state {
            // They are left from another mode of the snapshotter, and are replaced.
            _ if !self.supports_guest_pull => false,
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

    /// Reads the status of the chain, and the creation time of its top layer.
    pub(crate) async fn read_status(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<(ChainStatus, Option<SystemTime>), Error> {
        let status = self.status(containerd).await;
        status.map_err(|e| self.failed(e))
    }

    /// Returns the status without nydus's mark on layers that hold content. Where no guest pulls, an annotation of the
    /// image may have brought it.
    pub(crate) async fn without_false_marks(
        &self,
        containerd: &dyn Containerd,
        mut status: ChainStatus,
    ) -> ChainStatus {
        if self.supports_guest_pull {
            return status;
        }
        let layers = self.manifest.layers.iter().zip(&mut status.layers);
        for (layer, labels) in layers {
            let Some(labels) = labels.as_mut().filter(|labels| is_proxied(labels)) else {
                continue;
            };
            let (snapshotter, chain_id) = (&self.snapshotter, &layer.chain_id);
            let is_left = self.may_have_guest_layers
                && guest_pull::is_empty(containerd, snapshotter, chain_id).await;
            if !is_left {
                labels.remove(PROXY_MODE);
            }
        }
        status
    }

    /// Returns the status of the chain from a listing. Asks containerd only whether a part of the chain is lost.
    pub(crate) async fn status_in(
        &self,
        containerd: &dyn Containerd,
        listing: &Listing,
    ) -> Result<ChainStatus, Error> {
        let layers = self.manifest.layers.iter();
        let layers = layers.map(|layer| listing.labels(&layer.chain_id));
        let anchors = listing.anchors(&self.manifest.config);
        let status = ChainStatus {
            anchored: anchors.is_some_and(|anchors| self.is_anchored(anchors)),
            layers: without_gaps(layers),
            is_lost: false,
        };
        let mut status = self.without_false_marks(containerd, status).await;
        let is_lost = self.is_lost(containerd, &status).await;
        status.is_lost = is_lost.map_err(|e| self.failed(e))?;
        Ok(status)
    }

    /// Whether labels name the image by its digest, as during its pull, although it has another name.
    pub(crate) fn has_name_of_pull(&self, status: &ChainStatus) -> bool {
        let digest = &self.manifest.digest;
        let mut found = status.layers.iter().flatten().enumerate();
        found.any(|(i, found)| {
            is_named_by(found, digest) && is_from_the_pull(found, &self.labels[i], digest)
        })
    }

    /// Whether the listing has the blobs of all layers that have to be unpacked.
    pub(crate) fn has_blobs_in(&self, listing: &Listing, status: &ChainStatus) -> bool {
        let mut missing = self.manifest.layers.iter().skip(status.committed());
        missing.all(|layer| listing.has_blob(&layer.blob.digest))
    }

    async fn status(
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
            layers: without_gaps(snapshots.into_iter().map(|s| s.map(|s| s.labels))),
            is_lost: false,
        };
        let mut status = self.without_false_marks(containerd, status).await;
        status.is_lost = self.is_lost(containerd, &status).await?;
        Ok((status, created_at))
    }

    /// Whether the snapshotter has lost the lowest layer without a snapshot, and all layers above it. Not asked for a
    /// chain without its anchor: the next garbage collection removes its records.
    async fn is_lost(
        &self,
        containerd: &dyn Containerd,
        status: &ChainStatus,
    ) -> Result<bool, containerd::Error> {
        match self.manifest.layers.get(status.committed()) {
            Some(lowest) if status.anchored => {
                containerd
                    .has_record(&self.snapshotter, &lowest.chain_id)
                    .await
            }
            _ => Ok(false),
        }
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
        labels.iter().any(|(key, value)| {
            is_anchor(key, &self.snapshotter) && Some(value.as_str()) == self.manifest.chain_id()
        })
    }

    /// Returns the error for a failed call to containerd.
    pub(crate) fn failed(&self, source: containerd::Error) -> Error {
        Error::Containerd {
            image: self.image.clone(),
            snapshotter: self.snapshotter.clone(),
            source,
        }
    }

    /// Returns the error for the failure of a layer.
    pub(crate) fn layer_failed(&self, i: usize, failure: Failure) -> Error {
        let layers = &self.manifest.layers;
        let (image, position) = (self.image.clone(), i + 1);
        let digest = layers[i].blob.digest.clone();
        match failure {
            Failure::Containerd(source) => self.failed(source),
            Failure::Stopped | Failure::ParentGone | Failure::AllCommitted | Failure::Lost => {
                Error::Stopped(image)
            }
            Failure::NotLeftToGuest => Error::NotLeftToGuest {
                image,
                snapshotter: self.snapshotter.clone(),
            },
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

    /// Returns the error for a layer whose blob is gone, with the result of each other way to get its content.
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

/// Drops the layers above the first missing one. Each layer is read with its own call, so if another client unpacks the
/// chain meanwhile, a lower layer may have been read as missing and a higher one as committed.
fn without_gaps(layers: impl Iterator<Item = Option<Labels>>) -> Vec<Option<Labels>> {
    let mut gap = false;
    let layers = layers.map(|labels| {
        gap |= labels.is_none();
        labels.filter(|_| !gap)
    });
    layers.collect()
}
