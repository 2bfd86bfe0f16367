//! What is made ready before anybody asks: at the start of a session and when it is asked for, what
//! is in the store; afterwards, what arrives.
//!
//! A hook comes too late for the pause image, and holds the whole node while it waits. So most of the
//! work is done here, with nobody waiting: pinned images first, then what each snapshotter's eager set
//! holds. Nothing here is urgent: whoever asks overtakes it.

mod arrivals;
mod eager;
mod existing;
mod pulls;
mod queue;
mod reconcile;
mod room;
#[cfg(test)]
mod tests;
mod volumes;
mod watch;

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch as latest;

use crate::handlers::Handlers;
use crate::node::Node;
use crate::unpack::{Error, Outcome, Request, Urgency, Want};

use eager::Place;
pub use existing::Existing;
use pulls::Pulls;
use queue::Queue;
pub use reconcile::MAX_SNAPSHOTS;
use room::Room;
pub use volumes::image_volume;

/// Images of a snapshotter that a new pod pushes ahead: those that came last. A pod has a handful of
/// containers, and the rest is not for it.
const MAX_PUSHED: usize = 8;

/// The work ahead, for one session with the runtime.
pub struct Ahead {
    node: Arc<Node>,
    queue: Queue,
    room: Room,
    pulls: Pulls,
    /// As they were found by the last reconcile; `None` before the first.
    places: latest::Sender<Option<Vec<Place>>>,
    /// The images of containers, as their annotations name them.
    used: Mutex<HashSet<String>>,
    unready: Mutex<Unready>,
}

/// What is being made ready in which snapshotter, or waits for it, in the order of arrival.
type Unready = Vec<(String, Want)>;

impl Ahead {
    /// Begins, and goes on until the node's next session begins.
    pub fn begin(node: &Arc<Node>) -> Arc<Self> {
        Self::with(node, Room::new(node.live_config()))
    }

    fn with(node: &Arc<Node>, room: Room) -> Arc<Self> {
        let (queue, arrivals) = queue::bounded();
        let ahead = Arc::new(Self {
            room,
            node: node.clone(),
            queue,
            pulls: Pulls::default(),
            places: latest::Sender::new(None),
            used: Mutex::default(),
            unready: Mutex::default(),
        });
        node.in_session(watch::run(ahead.clone()));
        node.in_session(arrivals::run(ahead.clone(), arrivals));
        node.in_session(reconcile::run(ahead.clone()));
        ahead
    }

    /// In the background: has the images of these containers ready for the next ones.
    pub fn check_existing(
        self: &Arc<Self>,
        existing: impl FnOnce(&Handlers) -> Vec<Existing> + Send + 'static,
    ) {
        let ahead = self.clone();
        self.node.in_session(async move {
            existing::check(&ahead, existing).await;
        });
    }

    /// In the background: has an image that a container mounts as a volume ready for the next one.
    pub fn volume(self: &Arc<Self>, snapshotter: &str, target: String) {
        let (ahead, snapshotter) = (self.clone(), snapshotter.to_owned());
        self.node.in_session(async move {
            volumes::make_ready(&ahead, &snapshotter, &target).await;
        });
    }

    /// Images of this name are wanted before those that no container has.
    pub fn is_used(&self, image: &str) {
        self.lock(&self.used).insert(image.to_owned());
    }

    /// The eager images of a snapshotter that are not ready yet, as far as that is known: the last
    /// that came first.
    pub fn unready_in(&self, snapshotter: &str) -> Vec<Want> {
        let unready = self.lock(&self.unready);
        let here = unready.iter().rev().filter(|(s, _)| s == snapshotter);
        here.take(MAX_PUSHED)
            .map(|(_, want)| want.clone())
            .collect()
    }

    /// One piece of the work, known to whoever asks meanwhile.
    async fn make_ready(&self, snapshotter: &str, want: Want, urgency: Urgency) -> Outcome {
        let _entry = Entry::new(self, snapshotter, &want);
        let request = Request {
            want,
            snapshotter: snapshotter.to_owned(),
            urgency,
        };
        let outcome = self.node.engine.ensure(request).outcome().await;
        if let Err(e) = &outcome {
            self.node.engine.replace_if_in_use(e, snapshotter);
        }
        outcome
    }

    /// The snapshotters that are kept, as soon as they are known.
    async fn places(&self) -> Vec<Place> {
        let mut places = self.places.subscribe();
        let known = places.wait_for(Option::is_some).await;
        known
            .ok()
            .and_then(|places| places.clone())
            .unwrap_or_default()
    }

    fn used(&self) -> HashSet<String> {
        self.lock(&self.used).clone()
    }

    fn lock<'a, T>(&self, mutex: &'a Mutex<T>) -> MutexGuard<'a, T> {
        mutex.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// An image that is on its way into a snapshotter.
struct Entry<'a> {
    ahead: &'a Ahead,
    entry: (String, Want),
}

impl<'a> Entry<'a> {
    fn new(ahead: &'a Ahead, snapshotter: &str, want: &Want) -> Self {
        let entry = (snapshotter.to_owned(), want.clone());
        ahead.lock(&ahead.unready).push(entry.clone());
        Self { ahead, entry }
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        let mut unready = self.ahead.lock(&self.ahead.unready);
        if let Some(at) = unready.iter().position(|entry| *entry == self.entry) {
            unready.remove(at);
        }
    }
}

/// Whether it is worth a line that an image could not be made ready ahead: who needs it will hear of
/// it; what is left out or stopped is no failure, and what is in use is replaced later.
fn is_news(error: &Error) -> bool {
    let goes_on = matches!(error, Error::Stopped(_) | Error::InUse { .. });
    !error.is_left_out() && !goes_on && error.unreachable().is_none()
}
