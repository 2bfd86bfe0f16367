//! Finds out whether a snapshotter needs an image's content, or mounts it from elsewhere. Each image is probed, since
//! one snapshotter may mount one image lazily and unpack another.
//!
//! The probe is a labelled `Prepare` of the largest missing layer: a snapshotter that mounts large layers lazily may
//! still unpack small ones (soci does so), which cost little.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::containerd::Containerd;

use super::Target;
use crate::unpack::chain::error::Error;
use crate::unpack::snapshotter::guest_pull::Guest;
use crate::unpack::snapshotter::lease::Leases;

/// How long the cache keeps that a layer needs its content. While a registry does not answer, a layer that is mounted
/// lazily looks like one that needs its content.
const REMEMBERED: Duration = Duration::from_secs(10 * 60);

/// The size of the cache, more images than arrive in this time. A full cache is cleared, and its layers are probed again.
const MAX_REMEMBERED: usize = 4096;

/// The number of probes at the same time. A probe may wait for a registry that does not answer.
const PROBES: usize = 16;

/// What is known of the layers that need their content in one snapshotter.
#[derive(Debug)]
pub(crate) struct NeedContent {
    /// By chain id.
    cached: Mutex<HashMap<String, Instant>>,
    probes: Semaphore,
}

impl Default for NeedContent {
    fn default() -> Self {
        Self {
            cached: Mutex::default(),
            probes: Semaphore::new(PROBES),
        }
    }
}

impl NeedContent {
    /// Returns whether the missing layers of this image have to be applied. The caller's permit to look at images, `look`,
    /// is dropped before a probe.
    pub(crate) async fn ask<L: Send>(
        &self,
        containerd: &dyn Containerd,
        leases: &Arc<Leases>,
        target: &Target,
        look: L,
    ) -> Result<bool, Error> {
        if target.rules.guest_pulls {
            return Ok(false);
        }
        let (status, _) = target.read_status(containerd).await?;
        let missing = target.manifest.layers.iter().enumerate();
        let missing = missing.skip(status.committed());
        let Some((i, layer)) = missing.max_by_key(|(_, layer)| layer.bytes()) else {
            return Ok(false);
        };
        if self.cached().contains_key(&layer.chain_id) {
            return Ok(true);
        }
        drop(look);
        let _probe = self.probes.acquire().await;
        let lease = leases.take(containerd).await;
        let lease = lease.map_err(|e| target.failed(e))?;
        let probe = Guest {
            containerd,
            snapshotter: &target.snapshotter,
            lease: &lease,
            labels: &target.labels[i],
        };
        let labels = probe.takes().await;
        lease.release(containerd).await;
        let needs_content = labels.map_err(|e| target.failed(e))?.is_none();
        // While an image is pulled, the port in its name is not known: the name may be of another registry.
        if needs_content && !target.arrives {
            let chain_id = layer.chain_id.clone();
            let mut cached = self.cached();
            if cached.len() >= MAX_REMEMBERED {
                cached.clear();
            }
            cached.insert(chain_id, Instant::now());
        }
        Ok(needs_content)
    }

    /// Forgets all layers, since the configuration of a snapshotter may have changed.
    pub(crate) fn forget(&self) {
        self.cached().clear();
    }

    fn cached(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        let mut cached = self.cached.lock();
        cached.retain(|_, since| since.elapsed() < REMEMBERED);
        cached
    }
}
