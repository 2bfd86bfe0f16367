//! Whether a snapshotter needs an image's content, or mounts it from elsewhere: decided for each image by one
//! question, since the same snapshotter mounts one image lazily and unpacks another.
//!
//! The question is a labelled `Prepare` of the largest layer that is missing: small ones may be unpacked by
//! a snapshotter that mounts all others (soci does so), and cost little.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::containerd::Containerd;

use super::Target;
use crate::unpack::chain::error::Error;
use crate::unpack::snapshotter::guest_pull::Guest;
use crate::unpack::snapshotter::lease::Leases;

/// How long it is remembered that a layer needs its content: a registry that does not answer for a while
/// makes a lazy layer look like a local one.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// The layers that were found to need their content: snapshotter and chain id.
#[derive(Debug, Default)]
pub(crate) struct NeedContent(Mutex<HashMap<(String, String), Instant>>);

impl NeedContent {
    /// Whether the layers of this image that are missing have to be applied.
    pub(crate) async fn ask(
        &self,
        containerd: &dyn Containerd,
        leases: &Arc<Leases>,
        target: &Target,
    ) -> Result<bool, Error> {
        if target.rules.guest_pulls {
            return Ok(false);
        }
        let (status, _) = target.look(containerd).await?;
        let missing = target.manifest.layers.iter().zip(&target.labels);
        let missing = missing.skip(status.committed());
        let Some((layer, labels)) = missing.max_by_key(|(layer, _)| layer.bytes()) else {
            return Ok(false);
        };
        let key = (target.snapshotter.clone(), layer.chain_id.clone());
        if self.known().contains_key(&key) {
            return Ok(true);
        }
        let lease = leases.take(containerd).await;
        let lease = lease.map_err(|e| target.failed(e))?;
        let question = Guest {
            containerd,
            snapshotter: &target.snapshotter,
            lease: &lease,
            labels,
        };
        let taken = question.takes().await;
        lease.release(containerd).await;
        let needs_content = taken.map_err(|e| target.failed(e))?.is_none();
        // The name of one that is still being pulled may be of another registry on the same host.
        if needs_content && !target.arrives {
            self.known().insert(key, Instant::now());
        }
        Ok(needs_content)
    }

    /// A snapshotter may have been set up otherwise.
    pub(crate) fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, HashMap<(String, String), Instant>> {
        let mut known = self.0.lock();
        known.retain(|_, since| since.elapsed() < REMEMBERED);
        known
    }
}
