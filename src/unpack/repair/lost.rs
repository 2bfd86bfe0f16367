//! Removes the records of images that a snapshotter has lost: its directory was deleted, or it was installed again.
//! containerd's metadata keeps the records, so it answers «not found» to a look at such a layer, and «already exists» to
//! an unpack of it.
//!
//! The records are removed by garbage collection: containerd does not list them, and `Remove` fails for a record of which
//! garbage collection has once removed a child, as it does for a base layer when an image on it was removed. Garbage
//! collection keeps what a container or a lease uses. So one collection, without the anchors of all lost images, removes
//! what can be removed.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::containerd::{self, Containerd, Labels, Resource};
use crate::image::{Layer, Manifest};
use crate::unpack::chain::error::Error;
use crate::unpack::snapshotter::lease::{Lease, Leases};
use crate::unpack::target::images::Images;
use crate::unpack::target::store_images::RequestImages;
use crate::unpack::target::{Target, is_anchor};

/// The pause between two collections for one snapshotter. A container that is in the way goes with its pod.
const PAUSE: Duration = Duration::from_secs(3);

/// The outcome of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// The records are gone: the layers can be unpacked again.
    Gone,
    /// A container's own snapshot stands on them.
    InUse,
}

/// The end of the last collection that has left records of lost images of one snapshotter. The lock is held during one.
pub(crate) type LastCollection = tokio::sync::Mutex<Option<Instant>>;

/// The removal of the records of all lost images in a snapshotter, for the flight of one of them.
pub(crate) struct LostImages<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) images: &'a Images,
    pub(crate) leases: &'a Arc<Leases>,
    pub(crate) lease: &'a Lease,
    pub(crate) last: &'a LastCollection,
    pub(crate) target: &'a Target,
}

/// A lost image.
struct LostImage {
    manifest: Arc<Manifest>,
    /// The position of its lowest lost layer.
    lowest: usize,
    /// The labels on its config blob that keep its chains in this snapshotter.
    anchors: Labels,
}

impl LostImages<'_> {
    /// Removes the records.
    pub(crate) async fn remove_records(&self) -> Result<Removed, Error> {
        let mut last = self.last.lock().await;
        let is_lost = async || {
            let lowest = self.lowest_lost(&self.target.manifest).await;
            let lowest = lowest.map_err(|e| self.target.failed(e))?;
            Ok::<_, Error>(lowest.is_some())
        };
        // Another flight may have removed the records meanwhile.
        if !is_lost().await? {
            return Ok(Removed::Gone);
        }
        if last.is_some_and(|last| last.elapsed() < PAUSE) {
            return Ok(Removed::InUse);
        }
        let lost = self.lost_images().await?;
        let collected = self.collect_without_anchors(&lost).await;
        collected.map_err(|e| self.target.failed(e))?;
        if is_lost().await? {
            *last = Some(Instant::now());
            return Ok(Removed::InUse);
        }
        Ok(Removed::Gone)
    }

    async fn lost_images(&self) -> Result<Vec<LostImage>, Error> {
        let mut by_config = HashMap::new();
        let own = self.target.manifest.clone();
        by_config.insert(own.config.clone(), own);
        let list = RequestImages::default();
        for image in self.images.all(&list).await? {
            if let Some(manifest) = self.images.readable(image).await? {
                by_config.insert(manifest.config.clone(), manifest);
            }
        }
        let mut lost = Vec::new();
        for manifest in by_config.into_values() {
            let found = self.if_lost(manifest).await;
            lost.extend(found.map_err(|e| self.target.failed(e))?);
        }
        Ok(lost)
    }

    async fn if_lost(
        &self,
        manifest: Arc<Manifest>,
    ) -> Result<Option<LostImage>, containerd::Error> {
        let Some(lowest) = self.lowest_lost(&manifest).await? else {
            return Ok(None);
        };
        let mut anchors = match self.containerd.blob(&manifest.config).await {
            Ok(config) => config.labels,
            Err(e) if e.is_not_found() => Labels::new(),
            Err(e) => return Err(e),
        };
        anchors.retain(|key, _| is_anchor(key, &self.target.snapshotter));
        Ok(Some(LostImage {
            manifest,
            lowest,
            anchors,
        }))
    }

    /// Returns the position of the lowest layer that the snapshotter has lost.
    async fn lowest_lost(&self, manifest: &Manifest) -> Result<Option<usize>, containerd::Error> {
        let Some(top) = manifest.layers.last() else {
            return Ok(None);
        };
        if self.exists(top).await? {
            return Ok(None);
        }
        let snapshotter = self.target.snapshotter.as_str();
        for (i, layer) in manifest.layers.iter().enumerate() {
            if !self.exists(layer).await? {
                let chain_id = &layer.chain_id;
                let has_record = self.containerd.has_record(snapshotter, chain_id).await?;
                return Ok(has_record.then_some(i));
            }
        }
        Ok(None)
    }

    async fn exists(&self, layer: &Layer) -> Result<bool, containerd::Error> {
        let snapshotter = self.target.snapshotter.as_str();
        match self.containerd.stat(snapshotter, &layer.chain_id).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes the anchors and runs garbage collection. An image whose records remain gets its anchors back.
    async fn collect_without_anchors(&self, lost: &[LostImage]) -> Result<(), containerd::Error> {
        for image in lost {
            self.hold_kept(image).await?;
            let none = image.anchors.keys().map(|key| (key.clone(), String::new()));
            self.set_anchors(image, none.collect()).await?;
        }
        let lease = self.leases.take(self.containerd).await?;
        lease.release_and_collect(self.containerd).await?;
        for image in lost {
            if self.lowest_lost(&image.manifest).await?.is_some() {
                self.set_anchors(image, image.anchors.clone()).await?;
            }
        }
        Ok(())
    }

    /// Holds the layers below the lost ones, which the snapshotter still has.
    async fn hold_kept(&self, image: &LostImage) -> Result<(), containerd::Error> {
        let Some(highest) = image.lowest.checked_sub(1) else {
            return Ok(());
        };
        let chain_id = &image.manifest.layers[highest].chain_id;
        let resource = Resource::snapshot(&self.target.snapshotter, chain_id);
        self.containerd.hold(self.lease.id(), resource).await
    }

    async fn set_anchors(
        &self,
        image: &LostImage,
        anchors: Labels,
    ) -> Result<(), containerd::Error> {
        if anchors.is_empty() {
            return Ok(());
        }
        let labelled = self.containerd.label_blob(&image.manifest.config, anchors);
        match labelled.await {
            // The image was removed meanwhile.
            Err(e) if e.is_not_found() => Ok(()),
            labelled => labelled,
        }
    }
}
