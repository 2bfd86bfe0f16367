//! Images share base layers, and each has a flight of its own: who comes to a layer first claims it,
//! and whoever comes later waits and finds it there. Who is in a hurry hurries whom he waits for.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::permits::Hurry;

/// The layers that are being unpacked in this process, by snapshotter and chain id.
///
/// Nobody who holds a claim waits for a layer above the claimed one, so they cannot wait for each
/// other in a circle.
#[derive(Debug, Default)]
pub(crate) struct Claims(Mutex<HashMap<Key, Weak<Layer>>>);

/// A snapshotter and a chain id.
type Key = (String, String);

/// A layer's turn.
#[derive(Debug, Default)]
struct Layer {
    turn: Arc<tokio::sync::Mutex<()>>,
    /// Of whoever has it.
    holder: Mutex<Option<Hurry>>,
}

/// A layer that nobody else unpacks, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claim {
    _turn: OwnedMutexGuard<()>,
    layer: Arc<Layer>,
}

impl Drop for Claim {
    fn drop(&mut self) {
        *self.layer.holder() = None;
    }
}

impl Claims {
    /// Waits until nobody else is at this layer; `hurried` is called where whoever is has to hurry now.
    pub(crate) async fn claim(
        &self,
        snapshotter: &str,
        chain_id: &str,
        hurry: &Hurry,
        hurried: impl FnOnce(),
    ) -> Claim {
        let layer: Arc<Layer> = {
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
        let holder = layer.holder().clone();
        if let Some(holder) = holder {
            holder.raise_to(hurry);
            hurried();
        }
        let turn = layer.turn.clone().lock_owned().await;
        *layer.holder() = Some(hurry.clone());
        Claim { _turn: turn, layer }
    }
}

impl Layer {
    fn holder(&self) -> MutexGuard<'_, Option<Hurry>> {
        self.holder.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::unpack::schedule::permits::{Gate, Urgency};

    #[tokio::test]
    async fn whoever_has_a_layer_is_hurried_by_those_who_wait_for_it() {
        let claims = Claims::default();
        let (holder, waiter) = (
            Hurry::new(Urgency::Background),
            Hurry::new(Urgency::Creation),
        );
        let claim = claims.claim("erofs", "sha256:a", &holder, || ()).await;
        let mut waits = Box::pin(claims.claim("erofs", "sha256:a", &waiter, || ()));
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!(holder.now(), waiter.now());

        // Whoever is done with it is left in peace.
        drop(claim);
        drop(waits.await);
        let next = Hurry::new(Urgency::Background);
        let before = next.now();
        drop(claims.claim("erofs", "sha256:a", &next, || ()).await);
        drop(claims.claim("erofs", "sha256:a", &waiter, || ()).await);
        assert_eq!(next.now(), before);
    }

    #[tokio::test]
    async fn whoever_is_hurried_takes_the_place_that_was_left_free() {
        let (claims, gate) = (Claims::default(), Gate::new(2));
        let background = || Hurry::new(Urgency::Background);
        let _other = gate.enter(&background()).await;
        let holder = background();
        let _claim = claims.claim("erofs", "sha256:a", &holder, || ()).await;
        let mut enters = Box::pin(gate.enter(&holder));
        assert!(enters.as_mut().now_or_never().is_none());
        let waiter = Hurry::new(Urgency::Creation);
        let waits = claims.claim("erofs", "sha256:a", &waiter, || gate.wake());
        assert!(waits.now_or_never().is_none());
        assert!(enters.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn a_layer_has_one_claim_at_a_time_and_leaves_nothing() {
        let (claims, hurry) = (Claims::default(), &Hurry::new(Urgency::Background));
        let first = claims.claim("erofs", "sha256:a", hurry, || ()).await;
        assert!(
            claims
                .claim("erofs", "sha256:a", hurry, || ())
                .now_or_never()
                .is_none()
        );
        let others = [("native", "sha256:a"), ("erofs", "sha256:b")];
        for (snapshotter, chain_id) in others {
            assert!(
                claims
                    .claim(snapshotter, chain_id, hurry, || ())
                    .now_or_never()
                    .is_some()
            );
        }
        drop(first);
        assert!(
            claims
                .claim("erofs", "sha256:a", hurry, || ())
                .now_or_never()
                .is_some()
        );
        drop(claims.claim("erofs", "sha256:c", hurry, || ()).await);
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
