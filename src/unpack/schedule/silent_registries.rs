//! Registries that did not answer while a snapshotter prepared a layer. A hook does not wait for them again at once.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How long a registry counts as silent after it was found so.
const REMEMBERED: Duration = Duration::from_secs(60);

/// The limit of registries: more than a node uses. A full map is cleared.
const MAX_ENTRIES: usize = 64;

/// The time until which each registry counts as silent, by snapshotter and registry.
#[derive(Debug, Default)]
pub(crate) struct SilentRegistries(Mutex<HashMap<(String, String), Instant>>);

impl SilentRegistries {
    /// Records that a registry does not answer this snapshotter.
    pub(crate) fn found(&self, snapshotter: &str, registry: &str) {
        let mut until = self.until_each();
        if until.len() >= MAX_ENTRIES {
            until.clear();
        }
        let now = Instant::now();
        let key = (snapshotter.to_owned(), registry.to_owned());
        if until.insert(key, now + REMEMBERED).is_none() {
            log::info!(snapshotter, registry; "registry does not answer the snapshotter: for a minute no hook waits for layers from it");
        }
    }

    /// Forgets a registry, since it has answered.
    pub(crate) fn answered(&self, snapshotter: &str, registry: &str) {
        let key = (snapshotter.to_owned(), registry.to_owned());
        self.until_each().remove(&key);
    }

    /// Returns the time until which the registry counts as silent; `None` if it does not.
    pub(crate) fn until(&self, snapshotter: &str, registry: &str) -> Option<Instant> {
        let key = (snapshotter.to_owned(), registry.to_owned());
        self.until_each().get(&key).copied()
    }

    fn until_each(&self) -> MutexGuard<'_, HashMap<(String, String), Instant>> {
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
    async fn a_registry_is_silent_for_a_minute_or_until_it_answers() {
        let silent = SilentRegistries::default();
        for registry in ["a.example", "b.example"] {
            silent.found("stargz", registry);
            assert!(silent.until("stargz", registry).is_some());
            assert!(silent.until("soci", registry).is_none());
        }
        silent.answered("stargz", "a.example");
        assert!(silent.until("stargz", "a.example").is_none());
        tokio::time::advance(REMEMBERED).await;
        assert!(silent.until("stargz", "b.example").is_none());
        for n in 0..10 * MAX_ENTRIES {
            silent.found("stargz", &n.to_string());
        }
        assert!(silent.0.lock().len() <= MAX_ENTRIES);
    }
}
