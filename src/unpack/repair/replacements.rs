//! The background replacement of chains in use. Each snapshotter has one queue with one task. A round of the task reads
//! all snapshots once, and tries only the images whose chain nothing uses any more. A round runs when a user of such a
//! chain is removed, and on a timer.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::users::Users;
use crate::containerd::Containerd;
use crate::image;
use crate::retry;
use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::schedule::progress::{Done, Outcome};
use crate::unpack::target::images::Images;

/// The longest pause between the rounds after an image was added. They begin quickly, since containerd removes the
/// snapshot of a rejected container within 0.2 s, and the event of its removal may be missed.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// How long rounds run with these pauses after an image was added.
const QUICK: Duration = Duration::from_secs(5 * 60);

/// The pause between the later rounds: a container may run for months.
const LATER_PAUSE: Duration = Duration::from_secs(5 * 60);

/// The pause between an event and its round: containerd removes several snapshots at the same time, and the snapshot of a
/// container after its record.
const GATHER: Duration = Duration::from_millis(300);

/// The least pause after a round, as a multiple of the duration of its list, up to [`LONGEST_PAUSE`].
const REST: u32 = 10;

/// How long the user of a chain counts as short-lived: longer than containerd needs to remove a rejected sandbox, and
/// shorter than the time until the kubelet's next try.
const SHORT_LIVED: Duration = Duration::from_secs(3);

/// The pause after an attempt that failed for another reason than a user. Each further failure doubles it, up to
/// [`LATER_PAUSE`].
const FAILED_PAUSE: Duration = Duration::from_secs(1);

/// The chains of one snapshotter that have to be replaced.
#[derive(Debug, Default)]
pub(crate) struct ReplacementQueue {
    state: Mutex<State>,
    /// Notified when the next round is earlier than before.
    earlier: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// The images, by name.
    images: BTreeMap<String, Waiting>,
    /// The snapshots that stood on the chains in the last round; `None` during a round.
    users: Option<HashSet<String>>,
    /// The time of the next round.
    next: Option<Instant>,
    /// Whether the task runs.
    runs: bool,
}

#[derive(Clone, Debug)]
struct Waiting {
    since: Instant,
    /// The top layer of its chain; `None` while it is not known.
    top: Option<String>,
    /// Whether a round found a user that is not short-lived.
    is_held: bool,
    is_reported: bool,
    /// The pause after the last failure, and the time of the next attempt.
    failed: Option<(Duration, Instant)>,
}

/// What a round reads.
pub(crate) struct Source<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) images: &'a Images,
    pub(crate) snapshotter: &'a str,
}

impl ReplacementQueue {
    /// Adds an image, and schedules a round. Returns whether the task has to be started.
    pub(crate) fn add(&self, image: &str) -> bool {
        let mut state = self.state.lock();
        let now = Instant::now();
        let waiting = state.images.entry(image.to_owned());
        let waiting = waiting.or_insert_with(|| Waiting::new(now));
        // Its name may have moved to another chain.
        waiting.top = None;
        self.schedule(&mut state, now + GATHER);
        !std::mem::replace(&mut state.runs, true)
    }

    /// Whether the chain was still in use some seconds after it was added: its user is not a short-lived one.
    pub(crate) fn is_held(&self, image: &str) -> bool {
        let state = self.state.lock();
        state.images.get(image).is_some_and(|image| image.is_held)
    }

    /// Takes the lock and releases it.
    pub(crate) fn probe_locks(&self) {
        drop(self.state.lock());
    }

    /// Handles the removal of a snapshot, or of a container with this id.
    pub(crate) fn user_removed(&self, key: &str) {
        let mut state = self.state.lock();
        let is_user = state.users.as_ref().is_none_or(|users| users.contains(key));
        if is_user && !state.images.is_empty() {
            self.schedule(&mut state, Instant::now() + GATHER);
        }
    }

    fn schedule(&self, state: &mut State, at: Instant) {
        if state.next.is_none_or(|next| at < next) {
            state.next = Some(at);
            self.earlier.notify_one();
        }
    }

    /// Runs rounds until no image is left. `replace` makes one attempt.
    pub(crate) async fn run<F: Future<Output = Outcome>>(
        &self,
        source: &Source<'_>,
        replace: impl Fn(String) -> F,
    ) {
        let mut running = Running {
            queue: self,
            has_ended: false,
        };
        let mut newest = None;
        let mut pauses = quick();
        loop {
            self.next_round().await;
            let began = Instant::now();
            let listed_in = self.round(source, &replace).await;
            tokio::time::sleep((listed_in * REST).min(LONGEST_PAUSE)).await;
            let mut state = self.state.lock();
            let Some(added) = state.images.values().map(|image| image.since).max() else {
                state.runs = false;
                state.next = None;
                running.has_ended = true;
                return;
            };
            if newest.replace(added) != Some(added) {
                pauses = quick();
            }
            let pause = match added.elapsed() < QUICK {
                true => pauses.next().unwrap_or(LONGEST_PAUSE),
                false => LATER_PAUSE,
            };
            let failed = state.images.values();
            let failed = failed.filter_map(|image| Some(image.failed?.1));
            // An attempt that became due in this round is due at once.
            let failed = failed.filter(|at| *at > began);
            let next = failed.chain([Instant::now() + pause]).min();
            next.into_iter()
                .for_each(|next| self.schedule(&mut state, next));
        }
    }

    /// Waits until the next round.
    async fn next_round(&self) {
        loop {
            let next = self.state.lock().next;
            let sleep = async {
                match next {
                    Some(next) => tokio::time::sleep_until(next).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = sleep => return,
                () = self.earlier.notified() => {}
            }
        }
    }

    /// Runs one round. Returns how long the list of all snapshots took.
    async fn round<F: Future<Output = Outcome>>(
        &self,
        source: &Source<'_>,
        replace: &impl Fn(String) -> F,
    ) -> Duration {
        let mut images = {
            let mut state = self.state.lock();
            state.next = None;
            state.users = None;
            state.images.clone()
        };
        for (image, waiting) in &mut images {
            if waiting.top.is_none() {
                waiting.top = source.top(image).await;
            }
        }
        let began = Instant::now();
        let tops = images.values().filter_map(|waiting| waiting.top.as_deref());
        let users = Users::read(source.containerd, source.snapshotter, &tops.collect()).await;
        let listed_in = began.elapsed();
        let users = match users {
            Ok(users) => users,
            Err(e) => {
                log::debug!(snapshotter = source.snapshotter, error:% = e; "snapshots could not be listed: chains in use are replaced later");
                return listed_in;
            }
        };
        let mut keys = HashSet::new();
        for (image, waiting) in images {
            let top = waiting.top;
            match top.as_deref().and_then(|top| users.of(top)) {
                Some(children) => {
                    keys.extend(children.iter().cloned());
                    self.still_used(&image, top, source.snapshotter);
                }
                None if waiting.failed.is_some_and(|(_, at)| at > Instant::now()) => {}
                None => {
                    let outcome = replace(image.clone()).await;
                    self.tried(&image, source.snapshotter, outcome);
                }
            }
        }
        self.state.lock().users = Some(keys);
        listed_in
    }

    /// Records that a round has found a user of the chain.
    fn still_used(&self, image: &str, top: Option<String>, snapshotter: &str) {
        let mut state = self.state.lock();
        let Some(waiting) = state.images.get_mut(image) else {
            return;
        };
        waiting.top = top;
        waiting.failed = None;
        waiting.is_held |= waiting.since.elapsed() >= SHORT_LIVED;
        if waiting.since.elapsed() >= QUICK && !std::mem::replace(&mut waiting.is_reported, true) {
            log::info!(image, snapshotter; "chain that was unpacked on the host is still in use: its containers keep running, new containers are moved onto another chain, and the plugin replaces it when they are gone");
        }
    }

    /// Records the outcome of an attempt: removes the image, or schedules the next attempt.
    fn tried(&self, image: &str, snapshotter: &str, outcome: Outcome) {
        let error = match outcome {
            Ok(done) => {
                if done.action != Action::None {
                    let Done { found, action, .. } = done;
                    log::info!(image, snapshotter, state:% = found, action:% = action; "chain that was unpacked on the host and was in use is replaced");
                }
                None
            }
            Err(e) if is_over(&e) => {
                log::debug!(image, snapshotter, error:% = e; "chain need not be replaced any more");
                None
            }
            Err(e) => Some(e),
        };
        let mut state = self.state.lock();
        let Some(error) = error else {
            state.images.remove(image);
            return;
        };
        if let Some(waiting) = state.images.get_mut(image) {
            let pause = waiting.failed.map_or(FAILED_PAUSE, |(pause, _)| pause * 2);
            let pause = pause.min(LATER_PAUSE);
            waiting.failed = Some((pause, Instant::now() + pause));
            waiting.is_held |= waiting.since.elapsed() >= SHORT_LIVED;
            log::debug!(image, snapshotter, error:% = error; "chain could not be replaced yet: the plugin tries again");
        }
    }
}

/// The running task of a queue. If it ends by a panic, the next image starts another one.
struct Running<'a> {
    queue: &'a ReplacementQueue,
    /// It has ended since no image was left: another task may run already.
    has_ended: bool,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        if !self.has_ended {
            let mut state = self.queue.state.lock();
            state.runs = false;
            state.next = None;
        }
    }
}

impl Source<'_> {
    /// Returns the top layer of an image's chain; `None` if the image cannot be read.
    async fn top(&self, image: &str) -> Option<String> {
        let image = image::find(self.containerd, image).await.ok()?;
        let manifest = self.images.manifest(&image).await.ok()?;
        manifest.chain_id().map(str::to_owned)
    }
}

impl Waiting {
    fn new(since: Instant) -> Self {
        Self {
            since,
            top: None,
            is_held: false,
            is_reported: false,
            failed: None,
        }
    }
}

fn quick() -> impl Iterator<Item = Duration> + Send {
    retry::pauses_up_to(LONGEST_PAUSE)
}

/// Whether the image need not be replaced any more: it is excluded, was removed, or cannot be pulled by a guest.
fn is_over(error: &Error) -> bool {
    error.is_left_to_containerd() || error.has_no_image() || error.is_of_artifact()
}
