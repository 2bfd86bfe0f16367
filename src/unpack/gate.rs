//! How many unpacks run at the same time, and who goes first.
//!
//! Its queue is as long as there are chains to unpack: each has one flight, whoever asks for it. In
//! the gate of the layers each of the flights that are let in waits with a few.

use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// How much is done at the same time, in the whole process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parallel {
    /// Chains that are unpacked.
    pub images: usize,
    /// Layers that are applied, of whichever chains.
    pub layers: usize,
}

/// Who waits for a piece of work; the later overtakes the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Urgency {
    /// Nobody.
    Background,
    /// Nobody yet, but the image has just come: a pod that it was pulled for is near.
    Arrived,
    /// A pod that will need it, or a person.
    Asked,
    /// A container that is being created: the whole node waits with it.
    Creation,
}

impl Urgency {
    /// Who asked, for metrics.
    pub(super) fn trigger(self) -> &'static str {
        match self {
            Self::Background => "reconcile",
            Self::Arrived => "event",
            Self::Asked => "asked",
            Self::Creation => "creation",
        }
    }
}

/// The urgency of a flight, which rises when somebody joins it who is in more of a hurry.
#[derive(Clone, Debug)]
pub(super) struct Hurry(Arc<AtomicU8>);

impl Hurry {
    pub(super) fn new(urgency: Urgency) -> Self {
        Self(Arc::new(AtomicU8::new(urgency as u8)))
    }

    pub(super) fn raise(&self, urgency: Urgency) {
        self.0.fetch_max(urgency as u8, Ordering::Relaxed);
    }

    /// No less than this one is now.
    pub(super) fn raise_to(&self, other: &Hurry) {
        self.0.fetch_max(other.now(), Ordering::Relaxed);
    }

    pub(super) fn now(&self) -> u8 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A fixed number of places.
#[derive(Debug)]
pub(super) struct Gate(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    places: usize,
    free: usize,
    /// First come, first in the queue; the most urgent leaves it first.
    waiting: Vec<(Hurry, oneshot::Sender<Place>)>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(super) struct Place(Arc<Mutex<Inner>>);

impl Gate {
    pub(super) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            places,
            free: places,
            waiting: Vec::new(),
        })))
    }

    /// Takes the lock, and lets it go.
    pub(super) fn pass(&self) {
        drop(lock(&self.0));
    }

    /// Waits for a place. Cancel safe: a place that nobody takes goes to the next.
    pub(super) async fn enter(&self, hurry: &Hurry) -> Option<Place> {
        let (sender, receiver) = oneshot::channel();
        lock(&self.0).waiting.push((hurry.clone(), sender));
        admit(&self.0);
        receiver.await.ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.0).free += 1;
        admit(&self.0);
    }
}

/// Hands out the free places. Work that nobody waits for never takes the last of several: who comes in a
/// hurry would have to wait for the end of it.
fn admit(gate: &Arc<Mutex<Inner>>) {
    loop {
        let next = {
            let mut inner = lock(gate);
            inner.waiting.retain(|(_, sender)| !sender.is_closed());
            let spare = usize::from(inner.places > 1);
            let queue = inner.waiting.iter().enumerate();
            // The first of the most urgent.
            let best = queue.max_by_key(|(i, (hurry, _))| (hurry.now(), std::cmp::Reverse(*i)));
            let Some((best, urgency)) = best.map(|(i, (hurry, _))| (i, hurry.now())) else {
                return;
            };
            let needed = if urgency <= Urgency::Arrived as u8 {
                1 + spare
            } else {
                1
            };
            if inner.free < needed {
                return;
            }
            inner.free -= 1;
            inner.waiting.remove(best).1
        };
        // Refused where the waiter has gone meanwhile: the place comes back and is handed out again.
        drop(next.send(Place(gate.clone())));
    }
}

fn lock(gate: &Mutex<Inner>) -> MutexGuard<'_, Inner> {
    gate.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;

    fn hurry(urgency: Urgency) -> Hurry {
        Hurry::new(urgency)
    }

    #[tokio::test]
    async fn the_most_urgent_goes_first_and_may_become_so_while_it_waits() {
        let gate = Gate::new(1);
        let place = gate.enter(&hurry(Urgency::Background)).await;
        let (first, second) = (hurry(Urgency::Background), hurry(Urgency::Asked));
        let mut first_waits = Box::pin(gate.enter(&first));
        let mut second_waits = Box::pin(gate.enter(&second));
        assert!(first_waits.as_mut().now_or_never().is_none());
        assert!(second_waits.as_mut().now_or_never().is_none());
        first.raise(Urgency::Creation);
        drop(place);
        assert!(second_waits.as_mut().now_or_never().is_none());
        let place = first_waits.now_or_never().flatten();
        assert!(place.is_some());
        drop(place);
        assert!(second_waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn background_work_leaves_a_place_free() {
        let gate = Gate::new(2);
        let one = gate.enter(&hurry(Urgency::Background)).await;
        let background = hurry(Urgency::Background);
        let mut waits = Box::pin(gate.enter(&background));
        assert!(waits.as_mut().now_or_never().is_none());
        let two = gate
            .enter(&hurry(Urgency::Creation))
            .now_or_never()
            .flatten();
        assert!(two.is_some());
        drop(two);
        assert!(waits.as_mut().now_or_never().is_none());
        drop(one);
        assert!(waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn who_stops_waiting_blocks_nobody() {
        let gate = Gate::new(1);
        let place = gate.enter(&hurry(Urgency::Asked)).await;
        let gone = hurry(Urgency::Creation);
        assert!(Box::pin(gate.enter(&gone)).now_or_never().is_none());
        drop(place);
        assert!(
            gate.enter(&hurry(Urgency::Asked))
                .now_or_never()
                .flatten()
                .is_some()
        );
    }
}
