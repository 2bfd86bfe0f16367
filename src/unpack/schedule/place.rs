//! The place of a flight among the images that are unpacked at the same time. A flight whose calls do not answer gives
//! its place of the whole process to another flight, so that a snapshotter that hangs holds up only itself.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::FutureExt;
use parking_lot::Mutex;
use tokio::time::Instant;

use super::permits::{Permit, PrioritySemaphore};
use super::priority::Priority;

/// The time without an apply after which a flight gives its place to another one. A `Prepare` takes milliseconds, but in
/// native, which copies all layers below.
const IDLE: Duration = Duration::from_secs(2);

/// The places of images in one snapshotter: a number for the snapshotter, and a number for the whole process.
#[derive(Debug)]
pub(crate) struct Places {
    here: PrioritySemaphore,
    /// The flights with a place of the snapshotter that wait for one of the whole process.
    next: Mutex<Vec<Priority>>,
    all: Arc<PrioritySemaphore>,
}

/// The place of one flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Place<'a> {
    places: &'a Places,
    priority: &'a Priority,
    _here: Permit,
    state: Mutex<State>,
    /// Locked by a layer that takes the permit of the whole process back: the other layers of the flight wait for it.
    taking: tokio::sync::Mutex<()>,
}

#[derive(Debug)]
struct State {
    /// The permit of the whole process; `None` if none was needed, and after it was given to another flight.
    permit: Option<Permit>,
    /// The number of running applies.
    applies: usize,
    /// The end of the last apply.
    since: Instant,
}

/// An apply of a flight, until it is dropped.
#[derive(Debug)]
pub(crate) struct Applying<'a>(&'a Mutex<State>);

/// A flight with a place of the snapshotter that waits for one of the whole process, until it is dropped.
struct Next<'a> {
    places: &'a Places,
    priority: &'a Priority,
}

impl Drop for Next<'_> {
    fn drop(&mut self) {
        let mut next = self.places.next.lock();
        next.retain(|next| !next.is(self.priority));
    }
}

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.applies -= 1;
        state.since = Instant::now();
    }
}

impl Places {
    /// Places for a snapshotter. `all` is shared by all snapshotters.
    pub(crate) fn new(number: usize, all: Arc<PrioritySemaphore>) -> Self {
        Self {
            here: PrioritySemaphore::new(number),
            next: Mutex::default(),
            all,
        }
    }

    /// Waits for a place. Cancel safe. A flight that `applies` no layer needs a place in its snapshotter only: its calls
    /// take milliseconds, and the unpacks of other snapshotters do not delay them.
    pub(crate) async fn acquire<'a>(
        &'a self,
        priority: &'a Priority,
        applies: bool,
    ) -> Option<Place<'a>> {
        let mut waits = pin!(self.here.acquire(priority));
        let here = match waits.as_mut().now_or_never() {
            Some(here) => here?,
            None => {
                self.inherit();
                waits.await?
            }
        };
        let state = State {
            permit: match applies {
                true => Some(self.acquire_of_all(priority).await?),
                false => None,
            },
            applies: 0,
            since: Instant::now(),
        };
        Some(Place {
            places: self,
            priority,
            _here: here,
            state: Mutex::new(state),
            taking: tokio::sync::Mutex::default(),
        })
    }

    /// Waits for a place of the whole process, with a place of the snapshotter. Inherits the priority of the flights that
    /// wait for a place of the snapshotter meanwhile.
    async fn acquire_of_all(&self, priority: &Priority) -> Option<Permit> {
        self.next.lock().push(priority.clone());
        let _next = Next {
            places: self,
            priority,
        };
        self.inherit();
        self.all.acquire(priority).await
    }

    /// Raises the flights that have a place of the snapshotter, and wait for one of the whole process, to the priority of
    /// those that wait for a place of the snapshotter.
    fn inherit(&self) {
        if let Some(highest) = self.here.highest() {
            self.next
                .lock()
                .iter()
                .for_each(|next| next.raise_to(&highest));
            self.all.wake();
        }
    }

    /// Looks at the waiters again, since the priority of one may have been raised.
    pub(crate) fn wake(&self) {
        self.here.wake();
        self.inherit();
        self.all.wake();
    }

    /// Takes each lock and releases it.
    pub(crate) fn probe_locks(&self) {
        self.here.probe_locks();
        self.all.probe_locks();
    }
}

impl Place<'_> {
    /// Marks the begin of an apply. Waits for a place of the whole process, if this one was given to another flight.
    pub(crate) async fn apply(&self) -> Applying<'_> {
        let is_held = |state: &mut State| {
            state.applies += usize::from(state.permit.is_some());
            state.permit.is_some()
        };
        if !is_held(&mut self.state.lock()) {
            let _taking = self.taking.lock().await;
            // Another layer of this flight may have taken it back.
            if !is_held(&mut self.state.lock()) {
                let permit = self.places.all.acquire(self.priority).await;
                let mut state = self.state.lock();
                state.permit = permit;
                state.applies += 1;
            }
        }
        Applying(&self.state)
    }

    /// Looks at the waiters for a place again, since the priority of one may have been raised.
    pub(crate) fn wake(&self) {
        self.places.wake();
    }

    /// Does the work of the flight. While it applies nothing for [`IDLE`], its place is given to another flight.
    pub(crate) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = std::pin::pin!(work);
        loop {
            let waited = tokio::time::timeout(IDLE, work.as_mut()).await;
            match waited {
                Ok(done) => return done,
                Err(_) => self.give_if_idle(),
            }
        }
    }

    fn give_if_idle(&self) {
        let given = {
            let mut state = self.state.lock();
            let is_idle = state.applies == 0 && state.since.elapsed() >= IDLE;
            if is_idle { state.permit.take() } else { None }
        };
        // Dropped without the lock: the next flight is woken.
        drop(given);
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;
    use crate::unpack::schedule::priority::Urgency;

    /// Returns the places of two snapshotters, of which one image is unpacked at a time.
    fn two() -> [Places; 2] {
        let all = Arc::new(PrioritySemaphore::new(1));
        [Places::new(1, all.clone()), Places::new(1, all)]
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_whose_calls_hang_holds_up_only_its_snapshotter() {
        let [nydus, erofs] = two();
        let asked = || Priority::new(Urgency::Asked);
        let (hanging, other, same) = (asked(), asked(), asked());
        let place = nydus.acquire(&hanging, true).await.unwrap();
        assert!(erofs.acquire(&other, true).now_or_never().is_none());
        let hangs = tokio::time::timeout(2 * IDLE, place.during(std::future::pending::<()>()));
        hangs.await.unwrap_err();
        let elsewhere = erofs.acquire(&other, true).now_or_never().flatten();
        assert!(elsewhere.is_some());
        assert!(nydus.acquire(&same, true).now_or_never().is_none());

        // The call answers: the flight waits for a place before it applies.
        assert!(place.apply().now_or_never().is_none());
        drop(elsewhere);
        let applying = place.apply().now_or_never();
        assert!(applying.is_some());
        assert!(erofs.acquire(&other, true).now_or_never().is_none());
    }

    /// A flight without a caller has the place of the snapshotter, and waits for one of the process.
    #[tokio::test(start_paused = true)]
    async fn a_creation_raises_the_flight_that_is_next_in_its_snapshotter() {
        let all = Arc::new(PrioritySemaphore::new(2));
        let [here, there] = [1, 2].map(|number| Places::new(number, all.clone()));
        let (ahead, elsewhere) = (
            Priority::new(Urgency::Background),
            Priority::new(Urgency::Asked),
        );
        let _busy = there.acquire(&elsewhere, true).await.unwrap();
        let mut next = Box::pin(here.acquire(&ahead, true));
        // The last place of the process is for work with a caller.
        assert!(next.as_mut().now_or_never().is_none());
        let creation = Priority::new(Urgency::Creation);
        let mut waits = Box::pin(here.acquire(&creation, true));
        assert!(waits.as_mut().now_or_never().is_none());
        let place = next.now_or_never().flatten();
        assert!(place.is_some());
        drop(place);
        assert!(waits.now_or_never().flatten().is_some());
    }

    /// Both layers of a flight that gave its place away begin to apply.
    #[tokio::test(start_paused = true)]
    async fn the_layers_of_a_flight_take_one_place_back() {
        let [nydus, _] = two();
        let priority = Priority::new(Urgency::Asked);
        let place = nydus.acquire(&priority, true).await.unwrap();
        let hangs = tokio::time::timeout(2 * IDLE, place.during(std::future::pending::<()>()));
        hangs.await.unwrap_err();
        let other = nydus.all.acquire(&priority).await;
        let mut layers = [Box::pin(place.apply()), Box::pin(place.apply())];
        assert!(
            layers
                .iter_mut()
                .all(|layer| layer.as_mut().now_or_never().is_none())
        );
        drop(other);
        let applying = layers.map(|layer| layer.now_or_never());
        assert!(applying.iter().all(Option::is_some));
    }

    #[tokio::test(start_paused = true)]
    async fn a_flight_that_applies_keeps_its_place() {
        let [erofs, native] = two();
        let (first, other) = (Priority::new(Urgency::Asked), Priority::new(Urgency::Asked));
        let place = erofs.acquire(&first, true).await.unwrap();
        let work = async {
            let _applying = place.apply().await;
            tokio::time::sleep(10 * IDLE).await;
        };
        let looks = async {
            tokio::time::sleep(5 * IDLE).await;
            assert!(native.acquire(&other, true).now_or_never().is_none());
        };
        tokio::join!(place.during(work), looks);
    }

    #[tokio::test]
    async fn a_flight_that_applies_no_layer_does_not_wait_for_other_snapshotters() {
        let all = Arc::new(PrioritySemaphore::new(1));
        let (erofs, nydus) = (Places::new(1, all.clone()), Places::new(1, all));
        let priority = || Priority::new(Urgency::Background);
        let (unpack, guest_pull, next) = (priority(), priority(), priority());
        let place = erofs.acquire(&unpack, true).await;
        assert!(place.is_some());
        let pulled = nydus.acquire(&guest_pull, false).now_or_never().flatten();
        assert!(pulled.is_some());
        // Its own snapshotter has a limit.
        assert!(nydus.acquire(&next, false).now_or_never().is_none());
        // A layer that it applies nevertheless needs a place.
        let pulled = pulled.unwrap();
        assert!(pulled.apply().now_or_never().is_none());
        drop(place);
        assert!(pulled.apply().now_or_never().is_some());
    }
}
