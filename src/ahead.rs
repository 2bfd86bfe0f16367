//! Makes images ready before a pod needs them: a reconcile covers the images of the store, and events
//! add the images that arrive afterwards.
//!
//! A hook comes too late for the pause image, and blocks the whole node while it waits. So most of the
//! work is done here, in the background: pinned images first, then each snapshotter's eager set. This
//! work has the lowest priority: a request of a pod comes first.

mod arrivals;
mod choice;
mod demand;
mod eager;
mod existing;
mod lost;
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
use crate::unpack::{Error, Outcome, Request, State, Urgency, Want};

pub use choice::MAX_SNAPSHOTS;
use demand::Demand;
use eager::ManagedSnapshotter;
pub(crate) use eager::is_pinned;
pub use existing::Existing;
use pulls::Pulls;
use queue::{Arrival, Queue};
pub use removals::watch_removals;
use snapshot_counts::SnapshotCounts;
use unready::{PendingGuard, Unready};
pub use volumes::{ImageVolume, image_volume};

/// The limit of remembered names of images that containers use: more than a node has. Beyond it all names
/// are forgotten, which affects only the order of the work.
const MAX_USED: usize = 4096;

/// The work ahead, for one session with the runtime.
pub struct Ahead {
    node: Arc<Node>,
    queue: Queue,
    pulls: Pulls,
    /// The result of the last reconcile; `None` before the first.
    managed: latest::Sender<Option<Vec<ManagedSnapshotter>>>,
    /// The names of the images that containers use, from the containers' annotations.
    used: Mutex<HashSet<String>>,
    unready: Unready,
    demand: Demand,
    snapshot_counts: SnapshotCounts,
    /// The snapshotters that have lost their state since the last reconcile began.
    lost: Mutex<HashSet<String>>,
    /// Notified when an image was removed.
    removals: Notify,
    /// Whether the last reconcile left images because a snapshotter holds too many snapshots.
    left: AtomicBool,
}

impl Ahead {
    /// Starts the work, which runs until the node's next session begins.
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
            lost: Mutex::default(),
            removals: Notify::new(),
            left: AtomicBool::default(),
        });
        node.in_session(watch::run(ahead.clone()));
        node.in_session(removals::run(ahead.clone()));
        node.in_session(lost::run(ahead.clone()));
        for arrivals in comes_out {
            node.in_session(arrivals::run(ahead.clone(), arrivals));
        }
        node.in_session(schedule::run(ahead.clone()));
        ahead
    }

    /// Makes the images of these containers ready for later containers, in the background.
    pub fn check_existing(
        self: &Arc<Self>,
        existing: impl FnOnce(&Handlers) -> Vec<Existing> + Send + 'static,
    ) {
        let ahead = self.clone();
        self.node.in_session(async move {
            existing::check(&ahead, existing).await;
        });
    }

    /// Makes an image that a container mounts as a volume ready for later containers, in the background.
    pub fn volume(&self, snapshotter: &str, target: String) {
        let snapshotter = snapshotter.to_owned();
        self.queue.push(Arrival::Volume {
            snapshotter,
            target,
        });
    }

    /// Raises the priority of images that a container uses.
    pub fn is_used(&self, image: &str) {
        let mut used = self.used.lock();
        if used.len() >= MAX_USED {
            used.clear();
        }
        used.insert(image.to_owned());
    }

    /// Records a pod of this snapshotter that was started and has no container yet.
    pub fn pod_waits(&self, snapshotter: &str, pod: &str) {
        self.demand.pod_waits(snapshotter, pod);
    }

    /// Records that a container of this pod is being created from an image of this name.
    pub fn container_comes(&self, snapshotter: &str, pod: &str, image: Option<&str>) {
        self.demand.container_comes(snapshotter, pod, image);
    }

    /// Returns the images of a snapshotter's eager set that are known not to be ready yet, newest first.
    pub fn unready_in(&self, snapshotter: &str) -> Vec<Want> {
        self.unready.newest_in(snapshotter)
    }

    /// Removes an image that is ready from the images that are not.
    pub fn is_ready(&self, snapshotter: &str, image: &str) {
        self.unready.remove(snapshotter, image);
    }

    /// Makes one image ready in one snapshotter.
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

    /// Whether an image may be prepared here under a name without its registry's port, until the image's record
    /// gives the right name. Only a snapshotter with guest pull sends no request to a registry at `Prepare`; another
    /// one would send it to a registry that does not have the image.
    fn takes_any_name(&self, snapshotter: &str) -> bool {
        self.node.engine.profile(snapshotter).may_proxy
    }

    /// Whether the snapshotter has to unpack the image in full.
    async fn needs_content(&self, want: &Want, snapshotter: &str) -> bool {
        let config = self.node.config();
        let policy = config.snapshotter(snapshotter);
        let all_are_labelled = policy.is_nameless() && policy.labels == Labels::Cri;
        // A container may be about to be created, and the check below takes several calls.
        if all_are_labelled && self.node.engine.supports_guest_pull(snapshotter) {
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
                // The unpack that follows fails for the same reason, and counts the failure.
                log::debug!(image = want.name(), snapshotter, error:% = e; "could not find out whether the snapshotter needs the image's content");
                false
            }
        }
    }

    /// Waits until the managed snapshotters are known, and returns them.
    async fn managed(&self) -> Vec<ManagedSnapshotter> {
        let mut managed = self.managed.subscribe();
        let known = managed.wait_for(Option::is_some).await;
        known
            .ok()
            .and_then(|managed| managed.clone())
            .unwrap_or_default()
    }

    /// Returns the names of these images that containers use. Forgets all other names.
    fn used_of(&self, images: &[Image]) -> HashSet<String> {
        let names: HashSet<_> = images.iter().map(|image| image.name.as_str()).collect();
        let mut used = self.used.lock();
        used.retain(|name| names.contains(name.as_str()));
        used.clone()
    }

    /// Whether a snapshotter has reached the limit for unpacking ahead. Does not wait, since a container may be about to be
    /// created. Unless the snapshotter is certainly below the limit, schedules a reconcile, which lists its snapshots
    /// again and logs the images that are not unpacked ahead.
    fn is_at_limit(&self, snapshotter: &str) -> bool {
        let is_at_limit = self.snapshot_counts.is_at_limit(snapshotter);
        if is_at_limit != Some(false) {
            self.queue.reconcile_later();
        }
        is_at_limit == Some(true)
    }

    /// Handles the removal of an image of this name: images that exceeded the limit of snapshots may fit now.
    fn image_removed(&self, name: &str) {
        // An image that is pulled again while a container runs has its chain, but not its anchor: the gc label
        // on the config blob.
        self.node.engine.image_removed(name);
        self.demand.image_removed();
        self.pulls.forget();
        self.used.lock().remove(name);
        self.removals.notify_one();
        if self.left.load(Ordering::Relaxed) {
            self.queue.reconcile_later();
        }
    }
}

/// Whether a failure to make an image ready ahead is logged as a warning. Excluded, stopped and removed
/// images are no failures, a chain in use is replaced later, and a snapshotter that does not answer is logged once.
fn is_news(error: &Error) -> bool {
    let is_replaced_later = matches!(error, Error::InUse { .. }) && !is_lost(error);
    let goes_on = matches!(error, Error::Stopped(_)) || is_replaced_later;
    !error.is_left_to_containerd()
        && !error.has_no_image()
        && !goes_on
        && error.unreachable().is_none()
}

/// Whether a later try may succeed without an action of the operator, and nothing else tries again. A chain in
/// use does not count: the engine replaces it later.
fn may_pass(error: &Error) -> bool {
    error.may_pass() && (!matches!(error, Error::InUse { .. }) || is_lost(error))
}

fn is_lost(error: &Error) -> bool {
    error.state() == Some(State::Lost)
}
