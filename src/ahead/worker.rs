//! The worker of one snapshotter: its queue of jobs, and what is known of the images there. Slow work in one
//! snapshotter delays no other.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::{Notify, Semaphore, SemaphorePermit, mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Labels;
use crate::free_space::Reservation;
use crate::metrics;
use crate::node::Node;
use crate::unpack::{Engine, Request, Ticket, Urgency, Want};

use super::demand::Demand;
use super::eager::ManagedSnapshotter;
use super::job::Job;
use super::loss::Loss;
use super::retries::Retries;
use super::snapshot_count::SnapshotCount;
use super::unready::Unready;

/// The limit of jobs in each part of the queue, and of jobs of each part that run. A job that waits for the
/// engine's permit to unpack costs only memory.
pub(super) const MAX_JOBS: usize = 256;

/// The limit of looks at images at the same time, for each part of the queue: a look lists the images of the store.
const LOOKS: usize = 16;

/// The worker of a managed snapshotter.
pub(super) struct Worker {
    pub(super) snapshotter: ManagedSnapshotter,
    jobs: Part,
    /// Jobs that a pod waits for: they do not wait behind the others.
    asked: Part,
    pub(super) unready: Unready,
    pub(super) demand: Demand,
    pub(super) count: SnapshotCount,
    pub(super) retries: Retries,
    /// Whether the last reconcile left images because the snapshotter holds too many snapshots.
    pub(super) left: AtomicBool,
    pub(super) loss: Loss,
    /// Whether the snapshotter has answered to the last reconcile, and all pinned images were ready then.
    pub(super) has_pinned: watch::Sender<bool>,
    /// Notified when a reconcile is requested.
    pub(super) reconcile: Notify,
    /// Notified when a reconcile is requested after a pause, because something did not answer.
    pub(super) reconcile_later: Notify,
    /// Notified when a running reconcile has to start again.
    pub(super) restart: Notify,
    /// Ends the worker.
    stop: CancellationToken,
}

/// One part of the queue.
struct Part {
    jobs: mpsc::Sender<Job>,
    looks: Semaphore,
}

impl Part {
    fn new() -> (Self, mpsc::Receiver<Job>) {
        let (jobs, receiver) = mpsc::channel(MAX_JOBS);
        let looks = Semaphore::new(LOOKS);
        (Self { jobs, looks }, receiver)
    }

    fn length(&self) -> usize {
        self.jobs.max_capacity() - self.jobs.capacity()
    }
}

impl Worker {
    /// Returns the worker of a snapshotter and the receiving ends of its queue. It first runs a reconcile, and ends by
    /// `stop`.
    pub(super) fn new(
        snapshotter: ManagedSnapshotter,
        stop: CancellationToken,
    ) -> (Self, [mpsc::Receiver<Job>; 2]) {
        let ((jobs, of_jobs), (asked, of_asked)) = (Part::new(), Part::new());
        let worker = Self {
            snapshotter,
            jobs,
            asked,
            unready: Unready::default(),
            demand: Demand::default(),
            count: SnapshotCount::default(),
            retries: Retries::default(),
            left: AtomicBool::default(),
            loss: Loss::default(),
            has_pinned: watch::Sender::new(false),
            reconcile: Notify::new(),
            reconcile_later: Notify::new(),
            restart: Notify::new(),
            stop,
        };
        metrics::managed(worker.name());
        worker.reconcile.notify_one();
        (worker, [of_jobs, of_asked])
    }

    /// Runs this work until the worker ends.
    pub(super) async fn until_end(&self, work: impl Future<Output = ()>) {
        self.stop.run_until_cancelled(work).await;
    }

    /// Ends the worker: its snapshotter is no longer managed. Flights that have begun go on.
    pub(super) fn stop(&self) {
        self.stop.cancel();
        metrics::unmanaged(self.name());
    }

    pub(super) fn name(&self) -> &str {
        &self.snapshotter.name
    }

    /// Adds a job, or drops it and requests a reconcile. Never waits.
    pub(super) fn push(&self, job: Job) {
        let part = if job.is_asked() {
            &self.asked
        } else {
            &self.jobs
        };
        if part.jobs.try_send(job).is_err() {
            metrics::dropped();
            log::debug!(snapshotter = self.name(); "queue of the snapshotter is full: the job is dropped, and a reconcile is scheduled");
            self.reconcile.notify_one();
        }
    }

    /// Returns the number of jobs in the queue.
    pub(super) fn length(&self) -> usize {
        self.jobs.length() + self.asked.length()
    }

    /// Waits for a place to look at an image. Dropped before the unpack, so that an unpack delays no look.
    async fn look(&self, urgency: Urgency) -> Option<SemaphorePermit<'_>> {
        let part = match urgency {
            Urgency::Bound | Urgency::Asked | Urgency::Creation => &self.asked,
            Urgency::Arrived | Urgency::Background => &self.jobs,
        };
        part.looks.acquire().await.ok()
    }

    /// Starts to make an image ready, and waits until the engine has read the state of its chain.
    pub(super) async fn begin(
        &self,
        engine: &Arc<Engine>,
        want: &Want,
        urgency: Urgency,
    ) -> Ticket {
        let _look = self.look(urgency).await;
        let mut ticket = engine.ensure(self.request(want, urgency));
        let looks = |ticket: &Ticket| {
            let progress = ticket.progress();
            progress.found.is_none() && progress.outcome.is_none()
        };
        while looks(&ticket) && ticket.changed().await {}
        ticket
    }

    /// Whether an image may be prepared here under a name without its registry's port, until the image's record
    /// gives the right name. A proxy plugin without guest pull would send a request at `Prepare` to a registry that does not
    /// have the image.
    pub(super) fn takes_any_name(&self, node: &Node) -> bool {
        !self.snapshotter.is_proxy || node.engine.profile(self.name()).may_proxy
    }

    /// Whether the snapshotter has to unpack the image in full.
    pub(super) async fn needs_content(&self, node: &Node, want: &Want) -> bool {
        let (config, snapshotter) = (node.config(), self.name());
        let policy = config.snapshotter(snapshotter);
        let all_are_labelled = policy.is_nameless() && policy.labels == Labels::Cri;
        // A container may be about to be created, and the check below takes several calls.
        if all_are_labelled && node.engine.supports_guest_pull(snapshotter) {
            return false;
        }
        let look = self.look(Urgency::Background).await;
        let request = self.request(want, Urgency::Background);
        match node.engine.needs_content(&request, look).await {
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

    /// Reserves the estimated space of an unpack in bytes, and returns the reservation, which is empty for work that takes
    /// no space; `None` if there is too little.
    pub(super) async fn reserve_space<'a>(
        &'a self,
        node: &'a Node,
        want: &Want,
        bytes: u64,
    ) -> Option<Option<Reservation<'a>>> {
        if bytes == 0 {
            return Some(None);
        }
        let reserved = node
            .free_space
            .reserve(self.snapshotter.root.as_deref(), bytes);
        if reserved.is_some() {
            return Some(reserved);
        }
        // A snapshotter that mounts the layers from elsewhere takes no space.
        let takes_none = self.snapshotter.is_proxy && !self.needs_content(node, want).await;
        takes_none.then_some(None)
    }

    /// Whether the snapshotter has reached the limit for unpacking ahead. Does not wait, since a container may be about
    /// to be created. Unless the snapshotter is certainly below the limit, requests a reconcile, which lists its
    /// snapshots again and logs the images that are not unpacked ahead.
    pub(super) fn is_at_limit(&self) -> bool {
        let is_at_limit = self.count.is_at_limit();
        if is_at_limit != Some(false) {
            self.reconcile_later.notify_one();
        }
        is_at_limit == Some(true)
    }

    /// Handles the removal of an image: images that exceeded the limit of snapshots may fit now.
    pub(super) fn image_removed(&self) {
        self.demand.image_removed();
        if self.left.load(Ordering::Relaxed) {
            self.reconcile_later.notify_one();
        }
    }

    fn request(&self, want: &Want, urgency: Urgency) -> Request {
        Request {
            want: want.clone(),
            snapshotter: self.name().to_owned(),
            urgency,
        }
    }
}
