//! Registries that did not answer while a snapshotter prepared a layer. A hook does not wait for them again at once.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How long a registry counts as silent after it was last found so. No answer of a snapshotter shows that a registry
/// answers: it answers itself for a layer that exists, or gives up.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The limit of registries: more than a node uses. A full map is cleared.
const MAX_ENTRIES: usize = 64;

/// The time until which each registry counts as silent for one snapshotter.
#[derive(Debug, Default)]
pub(crate) struct SilentRegistries(Mutex<HashMap<String, Instant>>);

impl SilentRegistries {
    /// Records that a registry does not answer this snapshotter.
    pub(crate) fn found(&self, snapshotter: &str, registry: &str) {
        let mut until = self.until_each();
        if until.len() >= MAX_ENTRIES {
            until.clear();
        }
        let now = Instant::now();
        if until
            .insert(registry.to_owned(), now + REMEMBERED)
            .is_none()
        {
            log::info!(snapshotter, registry; "registry does not answer the snapshotter: for a minute no hook waits for layers from it");
        }
    }

    /// Whether the registry counts as silent.
    pub(crate) fn has(&self, registry: &str) -> bool {
        self.until_each().contains_key(registry)
    }

    fn until_each(&self) -> MutexGuard<'_, HashMap<String, Instant>> {
        let mut until = self.0.lock();
        let now = Instant::now();
        until.retain(|_, until| *until > now);
        until
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_registry_is_silent_for_a_minute() {
        let silent = SilentRegistries::default();
        silent.found("stargz", "r.example");
        assert!(silent.has("r.example"));
        tokio::time::advance(REMEMBERED).await;
        assert!(!silent.has("r.example"));
        for n in 0..10 * MAX_ENTRIES {
            silent.found("stargz", &n.to_string());
        }
        assert!(silent.0.lock().len() <= MAX_ENTRIES);
    }
}
