//! Makes images ready before a pod needs them: a reconcile covers the images of the store, and events
//! add the images that arrive afterwards. Each managed snapshotter has a worker of its own, with its own queue.
//!
//! A hook comes too late for the pause image, and blocks the whole node while it waits. So most of the
//! work is done here, in the background: pinned images first, then each snapshotter's eager set. This
//! work has the lowest priority: a request of a pod comes first.

mod arrivals;
mod bound;
mod choice;
mod demand;
mod demanded;
mod eager;
mod existing;
mod explain;
mod failed;
mod job;
mod learned;
mod loss;
mod lost;
mod origin;
mod pulls;
mod queue;
mod reconcile;
mod removals;
mod retries;
mod schedule;
mod snapshot_count;
mod summary;
#[cfg(test)]
mod tests;
mod unready;
mod volumes;
mod watch;
mod work;
mod worker;
mod workers;

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::Mutex;

use tokio::sync::{Notify, watch as latest};

use crate::containerd::Image;
use crate::handlers::Handlers;
use crate::image;
use crate::metrics;
use crate::node::Node;
use crate::panics;
use crate::unpack::{Error, Outcome, Urgency};

use bound::Bound;
pub use choice::MAX_SNAPSHOTS;
pub(crate) use eager::is_pinned;
pub use existing::Existing;
pub use explain::{Explainer, Explanations};
use job::Job;
use loss::is_lost;
use pulls::Pulls;
use queue::Queue;
pub use removals::watch_removals;
use unready::PendingGuard;
pub use volumes::{ImageVolume, image_volume};
use worker::Worker;

/// The limit of remembered names of images that containers use: more than a node has. Beyond it all names
/// are forgotten, which affects only the order of the work.
const MAX_USED: usize = 4096;

/// The work ahead, for one session with the runtime.
pub struct Ahead {
    node: Arc<Node>,
    queue: Queue,
    pulls: Pulls,
    /// The worker of each managed snapshotter; `None` before they are known.
    workers: latest::Sender<Option<Vec<Arc<Worker>>>>,
    /// The names of the images that containers use, from the containers' annotations.
    used: Mutex<HashSet<String>>,
    /// Notified when an image was removed.
    removals: Notify,
    /// The images of the pods that are bound to this node.
    bound: Bound,
}

impl Ahead {
    /// Starts the work, which runs until the node's next session begins.
    pub fn begin(node: &Arc<Node>) -> Arc<Self> {
        let (queue, arrivals) = queue::bounded();
        let ahead = Arc::new(Self {
            node: node.clone(),
            queue,
            pulls: Pulls::default(),
            workers: latest::Sender::new(None),
            used: Mutex::default(),
            removals: Notify::new(),
            bound: Bound::default(),
        });
        ahead.always(watch::run);
        ahead.always(removals::run);
        ahead.always(workers::run);
        node.in_session(arrivals::run(ahead.clone(), arrivals));
        ahead
    }

    /// Runs a part of the work, again after each panic.
    fn always<F: Future<Output = ()> + Send + 'static>(
        self: &Arc<Self>,
        run: impl Fn(Arc<Self>) -> F + Send + Sync + 'static,
    ) {
        let ahead = self.clone();
        self.node.in_session(async move {
            panics::begin_again(|| run(ahead.clone())).await;
        });
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
        self.push(snapshotter, Job::Volume { target });
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
        if let Some(worker) = self.worker(snapshotter) {
            worker.demand.pod_waits(pod);
        }
    }

    /// Records that a container of this pod is being created from an image of this name.
    pub fn container_comes(&self, snapshotter: &str, pod: &str, image: Option<&str>) {
        if let Some(worker) = self.worker(snapshotter) {
            worker.demand.container_comes(pod, image);
        }
    }

    /// Records in the store that a container uses the image of this reference in a snapshotter. Does not wait.
    pub fn container_uses(&self, snapshotter: &str, image: &str) {
        if let Some(worker) = self.worker(snapshotter)
            && worker.demand.is_new_use(image)
        {
            worker.push(Job::Used(image.to_owned()));
            self.count_queued();
        }
    }

    /// Raises the priority of the newest images of a snapshotter's eager set that are known not to be ready yet: a new pod
    /// may need them. Does not wait.
    pub fn raise(&self, snapshotter: &str) {
        if let Some(worker) = self.worker(snapshotter) {
            let wants = worker.unready.raise_newest().into_iter();
            wants.for_each(|want| worker.push(Job::Raised(want)));
            self.count_queued();
        }
    }

    /// Removes an image that is ready from the images that are not.
    pub fn is_ready(&self, snapshotter: &str, image: &str) {
        if let Some(worker) = self.worker(snapshotter) {
            worker.unready.remove(image);
        }
    }

    /// Makes one image ready in the snapshotter of a worker.
    async fn make_ready(
        &self,
        worker: &Worker,
        entry: &PendingGuard<'_>,
        urgency: Urgency,
    ) -> Outcome {
        let engine = &self.node.engine;
        let mut ticket = worker.begin(engine, entry.want(), urgency).await;
        let outcome = ticket.outcome().await;
        let image = entry.want().name();
        match &outcome {
            Ok(done) => {
                worker.count.more(done.layers_done);
                worker.loss.remove(entry.record());
                if worker.retries.forget(image) {
                    // Updates the metrics.
                    worker.reconcile.notify_one();
                }
            }
            Err(e) if e.has_no_image() => {
                worker.retries.forget(image);
                removals::missing(self, worker, entry, e).await;
            }
            Err(e) => {
                worker.loss.failed(e);
                if is_tried_again(e) {
                    worker.retries.failed(image);
                }
                engine.replace_if_in_use(e, worker.name());
            }
        }
        outcome
    }

    /// Gives a job to the worker of a snapshotter, if that is managed.
    fn push(&self, snapshotter: &str, job: Job) {
        if let Some(worker) = self.worker(snapshotter) {
            worker.push(job);
            self.count_queued();
        }
    }

    /// Updates the metric of the events and jobs that wait.
    fn count_queued(&self) {
        let workers = self.known_workers();
        let jobs: usize = workers.iter().map(|worker| worker.length()).sum();
        metrics::queued(self.queue.length() + jobs);
    }

    /// Returns the worker of a snapshotter; `None` if it is not managed, or not known yet.
    fn worker(&self, snapshotter: &str) -> Option<Arc<Worker>> {
        let workers = self.workers.borrow();
        let mut workers = workers.iter().flatten();
        workers.find(|w| w.name() == snapshotter).cloned()
    }

    /// Puts the image's name into the labels of its layers. The work may have begun during the pull, under another name.
    async fn name_layers(&self, image: &str, snapshotter: &str) {
        match self.node.engine.name_layers(image, snapshotter).await {
            Ok(0) => {}
            Ok(layers) => {
                log::debug!(image, snapshotter, layers; "labels name the image by the tag that it was pulled by")
            }
            Err(e) => {
                log::debug!(image, snapshotter, error:% = e; "labels keep the image's name by digest: its tag could not be set")
            }
        }
    }

    /// Handles the removal of a snapshot, or of a container with this id: it may have used a chain that has to be replaced
    /// or is lost.
    fn user_removed(&self, key: &str) {
        self.node.engine.user_removed(key);
        for worker in self.known_workers() {
            worker.loss.user_removed();
        }
    }

    /// Returns the workers; none before the managed snapshotters are known.
    fn known_workers(&self) -> Vec<Arc<Worker>> {
        self.workers.borrow().clone().unwrap_or_default()
    }

    /// Waits until the handlers and the managed snapshotters are known.
    pub async fn until_known(&self) {
        self.node.known_handlers().await;
        self.workers().await;
    }

    /// Waits until each managed snapshotter has answered in this session and has the pinned images ready, as far as they
    /// can be.
    pub async fn until_pinned_ready(&self) {
        let mut known = self.workers.subscribe();
        loop {
            let mut states: Vec<_> = {
                let workers = known.borrow_and_update();
                let workers = workers.iter().flatten();
                workers
                    .map(|worker| worker.has_pinned.subscribe())
                    .collect()
            };
            let are_known = known.borrow().is_some();
            let all = async {
                for state in &mut states {
                    state.wait_for(|has_pinned| *has_pinned).await?;
                }
                Ok::<_, latest::error::RecvError>(())
            };
            // The state of a worker that has ended is an error: another set of workers follows.
            tokio::select! {
                biased;
                changed = known.changed() => match changed {
                    Ok(()) => continue,
                    // The sender lives as long as this does.
                    Err(_) => return,
                },
                Ok(()) = all, if are_known => return,
            }
        }
    }

    /// Waits until the managed snapshotters are known, and returns their workers.
    async fn workers(&self) -> Vec<Arc<Worker>> {
        let mut workers = self.workers.subscribe();
        let known = workers.wait_for(Option::is_some).await;
        known
            .ok()
            .and_then(|workers| workers.clone())
            .unwrap_or_default()
    }

    /// Returns the names of these images that containers use. Forgets all other names.
    fn used_of(&self, images: &[Image]) -> HashSet<String> {
        let names: HashSet<_> = images.iter().map(|image| image.name.as_str()).collect();
        let mut used = self.used.lock();
        used.retain(|name| names.contains(name.as_str()));
        used.clone()
    }

    /// Handles the removal of an image of this name.
    fn image_removed(&self, name: &str) {
        self.used.lock().remove(name);
        self.images_removed(Some(name));
    }

    /// Handles the begin of a subscription: events may have been missed.
    fn subscribed(&self) {
        self.images_removed(None);
        self.queue.reconcile();
    }

    fn images_removed(&self, name: Option<&str>) {
        // An image that is pulled again while a container runs has its chain, but not its anchor: the gc label
        // on the config blob.
        self.node.engine.images_removed(name);
        self.pulls.forget();
        self.removals.notify_one();
        for worker in self.known_workers() {
            worker.image_removed();
        }
    }
}

/// Whether a failure to make an image ready ahead is logged as a warning. Excluded, stopped and removed
/// images are no failures, a chain in use is replaced later, and a snapshotter that does not answer is logged once.
fn is_news(error: &Error) -> bool {
    let goes_on = matches!(error, Error::Stopped(_)) || is_replaced_later(error);
    !error.is_left_to_containerd()
        && !error.has_no_image()
        && !goes_on
        && error.unreachable().is_none()
}

/// Whether pods need not wait for an image: another try would have the same result, or the image is replaced when nothing
/// uses it any more. A node whose pinned image is broken takes pods none the less: those of other handlers do not need it.
fn is_settled(error: &Error) -> bool {
    let may_change = matches!(
        error,
        Error::Containerd { .. }
            | Error::Image(image::Error::Containerd { .. })
            | Error::Unavailable { .. }
            | Error::Stopped(_)
            | Error::Died(_)
    );
    !may_change && !may_pass(error)
}

/// Whether the engine replaces the chain when nothing uses it any more.
fn is_replaced_later(error: &Error) -> bool {
    matches!(error, Error::InUse { .. }) && !is_lost(error)
}

/// Whether the image is tried again by itself. What [`may_pass`] is found by a reconcile, and an artifact is no image.
fn is_tried_again(error: &Error) -> bool {
    is_news(error) && !may_pass(error) && !error.is_of_artifact()
}

/// Whether a later try may succeed without an action of the operator, and nothing else tries again. A chain in
/// use does not count: the engine replaces it later.
fn may_pass(error: &Error) -> bool {
    error.may_pass() && !is_replaced_later(error)
}
