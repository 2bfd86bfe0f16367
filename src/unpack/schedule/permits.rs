//! How many unpacks run at the same time, and who goes first.
//!
//! Its queue is as long as there are chains to unpack: each has one flight, whoever asks for it. In
//! the gate of the layers each of the flights that are let in waits with a few.

use std::sync::atomic::{AtomicU64, Ordering};
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
    pub(crate) fn trigger(self) -> &'static str {
        match self {
            Self::Background => "reconcile",
            Self::Arrived => "event",
            Self::Asked => "asked",
            Self::Creation => "creation",
        }
    }
}

/// The urgency of a flight, which rises when somebody joins it who is in more of a hurry; and since
/// when it has that: of two that are as urgent, the one that became so first goes first. Whoever asks for
/// several asks in the order in which they are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Hurry(Arc<AtomicU64>);

/// Bits below the urgency: they count down with each that is asked for.
const SINCE: u32 = 56;

impl Hurry {
    pub(crate) fn new(urgency: Urgency) -> Self {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let left = (1 << SINCE) - 1 - asked;
        Self(Arc::new(AtomicU64::new((urgency as u64) << SINCE | left)))
    }

    /// No less than this one is now.
    pub(crate) fn raise_to(&self, other: &Hurry) {
        self.0.fetch_max(other.now(), Ordering::Relaxed);
    }

    /// More is more urgent.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Nobody waits for it.
    pub(crate) fn is_ahead(&self) -> bool {
        self.now() >> SINCE <= Urgency::Arrived as u64
    }
}

/// A fixed number of places.
#[derive(Debug)]
pub(crate) struct Gate(Arc<Mutex<Inner>>);

#[derive(Debug)]
struct Inner {
    places: usize,
    free: usize,
    /// The most urgent leaves it first.
    waiting: Vec<(Hurry, oneshot::Sender<Place>)>,
}

/// A place, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place(Arc<Mutex<Inner>>);

impl Gate {
    pub(crate) fn new(places: usize) -> Self {
        Self(Arc::new(Mutex::new(Inner {
            places,
            free: places,
            waiting: Vec::new(),
        })))
    }

    /// Takes the lock, and lets it go.
    pub(crate) fn pass(&self) {
        drop(lock(&self.0));
    }

    /// Somebody who waits may be in more of a hurry than before, and may take what is free now.
    pub(crate) fn wake(&self) {
        admit(&self.0);
    }

    /// Waits for a place. Cancel safe: a place that nobody takes goes to the next.
    pub(crate) async fn enter(&self, hurry: &Hurry) -> Option<Place> {
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
            // The first that came, of several with one hurry: the layers of a flight.
            let best = queue.max_by_key(|(i, (hurry, _))| (hurry.now(), std::cmp::Reverse(*i)));
            let Some((best, is_ahead)) = best.map(|(i, (hurry, _))| (i, hurry.is_ahead())) else {
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
        first.raise_to(&hurry(Urgency::Creation));
        drop(place);
        assert!(second_waits.as_mut().now_or_never().is_none());
        let place = first_waits.now_or_never().flatten();
        assert!(place.is_some());
        drop(place);
        assert!(second_waits.now_or_never().flatten().is_some());
    }

    #[tokio::test]
    async fn what_was_asked_for_first_goes_first_wherever_it_waited() {
        let gate = Gate::new(1);
        let place = gate.enter(&hurry(Urgency::Asked)).await;
        let (older, newer) = (hurry(Urgency::Arrived), hurry(Urgency::Arrived));
        let mut older_waits = Box::pin(gate.enter(&older));
        let mut newer_waits = Box::pin(gate.enter(&newer));
        assert!(older_waits.as_mut().now_or_never().is_none());
        assert!(newer_waits.as_mut().now_or_never().is_none());
        // A pod comes, and wants the newer one first. That the older hears of it earlier is chance.
        let (first, second) = (hurry(Urgency::Asked), hurry(Urgency::Asked));
        older.raise_to(&second);
        newer.raise_to(&first);
        drop(place);
        assert!(older_waits.as_mut().now_or_never().is_none());
        assert!(newer_waits.now_or_never().flatten().is_some());
        assert!(older_waits.now_or_never().flatten().is_some());
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
    async fn what_becomes_urgent_takes_the_place_that_was_left_free() {
        let gate = Gate::new(2);
        let _one = gate.enter(&hurry(Urgency::Background)).await;
        let second = hurry(Urgency::Background);
        let mut waits = Box::pin(gate.enter(&second));
        assert!(waits.as_mut().now_or_never().is_none());
        second.raise_to(&hurry(Urgency::Creation));
        gate.wake();
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
