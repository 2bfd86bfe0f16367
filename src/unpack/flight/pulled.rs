//! Unpacks the layers of an image while it is being pulled, each as soon as its blob is there: when the pull returns,
//! little is left to be done.

use std::ops::Range;
use std::time::Duration;

use tokio::time::Instant;

use super::executor::PlanExecutor;
use crate::unpack::chain::error::Error;
use crate::unpack::snapshotter::lease::Leases;

/// The time between two looks for a blob.
const LOOK: Duration = Duration::from_millis(50);

/// The time between two looks whether the pull goes on.
const LOOK_AT_PULL: Duration = Duration::from_secs(1);

/// The limit of the wait for one blob: the time to pull a large layer.
const LONGEST: Duration = Duration::from_secs(10 * 60);

impl PlanExecutor<'_> {
    /// Whether the image is being pulled, and its layers have to be applied here. A proxy plugin may need no content.
    pub(super) async fn follows_pull(&self) -> bool {
        let context = self.context;
        let facts = &context.layers.facts;
        context.target.arrives
            && !context.target.rules.guest_pulls
            && facts.capabilities(context.containerd).await.applies
    }

    /// Unpacks these layers as their blobs arrive. Takes a place only for layers whose blobs are there: a slow pull delays
    /// no other image. `false` as in [`PlanExecutor::unpack`].
    pub(super) async fn unpack_as_blobs_arrive(
        &mut self,
        mut layers: Range<usize>,
    ) -> Result<bool, Error> {
        while !layers.is_empty() {
            let available = self.available(&layers).await?;
            let place = self.place().await?;
            let unpack = self.unpack(layers.start..available, &place);
            if !place.during(unpack).await? {
                return Ok(false);
            }
            layers.start = available;
        }
        Ok(true)
    }

    /// Waits until the blob of the lowest of these layers is there. Returns the end of the layers whose blobs are there; of
    /// all layers if the pull has ended without it and the image has a record: containerd pulls no blob of a layer that
    /// its own snapshotter has.
    async fn available(&self, layers: &Range<usize>) -> Result<usize, Error> {
        let context = self.context;
        let arrives = async {
            let mut looked = Instant::now();
            while !self.has_blob(layers.start).await? {
                if looked.elapsed() >= LOOK_AT_PULL {
                    if !self.is_being_pulled().await? && !self.has_blob(layers.start).await? {
                        return Ok(None);
                    }
                    looked = Instant::now();
                }
                tokio::time::sleep(LOOK).await;
            }
            let mut end = layers.start + 1;
            while end < layers.end && self.has_blob(end).await? {
                end += 1;
            }
            Ok::<_, Error>(Some(end))
        };
        let arrives = tokio::time::timeout(LONGEST, arrives);
        let arrives = context.stop.run_until_cancelled(arrives).await;
        let arrived = arrives.ok_or_else(|| context.stopped())?;
        if let Some(available) = arrived.unwrap_or(Ok(None))? {
            return Ok(available);
        }
        match context.record.pull_ended() {
            true => Ok(layers.end),
            // The pull has failed, or was cancelled.
            false => Err(context.stopped()),
        }
    }

    async fn has_blob(&self, layer: usize) -> Result<bool, Error> {
        let target = self.context.target;
        let digest = &target.manifest.layers[layer].blob.digest;
        match self.context.containerd.blob(digest).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(target.failed(e)),
        }
    }

    /// Whether the lease of another client holds the image's manifest: a pull holds it to its end.
    async fn is_being_pulled(&self) -> Result<bool, Error> {
        let target = self.context.target;
        let containerd = self.context.containerd;
        let held = Leases::blob_is_held_by_others(containerd, &target.manifest.digest).await;
        held.map_err(|e| target.failed(e))
    }
}
