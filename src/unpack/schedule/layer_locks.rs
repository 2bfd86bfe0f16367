//! Locks of layers within this process. Images share base layers, and each image has its own flight: the first flight
//! locks a shared layer and unpacks it, the others wait and find it committed. The flight that holds a lock inherits the
//! highest priority of all that wait for it, also when that is raised later.

use std::collections::HashMap;
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::OwnedMutexGuard;

use super::priority::Priority;

/// The layers that are being unpacked by this process in one snapshotter, by chain id.
///
/// A flight that holds a lock never waits for a layer above the locked one, so a deadlock is not possible.
#[derive(Debug, Default)]
pub(crate) struct LayerLocks(Mutex<HashMap<String, Weak<Layer>>>);

/// The lock of one layer.
#[derive(Debug, Default)]
struct Layer {
    mutex: Arc<tokio::sync::Mutex<()>>,
    flights: Mutex<Flights>,
}

/// The priorities of the flights at a lock.
#[derive(Debug, Default)]
struct Flights {
    holder: Option<Priority>,
    waiters: Vec<Priority>,
}

/// A flight that waits for a lock, until it is dropped.
struct Waiter<'a> {
    layer: &'a Layer,
    priority: &'a Priority,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        let mut flights = self.layer.flights();
        let this = flights.waiters.iter().position(|it| it.is(self.priority));
        if let Some(this) = this {
            flights.waiters.swap_remove(this);
        }
    }
}

/// The held lock of a layer, until it is dropped.
#[derive(Debug)]
pub(crate) struct LayerLock {
    _guard: OwnedMutexGuard<()>,
    layer: Arc<Layer>,
}

impl Drop for LayerLock {
    fn drop(&mut self) {
        self.layer.flights().holder = None;
    }
}

impl LayerLocks {
    /// Locks a layer. If another flight holds the lock, that flight inherits the priority and `raised` is called, before
    /// the wait. Cancel safe.
    pub(crate) async fn lock(
        &self,
        chain_id: &str,
        priority: &Priority,
        raised: impl Fn(),
    ) -> LayerLock {
        let layer: Arc<Layer> = {
            let mut layer_locks = self.0.lock();
            layer_locks.retain(|_, layer| layer.strong_count() > 0);
            let entry = layer_locks.entry(chain_id.to_owned()).or_default();
            entry.upgrade().unwrap_or_else(|| {
                let layer = Arc::default();
                *entry = Arc::downgrade(&layer);
                layer
            })
        };
        layer.flights().waiters.push(priority.clone());
        let waiter = Waiter {
            layer: &layer,
            priority,
        };
        if layer.flights().holder.is_some() {
            self.inherit();
            raised();
        }
        let guard = layer.mutex.clone().lock_owned().await;
        drop(waiter);
        layer.flights().holder = Some(priority.clone());
        // Others may still wait, with a higher priority.
        if layer.inherit() {
            raised();
        }
        LayerLock {
            _guard: guard,
            layer,
        }
    }

    /// Raises the priority of each flight that holds a lock to that of the flights that wait for it. To be called when a
    /// priority was raised. A holder may wait for another lock, so this is repeated until nothing changes.
    pub(crate) fn inherit(&self) {
        let layers: Vec<_> = {
            let layer_locks = self.0.lock();
            layer_locks.values().filter_map(Weak::upgrade).collect()
        };
        while layers
            .iter()
            .fold(false, |any, layer| layer.inherit() | any)
        {}
    }
}

impl Layer {
    /// Returns whether the holder's priority was raised.
    fn inherit(&self) -> bool {
        let flights = self.flights();
        let Some(holder) = &flights.holder else {
            return false;
        };
        let before = holder.now();
        flights
            .waiters
            .iter()
            .for_each(|waiter| holder.raise_to(waiter));
        holder.now() > before
    }

    fn flights(&self) -> MutexGuard<'_, Flights> {
        self.flights.lock()
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
        let lock = layer_locks.lock("sha256:a", &holder, || ()).await;
        let mut waits = Box::pin(layer_locks.lock("sha256:a", &waiter, || ()));
        assert!(waits.as_mut().now_or_never().is_none());
        assert_eq!(holder.now(), waiter.now());

        // A flight that has released the lock keeps its priority.
        drop(lock);
        drop(waits.await);
        let next = Priority::new(Urgency::Background);
        let before = next.now();
        drop(layer_locks.lock("sha256:a", &next, || ()).await);
        drop(layer_locks.lock("sha256:a", &waiter, || ()).await);
        assert_eq!(next.now(), before);
    }

    /// A creation joins a flight that already waits, and the flight that it waits for waits itself.
    #[tokio::test]
    async fn a_holder_inherits_a_priority_that_is_raised_later() {
        let layer_locks = LayerLocks::default();
        let background = || Priority::new(Urgency::Background);
        let (first, second, third) = (background(), background(), background());
        let _base = layer_locks.lock("sha256:a", &first, || ()).await;
        let _above = layer_locks.lock("sha256:b", &second, || ()).await;
        let mut second_waits = Box::pin(layer_locks.lock("sha256:a", &second, || ()));
        assert!(second_waits.as_mut().now_or_never().is_none());
        let mut third_waits = Box::pin(layer_locks.lock("sha256:b", &third, || ()));
        assert!(third_waits.as_mut().now_or_never().is_none());
        let creation = Priority::new(Urgency::Creation);
        third.raise_to(&creation);
        layer_locks.inherit();
        assert_eq!(
            (first.now(), second.now()),
            (creation.now(), creation.now())
        );

        // A flight that no longer waits passes nothing on.
        drop(third_waits);
        third.raise_to(&Priority::new(Urgency::Creation));
        layer_locks.inherit();
        assert_eq!(second.now(), creation.now());
    }

    /// The lock goes to a flight without a caller, and a creation still waits for it.
    #[tokio::test]
    async fn the_next_holder_inherits_the_priority_of_those_that_still_wait() {
        let layer_locks = LayerLocks::default();
        let background = || Priority::new(Urgency::Background);
        let (first, second, creation) =
            (background(), background(), Priority::new(Urgency::Creation));
        let lock = layer_locks.lock("sha256:a", &first, || ()).await;
        let mut second_waits = Box::pin(layer_locks.lock("sha256:a", &second, || ()));
        let mut third_waits = Box::pin(layer_locks.lock("sha256:a", &creation, || ()));
        assert!(second_waits.as_mut().now_or_never().is_none());
        assert!(third_waits.as_mut().now_or_never().is_none());
        drop(lock);
        let _lock = second_waits.await;
        assert_eq!(second.now(), creation.now());
    }

    #[tokio::test]
    async fn a_holder_whose_priority_is_raised_gets_the_reserved_permit() {
        let (layer_locks, permits) = (LayerLocks::default(), PrioritySemaphore::new(2));
        let background = || Priority::new(Urgency::Background);
        let _other = permits.acquire(&background()).await;
        let holder = background();
        let _lock = layer_locks.lock("sha256:a", &holder, || ()).await;
        let mut enters = Box::pin(permits.acquire(&holder));
        assert!(enters.as_mut().now_or_never().is_none());
        let waiter = Priority::new(Urgency::Creation);
        let waits = layer_locks.lock("sha256:a", &waiter, || permits.wake());
        assert!(waits.now_or_never().is_none());
        assert!(enters.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn a_layer_has_one_lock_at_a_time_and_leaves_no_entry() {
        let (layer_locks, priority) = (LayerLocks::default(), &Priority::new(Urgency::Background));
        let first = layer_locks.lock("sha256:a", priority, || ()).await;
        assert!(
            layer_locks
                .lock("sha256:a", priority, || ())
                .now_or_never()
                .is_none()
        );
        let other = layer_locks.lock("sha256:b", priority, || ());
        assert!(other.now_or_never().is_some());
        drop(first);
        assert!(
            layer_locks
                .lock("sha256:a", priority, || ())
                .now_or_never()
                .is_some()
        );
        drop(layer_locks.lock("sha256:c", priority, || ()).await);
        let left = layer_locks
            .0
            .lock()
            .values()
            .filter(|l| l.strong_count() > 0)
            .count();
        assert_eq!(left, 0);
    }
}
