//! A semaphore with priorities: it limits how many unpacks run at the same time, and the most urgent waiter is next.
//!
//! The queue of the images holds one entry per chain: all callers of a chain share one flight. The queue of the
//! layers holds a few entries for each flight that has a permit.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::priority::Priority;

/// The limits of the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Chains that are unpacked at the same time.
    pub images: usize,
    /// Layers that are applied at the same time, of all chains.
    pub layers: usize,
}

/// A fixed number of permits.
#[derive(Debug)]
pub(crate) struct PrioritySemaphore(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    permits: usize,
    free: usize,
    /// The most urgent waiter gets the next permit.
    waiting: Vec<(Priority, oneshot::Sender<Permit>)>,
}

/// A permit, until it is dropped.
#[derive(Debug)]
pub(crate) struct Permit(Arc<Mutex<Inner>>);

impl PrioritySemaphore {
    pub(crate) fn new(permits: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            permits,
            free: permits,
            waiting: Vec::new(),
        })))
    }

    /// Takes the lock and releases it.
    pub(crate) fn probe_locks(&self) {
        drop(lock(&self.0));
    }

    /// Looks at the waiters again, since the priority of one may have been raised, and hands out free permits.
    pub(crate) fn wake(&self) {
        admit(&self.0);
    }

    /// Returns the priority of the most urgent waiter.
    pub(crate) fn highest(&self) -> Option<Priority> {
        let inner = lock(&self.0);
        let waiting = inner
            .waiting
            .iter()
            .filter(|(_, sender)| !sender.is_closed());
        let highest = waiting.max_by_key(|(priority, _)| priority.now());
        highest.map(|(priority, _)| priority.clone())
    }

    /// Waits for a permit. Cancel safe: a permit that its waiter no longer receives goes to the next one.
    pub(crate) async fn acquire(&self, priority: &Priority) -> Option<Permit> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0).waiting.push((priority.clone(), sender));
        admit(&self.0);
        receiver.await.ok()
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        lock(&self.0).free += 1;
        admit(&self.0);
    }
}

/// Hands out the free permits. Of several permits, work ahead never gets the last one: urgent work would have to wait
/// until work ahead ends.
fn admit(permits: &Arc<Mutex<Inner>>) {
    loop {
        let next = {
            let mut inner = lock(permits);
            inner.waiting.retain(|(_, sender)| !sender.is_closed());
            let spare = usize::from(inner.permits > 1);
            let queue = inner.waiting.iter().enumerate();
            // Waiters with the same priority, such as the layers of a flight, are served in their order.
            let best =
                queue.max_by_key(|(i, (priority, _))| (priority.now(), std::cmp::Reverse(*i)));
            let Some((best, is_ahead)) = best.map(|(i, (priority, _))| (i, priority.is_ahead()))
            else {
                return;
            };
            let needed = if is_ahead { 1 + spare } else { 1 };
            if inner.free < needed {
                return;
            }
            inner.free -= 1;
            inner.waiting.remove(best).1
        };
        // If the waiter has gone meanwhile, the permit is dropped here and handed out again.
        drop(next.send(Permit(permits.clone())));
    }
}

fn lock(permits: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    permits.lock()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::unpack::schedule::priority::Urgency;
    use futures::FutureExt;

    fn priority(urgency: Urgency) -> Priority {
        Priority::new(urgency)
    }

    #[tokio::test]
    async fn the_most_urgent_waiter_is_next_even_if_raised_while_it_waits() {
        let permits = PrioritySemaphore::new(1);
        let permit = permits.acquire(&priority(Urgency::Background)).await;
        let (first, second) = (priority(Urgency::Background), priority(Urgency::Asked));
        let mut first_waits = Box::pin(permits.acquire(&first));
        let mut second_waits = Box::pin(permits.acquire(&second));
        assert!(first_waits.as_mut().now_or_never().is_none());
        assert!(second_waits.as_mut().now_or_never().is_none());
        first.raise_to(&priority(Urgency::Creation));
        drop(permit);
        assert!(second_waits.as_mut().now_or_never().is_none());
        let permit = first_waits.now_or_never().flatten();
        assert!(permit.is_some());
        drop(permit);
        assert!(second_waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn of_equal_urgency_the_first_request_is_next() {
        let permits = PrioritySemaphore::new(1);
        let permit = permits.acquire(&priority(Urgency::Asked)).await;
        let (older, newer) = (priority(Urgency::Arrived), priority(Urgency::Arrived));
        let mut older_waits = Box::pin(permits.acquire(&older));
        let mut newer_waits = Box::pin(permits.acquire(&newer));
        assert!(older_waits.as_mut().now_or_never().is_none());
        assert!(newer_waits.as_mut().now_or_never().is_none());
        // A pod requests the newer one first. The order of the raises is chance and must not matter.
        let (first, second) = (priority(Urgency::Asked), priority(Urgency::Asked));
        older.raise_to(&second);
        newer.raise_to(&first);
        drop(permit);
        assert!(older_waits.as_mut().now_or_never().is_none());
        assert!(newer_waits.now_or_never().flatten().is_some());
        assert!(older_waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn background_work_leaves_one_permit_free() {
        let permits = PrioritySemaphore::new(2);
        let one = permits.acquire(&priority(Urgency::Background)).await;
        let background = priority(Urgency::Background);
        let mut waits = Box::pin(permits.acquire(&background));
        assert!(waits.as_mut().now_or_never().is_none());
        let two = permits
            .acquire(&priority(Urgency::Creation))
            .now_or_never()
            .flatten();
        assert!(two.is_some());
        drop(two);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(one);
        assert!(waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn work_that_becomes_urgent_gets_the_reserved_permit() {
        let permits = PrioritySemaphore::new(2);
        let _one = permits.acquire(&priority(Urgency::Background)).await;
        let second = priority(Urgency::Background);
        let mut waits = Box::pin(permits.acquire(&second));
        assert!(waits.as_mut().now_or_never().is_none());
        second.raise_to(&priority(Urgency::Creation));
        permits.wake();
        assert!(waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn a_cancelled_waiter_blocks_no_other() {
        let permits = PrioritySemaphore::new(1);
        let permit = permits.acquire(&priority(Urgency::Asked)).await;
        let gone = priority(Urgency::Creation);
        assert!(Box::pin(permits.acquire(&gone)).now_or_never().is_none());
        drop(permit);
        assert!(
            permits
                .acquire(&priority(Urgency::Asked))
                .now_or_never()
                .flatten()
                .is_some()
        );
    }
}
