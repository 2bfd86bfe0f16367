//! Removes the records of images that a snapshotter has lost: its directory was deleted, or it was installed again.
//! containerd's metadata keeps the records, so it answers «not found» to a look at such a layer, and «already exists» to
//! an unpack of it.
//!
//! The records are removed by garbage collection: containerd does not list them, and `Remove` fails for a record of which
//! garbage collection has once removed a child, as it does for a base layer when an image on it was removed. Garbage
//! collection keeps what a container or a lease uses. So one collection, without the anchors of all lost images, removes
//! what can be removed.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Image, Labels};
use crate::image::Manifest;
use crate::unpack::chain::error::Error;
use crate::unpack::schedule::process_lock::process_lock;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::{ANCHOR, Listing, NOTHING_LEFT, is_anchor, loss_anchor};
use crate::unpack::target::Target;
use crate::unpack::target::images::Images;
use crate::unpack::target::store_images::RequestImages;

/// The pause after a collection that has left lost images. Each further one doubles it: a container may run for months.
const SHORTEST_PAUSE: Duration = Duration::from_secs(3);

/// The longest pause. The removal of a container ends it.
const LONGEST_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The number of attempts to restore an anchor.
const RESTORE_TRIES: usize = 3;

/// The name of the lock against other processes, which remove the same records.
const LOCK: &str = "lost";

/// The outcome of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// The records are gone: the layers can be unpacked again.
    Gone,
    /// A container's own snapshot stands on them.
    InUse,
}

/// When lost images of one snapshotter are collected again.
#[derive(Debug, Default)]
pub(crate) struct Collections {
    /// The end of the last collection that has left lost images, and the pause after it. Locked during a collection.
    last: tokio::sync::Mutex<Option<(Instant, Duration)>>,
    /// Something that may have used lost images was removed since.
    user_removed: AtomicBool,
}

impl Collections {
    /// Handles the removal of a container or a snapshot: lost images may be collected again at once.
    pub(crate) fn user_removed(&self) {
        self.user_removed.store(true, Ordering::Relaxed);
    }
}

/// The removal of the records of all lost images in a snapshotter, for the flight of one of them.
pub(crate) struct LostImages<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) images: &'a Images,
    pub(crate) leases: &'a Arc<Leases>,
    pub(crate) collections: &'a Collections,
    pub(crate) target: &'a Target,
    pub(crate) stop: &'a CancellationToken,
}

/// A lost image.
struct LostImage {
    manifest: Arc<Manifest>,
    /// The position of its lowest lost layer.
    lowest: usize,
    /// The labels on its config blob that keep its chains in this snapshotter; that of its own chain if there is none.
    anchors: Labels,
}

impl LostImages<'_> {
    /// Removes the records.
    pub(crate) async fn remove_records(&self) -> Result<Removed, Error> {
        let mut last = self.collections.last.lock().await;
        let _process = process_lock(self.containerd, &self.target.snapshotter, LOCK).await;
        let is_lost = async || {
            let lowest = self.lowest_lost(&self.target.manifest).await;
            let lowest = lowest.map_err(|e| self.target.failed(e))?;
            Ok::<_, Error>(lowest.is_some())
        };
        // Another flight may have removed the records meanwhile.
        if !is_lost().await? {
            return Ok(Removed::Gone);
        }
        let is_early = last.is_some_and(|(last, pause)| last.elapsed() < pause);
        if is_early && !self.collections.user_removed.swap(false, Ordering::Relaxed) {
            return Ok(Removed::InUse);
        }
        let lost = self.lost_images().await?;
        let collected = self.collect_without_anchors(&lost).await;
        collected.map_err(|e| self.target.failed(e))?;
        if is_lost().await? {
            let pause = last.map_or(SHORTEST_PAUSE, |(_, pause)| pause * 2);
            *last = Some((Instant::now(), pause.min(LONGEST_PAUSE)));
            return Ok(Removed::InUse);
        }
        *last = None;
        Ok(Removed::Gone)
    }

    /// Returns the lost images of the store, and the flight's own.
    async fn lost_images(&self) -> Result<Vec<LostImage>, Error> {
        let failed = |e| self.target.failed(e);
        let own = self.target.manifest.clone();
        let mut known = HashSet::from([own.config.clone()]);
        let mut lost = Vec::from_iter(self.if_lost(own).await.map_err(failed)?);
        let list = RequestImages::default();
        for image in self.images.all(&list).await? {
            if self.stop.is_cancelled() {
                return Err(Error::Stopped(self.target.image.clone()));
            }
            // Most images are there: their manifests are not read.
            let ends = self.images.ends(image).await?;
            let Some(top) = ends.filter(|ends| known.insert(ends.config.clone())) else {
                continue;
            };
            let Some(top) = top.chain else {
                continue;
            };
            if self.exists(&top).await.map_err(failed)? {
                continue;
            }
            if let Some(manifest) = self.images.readable(image).await? {
                lost.extend(self.if_lost(manifest).await.map_err(failed)?);
            }
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
        let was_anchored = anchors.remove(&self.loss_anchor()).is_some();
        if let (true, Some(top)) = (anchors.is_empty(), manifest.chain_id()) {
            // It was never unpacked: it shares a lost layer with another image.
            if !was_anchored && manifest.config != self.target.manifest.config {
                return Ok(None);
            }
            // A process that was killed has not restored it.
            let key = format!("{ANCHOR}{}", self.target.snapshotter);
            anchors.insert(key, top.to_owned());
        }
        Ok(Some(LostImage {
            manifest,
            lowest,
            anchors,
        }))
    }

    /// Returns the position of the lowest layer that the snapshotter has lost.
    async fn lowest_lost(&self, manifest: &Manifest) -> Result<Option<usize>, containerd::Error> {
        let Some(top) = manifest.chain_id() else {
            return Ok(None);
        };
        if self.exists(top).await? {
            return Ok(None);
        }
        for (i, layer) in manifest.layers.iter().enumerate() {
            if !self.exists(&layer.chain_id).await? {
                let is_lost = self.is_lost(&layer.chain_id).await?;
                return Ok(is_lost.then_some(i));
            }
        }
        Ok(None)
    }

    /// Whether a layer that was not found is lost. It is looked at again: it may have been committed between the two calls.
    async fn is_lost(&self, chain_id: &str) -> Result<bool, containerd::Error> {
        let snapshotter = self.target.snapshotter.as_str();
        let has_record = self.containerd.has_record(snapshotter, chain_id).await?;
        Ok(has_record && !self.exists(chain_id).await?)
    }

    async fn exists(&self, chain_id: &str) -> Result<bool, containerd::Error> {
        let snapshotter = self.target.snapshotter.as_str();
        match self.containerd.stat(snapshotter, chain_id).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes the anchors and runs garbage collection. Images whose records remain get their anchors back, also after an
    /// error.
    async fn collect_without_anchors(&self, lost: &[LostImage]) -> Result<(), containerd::Error> {
        let collected = self.remove_anchors_and_collect(lost).await;
        for image in lost {
            let mut restored = self.restore(image).await;
            for _ in 1..RESTORE_TRIES {
                if restored.is_err() {
                    restored = self.restore(image).await;
                }
            }
            if let Err(e) = restored {
                log::warn!(config = image.manifest.config.as_str(), snapshotter = self.target.snapshotter.as_str(), error:% = e; "anchor of a lost image could not be restored: the image counts as missing");
            }
        }
        collected
    }

    async fn remove_anchors_and_collect(
        &self,
        lost: &[LostImage],
    ) -> Result<(), containerd::Error> {
        for image in lost {
            // It may have been made again meanwhile.
            if self.lowest_lost(&image.manifest).await? != Some(image.lowest) {
                continue;
            }
            let none = image.anchors.keys().map(|key| (key.clone(), String::new()));
            // In the same call: a process that is killed after it leaves the layers anchored.
            let kept = image.highest_kept().unwrap_or(NOTHING_LEFT);
            let kept = (self.loss_anchor(), kept.to_owned());
            self.set_anchors(image, none.chain([kept]).collect())
                .await?;
        }
        let lease = self.leases.take(self.containerd).await?;
        lease.release_and_collect(self.containerd).await
    }

    /// Restores the anchors of an image, unless its records are gone. Then the anchor of what is left stays until the image
    /// is made again.
    async fn restore(&self, image: &LostImage) -> Result<(), containerd::Error> {
        let lowest = &image.manifest.layers[image.lowest].chain_id;
        let has_record = match self.exists(lowest).await {
            Ok(true) => Ok(true),
            _ => {
                self.containerd
                    .has_record(&self.target.snapshotter, lowest)
                    .await
            }
        };
        let mut anchors = match has_record {
            Ok(false) => return Ok(()),
            _ => image.anchors.clone(),
        };
        // While it is not known, both stay.
        if has_record == Ok(true) {
            anchors.insert(self.loss_anchor(), String::new());
        }
        self.set_anchors(image, anchors).await
    }

    fn loss_anchor(&self) -> String {
        loss_anchor(&self.target.snapshotter)
    }

    async fn set_anchors(
        &self,
        image: &LostImage,
        anchors: Labels,
    ) -> Result<(), containerd::Error> {
        let labelled = self.containerd.label_blob(&image.manifest.config, anchors);
        match labelled.await {
            // The image was removed meanwhile.
            Err(e) if e.is_not_found() => Ok(()),
            labelled => labelled,
        }
    }
}

/// Whether a listing shows that the snapshotter has lost an image, and that it was not made again.
pub(crate) async fn is_marked(images: &Images, image: &Image, listing: &Listing) -> bool {
    let Ok(Some(ends)) = images.ends(image).await else {
        return false;
    };
    let key = loss_anchor(&listing.snapshotter);
    let anchors = listing.anchors(&ends.config);
    anchors.is_some_and(|anchors| anchors.contains_key(&key))
}

/// Removes the mark of an image whose own chain has its anchor again.
pub(crate) async fn unmark(images: &Images, image: &Image, snapshotter: &str) -> Result<(), Error> {
    if let Some(ends) = images.ends(image).await? {
        let none = Labels::from([(loss_anchor(snapshotter), String::new())]);
        let unmarked = images.containerd().label_blob(&ends.config, none).await;
        unmarked.map_err(|source| Error::Containerd {
            image: image.name.clone(),
            snapshotter: snapshotter.to_owned(),
            source,
        })?;
    }
    Ok(())
}

impl LostImage {
    /// Returns the chain id of the highest layer below the lost ones.
    fn highest_kept(&self) -> Option<&str> {
        let highest = self.lowest.checked_sub(1)?;
        Some(&self.manifest.layers[highest].chain_id)
    }
}
