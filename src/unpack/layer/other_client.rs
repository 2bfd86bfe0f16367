//! Another client of containerd that unpacks the same image into the same snapshotter: most often containerd
//! itself, inside the creation of a container. It cannot be held up, and it unpacks each layer that is not
//! committed yet. Two unpacks of one layer take longer than one, so this program waits.
//!
//! The wait is before `Prepare`, which copies all layers below in some snapshotters (native). A proxy plugin may
//! commit a labelled layer without its content, which takes no time: there, nothing waits.

use std::time::Duration;

use tokio::time::Instant;

use crate::containerd::{self, Snapshot, SnapshotKind};
use crate::unpack::schedule::last_look::LastLook;
use crate::unpack::snapshotter::lease::Leases;

use super::unpack::{Failure, Unpack};

/// How long a layer waits for the other client, and how long a snapshot in the other client's lease shows that it is
/// at work. The lease of a containerd that was killed stays.
const LONGEST: Duration = Duration::from_secs(60);

/// How long a committed layer in the other client's lease shows that it is at work: the time to prepare the next one. The
/// lease may be that of another image with the same lower layers.
const NEXT_PREPARE: Duration = Duration::from_secs(10);

/// The time between two looks for the other client's lease.
const LOOK: Duration = Duration::from_millis(100);

/// The time between two looks for the top layer: a creation may wait for its labels.
const LOOK_AT_TOP: Duration = Duration::from_millis(10);

/// The time without a lease after which the other client has given up.
const BETWEEN_LAYERS: Duration = Duration::from_secs(2);

impl Unpack<'_> {
    /// Waits while another client of containerd unpacks layers of this image. Returns whether it has committed this one.
    pub(super) async fn is_committed_by_other_client(&self) -> Result<bool, Failure> {
        let capabilities = self.layers.facts.capabilities(self.containerd).await;
        let bytes = self.layer.bytes();
        if !capabilities.applies || self.last_look.is_some_and(|look| !look.is_due(bytes)) {
            return Ok(false);
        }
        // Its other layers may be committed already.
        if self.last_look.is_some_and(LastLook::has_found) && self.is_committed().await? {
            return Ok(true);
        }
        if !self.is_unpacked_by_other_client().await {
            self.last_look.inspect(|look| look.found_none(bytes));
            return Ok(false);
        }
        self.last_look.inspect(|look| look.found());
        let chain_id = self.layer.chain_id.as_str();
        log::debug!(image = self.image, snapshotter = self.snapshotter, chain_id; "containerd unpacks this image itself: the plugin waits for it");
        let wait = tokio::time::timeout(LONGEST, self.other_client_ends());
        match self.stop.run_until_cancelled(wait).await {
            Some(Ok(committed)) => committed,
            Some(Err(_)) => Ok(self.is_committed().await?),
            None => Err(Failure::Stopped),
        }
    }

    /// Waits until the whole image is committed, which is a failure of this layer, or until no layer is being unpacked.
    /// Returns whether this layer is committed.
    async fn other_client_ends(&self) -> Result<bool, Failure> {
        let top = self.manifest.chain_id().unwrap_or(&self.layer.chain_id);
        let (mut looked, mut last_seen) = (Instant::now(), Instant::now());
        while last_seen.elapsed() < BETWEEN_LAYERS {
            if self.exists(top).await? {
                return Err(Failure::AllCommitted);
            }
            if looked.elapsed() >= LOOK {
                if self.is_unpacked_by_other_client().await {
                    last_seen = Instant::now();
                }
                looked = Instant::now();
            }
            tokio::time::sleep(LOOK_AT_TOP).await;
        }
        Ok(self.is_committed().await?)
    }

    /// An error counts as `false`: the unpack itself then reports what does not work.
    async fn is_unpacked_by_other_client(&self) -> bool {
        let newest = self.newest_of_other_client().await.unwrap_or_default();
        newest.is_some_and(|newest| match newest.kind {
            SnapshotKind::Committed => is_younger(&newest, NEXT_PREPARE),
            _ => is_younger(&newest, LONGEST),
        })
    }

    /// Returns the snapshot of the topmost layer of this image in a lease of another client: the extraction snapshot
    /// that is being filled, or between two of them the layer that is committed. While `Prepare` makes the next one,
    /// which takes seconds in native, only the lease shows that the other client goes on.
    async fn newest_of_other_client(&self) -> Result<Option<Snapshot>, containerd::Error> {
        let held = Leases::held_by_others(self.containerd, self.snapshotter).await?;
        let newest = held.into_iter().filter_map(|key| {
            let layer = self.layer_of(&key)?;
            Some((layer, is_extraction(&key), key))
        });
        match newest.max() {
            Some((.., key)) => self.containerd.stat(self.snapshotter, &key).await.map(Some),
            None => Ok(None),
        }
    }

    /// Returns the number of the layer that is committed under this key, or extracted into it.
    fn layer_of(&self, key: &str) -> Option<usize> {
        let chain_id = key.split_once(' ').map_or(key, |(_, chain_id)| chain_id);
        let mut layers = self.manifest.layers.iter();
        layers.position(|layer| layer.chain_id == chain_id)
    }
}

/// containerd's form of the key is `extract-<unique> <chain id>`.
fn is_extraction(key: &str) -> bool {
    key.starts_with("extract-")
}

/// Returns `false` if the age is not known or the clock was set back: each layer would wait for a snapshot that a
/// killed containerd left.
fn is_younger(snapshot: &Snapshot, limit: Duration) -> bool {
    let age = snapshot.created_at.and_then(|time| time.elapsed().ok());
    age.is_some_and(|age| age < limit)
}
