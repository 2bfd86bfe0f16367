//! How many unpacks run at the same time, and who goes first.
//!
//! Its queue is as long as there are chains to unpack: each has one flight, whoever asks for it. In
//! the gate of the layers each of the flights that are let in waits with a few.

use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};
use tokio::sync::oneshot;

use super::priority::Priority;

/// How much is done at the same time, in the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Chains that are unpacked.
    pub images: usize,
    /// Layers that are applied, of whichever chains.
    pub layers: usize,
}

/// A fixed number of places.
#[derive(Debug)]
pub(crate) struct PrioritySemaphore(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    permits: usize,
    free: usize,
    /// The most urgent leaves it first.
    waiting: Vec<(Priority, oneshot::Sender<Permit>)>,
}

/// A place, until it is dropped.
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

    /// Takes the lock, and lets it go.
    pub(crate) fn probe_locks(&self) {
        drop(lock(&self.0));
    }

    /// Somebody who waits may be in more of a hurry than before, and may take what is free now.
    pub(crate) fn wake(&self) {
        admit(&self.0);
    }

    /// Waits for a place. Cancel safe: a place that nobody takes goes to the next.
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

/// Hands out the free places. Work that nobody waits for never takes the last of several: who comes in a
/// hurry would have to wait for the end of it.
fn admit(permits: &Arc<Mutex<Inner>>) {
    loop {
        let next = {
            let mut inner = lock(permits);
            inner.waiting.retain(|(_, sender)| !sender.is_closed());
            let spare = usize::from(inner.permits > 1);
            let queue = inner.waiting.iter().enumerate();
            // The first that came, of several with one hurry: the layers of a flight.
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
        // Refused where the waiter has gone meanwhile: the place comes back and is handed out again.
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
    async fn the_most_urgent_goes_first_and_may_become_so_while_it_waits() {
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
    async fn what_was_asked_for_first_goes_first_wherever_it_waited() {
        let permits = PrioritySemaphore::new(1);
        let permit = permits.acquire(&priority(Urgency::Asked)).await;
        let (older, newer) = (priority(Urgency::Arrived), priority(Urgency::Arrived));
        let mut older_waits = Box::pin(permits.acquire(&older));
        let mut newer_waits = Box::pin(permits.acquire(&newer));
        assert!(older_waits.as_mut().now_or_never().is_none());
        assert!(newer_waits.as_mut().now_or_never().is_none());
        // A pod comes, and wants the newer one first. That the older hears of it earlier is chance.
        let (first, second) = (priority(Urgency::Asked), priority(Urgency::Asked));
        older.raise_to(&second);
        newer.raise_to(&first);
        drop(permit);
        assert!(older_waits.as_mut().now_or_never().is_none());
        assert!(newer_waits.now_or_never().flatten().is_some());
        assert!(older_waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn background_work_leaves_a_place_free() {
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
    async fn what_becomes_urgent_takes_the_place_that_was_left_free() {
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
    async fn who_stops_waiting_blocks_nobody() {
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
