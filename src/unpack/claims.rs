//! Images share base layers, and each has a flight of its own: who comes to a layer first claims it,
//! and whoever comes later waits and finds it there.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

/// The layers that are being unpacked in this process, by snapshotter and chain id.
///
/// Nobody who holds a claim waits for a layer above the claimed one, so they cannot wait for each
/// other in a circle.
#[derive(Debug, Default)]
pub(super) struct Claims(Mutex<HashMap<Key, Weak<Lock>>>);

/// A snapshotter and a chain id.
type Key = (String, String);

type Lock = tokio::sync::Mutex<()>;

/// A layer that nobody else unpacks, until it is dropped.
pub(super) type Claim = OwnedMutexGuard<()>;

impl Claims {
    /// Waits until nobody else is at this layer.
    pub(super) async fn claim(&self, snapshotter: &str, chain_id: &str) -> Claim {
        let layer = {
            let mut claims = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            claims.retain(|_, layer| layer.strong_count() > 0);
            let key = (snapshotter.to_owned(), chain_id.to_owned());
            let entry = claims.entry(key).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let layer = Arc::default();
                *entry = Arc::downgrade(&layer);
                layer
            })
        };
        layer.lock_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_layer_has_one_claim_at_a_time_and_leaves_nothing() {
        let claims = Claims::default();
        let first = claims.claim("erofs", "sha256:a").await;
        assert!(claims.claim("erofs", "sha256:a").now_or_never().is_none());
        let others = [("native", "sha256:a"), ("erofs", "sha256:b")];
        for (snapshotter, chain_id) in others {
            assert!(claims.claim(snapshotter, chain_id).now_or_never().is_some());
        }
        drop(first);
        assert!(claims.claim("erofs", "sha256:a").now_or_never().is_some());
        drop(claims.claim("erofs", "sha256:c").await);
        let left = claims
            .0
            .lock()
            .unwrap()
            .values()
            .filter(|l| l.strong_count() > 0)
            .count();
        assert_eq!(left, 0);
    }
}
