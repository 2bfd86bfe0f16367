//! Another client of containerd that unpacks the same image into the same snapshotter: most often containerd
//! itself, inside the creation of a container. It cannot be held up, and it unpacks each layer that is not
//! committed yet. Two unpacks of one layer take longer than one, so this program waits.
//!
//! The wait is before `Prepare`, which copies all layers below in some snapshotters (native). A proxy plugin may
//! commit a labelled layer without its content, which takes no time: there, nothing waits.

use std::time::Duration;

use tokio::time::Instant;

use crate::containerd::Snapshot;
use crate::unpack::snapshotter::lease;

use super::unpack::{Failure, Unpack};

/// How long a layer waits for the other client, and how long an extraction snapshot counts as being filled. An
/// older one may have been left behind by a containerd that was killed.
const LONGEST: Duration = Duration::from_secs(60);

/// The time between two looks.
const LOOK: Duration = Duration::from_millis(100);

/// The time without an extraction snapshot after which the other client has given up. A snapshot is not listed before
/// its `Prepare` has ended, which takes long in native.
const BETWEEN_LAYERS: Duration = Duration::from_secs(2);

impl Unpack<'_> {
    /// Waits while another client of containerd unpacks layers of this image. Returns whether it has committed this one.
    pub(super) async fn is_committed_by_other_client(&self) -> Result<bool, Failure> {
        let capabilities = &self.layers.limits.capabilities;
        let capabilities = capabilities.of(self.containerd, self.snapshotter).await;
        if !capabilities.applies || !self.is_unpacked_by_other_client().await {
            return Ok(false);
        }
        let chain_id = self.layer.chain_id.as_str();
        log::debug!(image = self.image, snapshotter = self.snapshotter, chain_id; "containerd unpacks this image itself: the plugin waits for it");
        let wait = tokio::time::timeout(LONGEST, self.other_client_ends());
        match self.stop.run_until_cancelled(wait).await {
            Some(Ok(committed)) => committed,
            Some(Err(_)) => Ok(self.is_committed().await?),
            None => Err(Failure::Stopped),
        }
    }

    /// Waits until the whole image is committed or no layer is being unpacked. Returns whether this layer is committed.
    async fn other_client_ends(&self) -> Result<bool, Failure> {
        let top = self.manifest.chain_id().unwrap_or(&self.layer.chain_id);
        let mut last_seen = Instant::now();
        while last_seen.elapsed() < BETWEEN_LAYERS && !self.exists(top).await? {
            if self.is_unpacked_by_other_client().await {
                last_seen = Instant::now();
            }
            tokio::time::sleep(LOOK).await;
        }
        Ok(self.is_committed().await?)
    }

    /// An error counts as `false`: the unpack itself then reports what does not work.
    async fn is_unpacked_by_other_client(&self) -> bool {
        let extractions = self.containerd.extractions(self.snapshotter).await;
        let mut extractions = extractions.unwrap_or_default().into_iter();
        extractions.any(|extraction| is_recent(&extraction) && self.is_of_this_image(&extraction))
    }

    fn is_of_this_image(&self, extraction: &Snapshot) -> bool {
        let chain_id = extraction
            .name
            .split_once(' ')
            .map(|(_, chain_id)| chain_id);
        lease::is_of_another_client(&extraction.name)
            && chain_id.is_some_and(|id| self.manifest.layers.iter().any(|l| l.chain_id == id))
    }
}

/// Returns `false` if the age is not known or the clock was set back: each layer would wait for a snapshot that a
/// killed containerd left.
fn is_recent(extraction: &Snapshot) -> bool {
    let age = extraction.created_at.and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age < LONGEST)
}
