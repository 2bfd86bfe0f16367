//! What is made ready before anybody asks: at the start of a session and when it is asked for, what
//! is in the store; afterwards, what arrives.
//!
//! A hook comes too late for the pause image, and holds the whole node while it waits. So most of the
//! work is done here, with nobody waiting: pinned images first, then what each snapshotter's eager set
//! holds. Nothing here is urgent: whoever asks overtakes it.

mod arrivals;
mod choice;
mod demand;
mod eager;
mod existing;
mod origin;
mod pulls;
mod queue;
mod reconcile;
mod removals;
mod schedule;
mod snapshot_counts;
mod summary;
#[cfg(test)]
mod tests;
mod unready;
mod volumes;
mod watch;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use tokio::sync::{Notify, watch as latest};

use crate::config::Labels;
use crate::containerd::Image;
use crate::handlers::Handlers;
use crate::node::Node;
use crate::unpack::{Error, Outcome, Request, Urgency, Want};

pub use choice::MAX_SNAPSHOTS;
use demand::Demand;
use eager::ManagedSnapshotter;
pub use existing::Existing;
use pulls::Pulls;
use queue::{Arrival, Queue};
pub use removals::heard;
use snapshot_counts::SnapshotCounts;
use unready::{PendingGuard, Unready};
pub use volumes::{ImageVolume, image_volume};

/// Names of images in containers that are remembered: more than a node has. When there are more, all are
/// forgotten, and with them only the order of the work.
const MAX_USED: usize = 4096;

/// The work ahead, for one session with the runtime.
pub struct Ahead {
    node: Arc<Node>,
    queue: Queue,
    pulls: Pulls,
    /// As they were found by the last reconcile; `None` before the first.
    managed: latest::Sender<Option<Vec<ManagedSnapshotter>>>,
    /// The images of containers, as their annotations name them.
    used: Mutex<HashSet<String>>,
    unready: Unready,
    demand: Demand,
    snapshot_counts: SnapshotCounts,
    /// An image was removed.
    removals: Notify,
    /// Something was left because a snapshotter holds too many.
    left: AtomicBool,
}

impl Ahead {
    /// Begins, and goes on until the node's next session begins.
    pub fn begin(node: &Arc<Node>) -> Arc<Self> {
        let (queue, comes_out) = queue::bounded();
        let ahead = Arc::new(Self {
            node: node.clone(),
            queue,
            pulls: Pulls::default(),
            managed: latest::Sender::new(None),
            used: Mutex::default(),
            unready: Unready::default(),
            demand: Demand::default(),
            snapshot_counts: SnapshotCounts::default(),
            removals: Notify::new(),
            left: AtomicBool::default(),
        });
        node.in_session(watch::run(ahead.clone()));
        node.in_session(removals::run(ahead.clone()));
        for arrivals in comes_out {
            node.in_session(arrivals::run(ahead.clone(), arrivals));
        }
        node.in_session(schedule::run(ahead.clone()));
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
    pub fn volume(&self, snapshotter: &str, target: String) {
        let snapshotter = snapshotter.to_owned();
        self.queue.push(Arrival::Volume {
            snapshotter,
            target,
        });
    }

    /// Images of this name are wanted before those that no container has.
    pub fn is_used(&self, image: &str) {
        let mut used = self.used.lock();
        if used.len() >= MAX_USED {
            used.clear();
        }
        used.insert(image.to_owned());
    }

    /// A pod of this snapshotter was started, and its first container is to come.
    pub fn pod_waits(&self, snapshotter: &str, pod: &str) {
        self.demand.pod_waits(snapshotter, pod);
    }

    /// A container of this pod is being created from an image of this name.
    pub fn container_comes(&self, snapshotter: &str, pod: &str, image: Option<&str>) {
        self.demand.container_comes(snapshotter, pod, image);
    }

    /// The eager images of a snapshotter that are not ready yet, as far as that is known: the last
    /// that came first.
    pub fn unready_in(&self, snapshotter: &str) -> Vec<Want> {
        self.unready.newest_in(snapshotter)
    }

    /// One of them is ready.
    pub fn is_ready(&self, snapshotter: &str, image: &str) {
        self.unready.remove(snapshotter, image);
    }

    /// One piece of the work.
    async fn make_ready(&self, entry: &PendingGuard<'_>, urgency: Urgency) -> Outcome {
        let snapshotter = entry.snapshotter();
        let request = Request {
            want: entry.want().clone(),
            snapshotter: snapshotter.to_owned(),
            urgency,
        };
        let outcome = self.node.engine.ensure(request).outcome().await;
        match &outcome {
            Ok(done) => self.snapshot_counts.more(snapshotter, done.layers_done),
            Err(e) if e.has_no_image() => removals::missing(self, entry, e).await,
            Err(e) => self.node.engine.replace_if_in_use(e, snapshotter),
        }
        outcome
    }

    /// Whether an image may be prepared here under a name that lacks its registry's port, until its record
    /// corrects it. Only a snapshotter that leaves the image to the guest asks no registry at `Prepare`; another
    /// one would ask a registry that does not have the image.
    fn takes_any_name(&self, snapshotter: &str) -> bool {
        self.node.engine.profile(snapshotter).may_proxy
    }

    /// Whether the snapshotter has to unpack the image in full.
    async fn needs_content(&self, want: &Want, snapshotter: &str) -> bool {
        let config = self.node.config();
        let policy = config.snapshotter(snapshotter);
        let all_are_labelled = policy.is_nameless() && policy.labels == Labels::Cri;
        // A race may be on, and the answer takes some calls.
        if all_are_labelled && self.node.engine.leaves_to_guest(snapshotter) {
            return false;
        }
        let request = Request {
            want: want.clone(),
            snapshotter: snapshotter.to_owned(),
            urgency: Urgency::Background,
        };
        match self.node.engine.needs_content(&request).await {
            Ok(true) => {
                log::debug!(image = want.name(), snapshotter; "image not made ready ahead: the snapshotter needs its content");
                true
            }
            Ok(false) => false,
            Err(e) => {
                // What makes it ready fails on it as well, and counts it.
                log::debug!(image = want.name(), snapshotter, error:% = e; "could not find out whether the snapshotter needs the image's content");
                false
            }
        }
    }

    /// The snapshotters that are kept, as soon as they are known.
    async fn managed(&self) -> Vec<ManagedSnapshotter> {
        let mut managed = self.managed.subscribe();
        let known = managed.wait_for(Option::is_some).await;
        known
            .ok()
            .and_then(|managed| managed.clone())
            .unwrap_or_default()
    }

    /// The names of these images that containers use; others are forgotten.
    fn used_of(&self, images: &[Image]) -> HashSet<String> {
        let names: HashSet<_> = images.iter().map(|image| image.name.as_str()).collect();
        let mut used = self.used.lock();
        used.retain(|name| names.contains(name.as_str()));
        used.clone()
    }

    /// Whether a snapshotter holds so many that nothing more is unpacked in it ahead. Does not wait: a race
    /// may be on. A look at all images lists it again, and says what is left.
    fn is_full_enough(&self, snapshotter: &str) -> bool {
        let is_full = self.snapshot_counts.is_full(snapshotter);
        if is_full != Some(false) {
            self.queue.look_again();
        }
        is_full == Some(true)
    }

    /// An image of this name was removed: what was left for the snapshots that it had may fit now.
    fn image_removed(&self, name: &str) {
        // One that is pulled again under a running container is ready, but not anchored any more.
        self.node.engine.image_removed(name);
        self.demand.image_removed();
        self.pulls.forget();
        self.used.lock().remove(name);
        self.removals.notify_one();
        if self.left.load(Ordering::Relaxed) {
            self.queue.look_again();
        }
    }
}

/// Whether it is worth a line that an image could not be made ready ahead: who needs it will hear of
/// it; what is left out, stopped or removed is no failure, and what is in use is replaced later.
fn is_news(error: &Error) -> bool {
    let goes_on = matches!(error, Error::Stopped(_) | Error::InUse { .. });
    !error.is_left_out() && !error.has_no_image() && !goes_on && error.unreachable().is_none()
}

/// Whether the same may succeed in a while with nobody doing anything about it, and nobody else tries
/// again: a chain that is in use is replaced later.
fn may_pass(error: &Error) -> bool {
    error.may_pass() && !matches!(error, Error::InUse { .. })
}
