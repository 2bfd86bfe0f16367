//! Locks of layers within this process. Images share base layers, and each image has its own flight: the first flight
//! locks a shared layer and unpacks it, the others wait and find it committed. A waiter passes its priority on to the
//! flight that holds the lock.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedMutexGuard;

use super::priority::Priority;

/// The layers that are being unpacked in this process, by snapshotter and chain id.
///
/// A flight that holds a lock never waits for a layer above the locked one, so a deadlock is not possible.
#[derive(Debug, Default)]
pub(crate) struct LayerLocks(Mutex<HashMap<Key, Weak<Layer>>>);

/// A snapshotter and a chain id.
type Key = (String, String);

/// The lock of one layer.
#[derive(Debug, Default)]
struct Layer {
    mutex: Arc<tokio::sync::Mutex<()>>,
    /// The priority of the flight that holds the lock.
    holder: Mutex<Option<Priority>>,
}

/// The held lock of a layer, until it is dropped.
#[derive(Debug)]
pub(crate) struct LayerLock {
    _guard: OwnedMutexGuard<()>,
    layer: Arc<Layer>,
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        *self.layer.holder() = None;
    }
}

impl LayerLocks {
    /// Locks a layer. If another flight holds the lock, that flight's priority is raised and `raised` is called, before
    /// the wait.
    pub(crate) async fn lock(
        &self,
        snapshotter: &str,
        chain_id: &str,
        priority: &Priority,
        raised: impl FnOnce(),
    ) -> LayerLock {
        let layer: Arc<Layer> = {
            let mut layer_locks = self.0.lock();
            layer_locks.retain(|_, layer| layer.strong_count() > 0);
            let key = (snapshotter.to_owned(), chain_id.to_owned());
            let entry = layer_locks.entry(key).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let layer = Arc::default();
                *entry = Arc::downgrade(&layer);
                layer
            })
        };
        let holder = layer.holder().clone();
        if let Some(holder) = holder {
            holder.raise_to(priority);
            raised();
        }
        let guard = layer.mutex.clone().lock_owned().await;
        *layer.holder() = Some(priority.clone());
        LayerLock {
            _guard: guard,
            layer,
        }
    }
}

impl Layer {
    fn holder(&self) -> MutexGuard<'_, Option<Priority>> {
        self.holder.lock()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::unpack::schedule::permits::PrioritySemaphore;
    use crate::unpack::schedule::priority::Urgency;

    #[tokio::test]
    async fn a_waiter_raises_the_priority_of_the_holder() {
        let layer_locks = LayerLocks::default();
        let (holder, waiter) = (
            Priority::new(Urgency::Background),
            Priority::new(Urgency::Creation),
        );
        let lock = layer_locks.lock("erofs", "sha256:a", &holder, || ()).await;
        let mut waits = Box::pin(layer_locks.lock("erofs", "sha256:a", &waiter, || ()));
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!(holder.now(), waiter.now());

        // A flight that has released the lock keeps its priority.
        drop(lock);
        drop(waits.await);
        let next = Priority::new(Urgency::Background);
        let before = next.now();
        drop(layer_locks.lock("erofs", "sha256:a", &next, || ()).await);
        drop(layer_locks.lock("erofs", "sha256:a", &waiter, || ()).await);
        assert_eq!(next.now(), before);
    }

    #[tokio::test]
    async fn a_holder_whose_priority_is_raised_gets_the_reserved_permit() {
        let (layer_locks, permits) = (LayerLocks::default(), PrioritySemaphore::new(2));
        let background = || Priority::new(Urgency::Background);
        let _other = permits.acquire(&background()).await;
        let holder = background();
        let _lock = layer_locks.lock("erofs", "sha256:a", &holder, || ()).await;
        let mut enters = Box::pin(permits.acquire(&holder));
        assert!(enters.as_mut().now_or_never().is_none());
        let waiter = Priority::new(Urgency::Creation);
        let waits = layer_locks.lock("erofs", "sha256:a", &waiter, || permits.wake());
        assert!(waits.now_or_never().is_none());
        assert!(enters.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn a_layer_has_one_lock_at_a_time_and_leaves_no_entry() {
        let (layer_locks, priority) = (LayerLocks::default(), &Priority::new(Urgency::Background));
        let first = layer_locks.lock("erofs", "sha256:a", priority, || ()).await;
        assert!(
            layer_locks
                .lock("erofs", "sha256:a", priority, || ())
                .now_or_never()
                .is_none()
        );
        let others = [("native", "sha256:a"), ("erofs", "sha256:b")];
        for (snapshotter, chain_id) in others {
            assert!(
                layer_locks
                    .lock(snapshotter, chain_id, priority, || ())
                    .now_or_never()
                    .is_some()
            );
        }
        drop(first);
        assert!(
            layer_locks
                .lock("erofs", "sha256:a", priority, || ())
                .now_or_never()
                .is_some()
        );
        drop(layer_locks.lock("erofs", "sha256:c", priority, || ()).await);
        let left = layer_locks
            .0
            .lock()
            .values()
            .filter(|l| l.strong_count() > 0)
            .count();
        assert_eq!(left, 0);
    }
}
