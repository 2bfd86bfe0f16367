//! The worker of a snapshotter: starts or joins the one flight of a chain, passes it what all flights share, and removes
//! its entry when it ends.

use std::sync::Arc;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::containerd::Containerd;
use crate::metrics;

use super::Flight;
use super::context::FlightContext;
use super::registry::{FlightToken, Flights, Joined};
use super::removal::{Record, Removals};
use crate::unpack::chain::action::Action;
use crate::unpack::layer::fallback::ContentFallback;
use crate::unpack::ready_cache::{Epoch, ReadyCache};
use crate::unpack::repair::lost::Collections;
use crate::unpack::repair::replacements::ReplacementQueue;
use crate::unpack::schedule::last_look::LastLook;
use crate::unpack::schedule::limits::{Layers, Limits};
use crate::unpack::schedule::permits::{Parallel, PrioritySemaphore};
use crate::unpack::schedule::place::Places;
use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::progress::{Outcome, Reporter, Ticket};
use crate::unpack::snapshotter::facts::Facts;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::sentinels::Sentinels;
use crate::unpack::target::Target;
use crate::unpack::target::content_needs::NeedContent;
use crate::unpack::target::images::Images;

/// What all workers share.
pub(crate) struct Shared {
    pub(crate) images: Arc<Images>,
    pub(crate) containerd: Arc<dyn Containerd>,
    pub(crate) leases: Arc<Leases>,
    pub(crate) fallback: ContentFallback,
    pub(crate) removals: Removals,
    /// The number of images that are unpacked at the same time in one snapshotter.
    images_at_once: usize,
    /// The same number for the whole process.
    places: Arc<PrioritySemaphore>,
    pub(crate) limits: Arc<Limits>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl Shared {
    pub(crate) fn new(
        images: Arc<Images>,
        containerd: Arc<dyn Containerd>,
        leases: Arc<Leases>,
        fallback: ContentFallback,
        parallel: Parallel,
    ) -> Self {
        Self {
            images,
            containerd,
            leases,
            fallback,
            removals: Removals::default(),
            images_at_once: parallel.images,
            places: Arc::new(PrioritySemaphore::new(parallel.images)),
            limits: Arc::new(Limits::new(parallel.layers)),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }
}

/// The worker of one snapshotter: its flights, and what is known of its chains. A snapshotter that hangs holds up only
/// its own worker.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) facts: Arc<Facts>,
    pub(crate) flights: Flights,
    pub(crate) ready_cache: ReadyCache,
    pub(crate) sentinels: Sentinels,
    pub(crate) collections: Collections,
    pub(crate) replacements: ReplacementQueue,
    pub(crate) need_content: NeedContent,
    places: Places,
    pub(crate) layers: Layers,
}

impl Worker {
    /// A worker without flights.
    pub(crate) fn new(shared: Arc<Shared>, snapshotter: &str) -> Self {
        let facts = Arc::new(Facts::new(snapshotter));
        Self {
            flights: Flights::default(),
            ready_cache: ReadyCache::default(),
            sentinels: Sentinels::default(),
            collections: Collections::default(),
            replacements: ReplacementQueue::default(),
            need_content: NeedContent::default(),
            places: Places::new(shared.images_at_once, shared.places.clone()),
            layers: Layers::new(shared.limits.clone(), facts.clone()),
            facts,
            shared,
        }
    }

    /// Returns the ticket of this image's flight. If the chain has a flight of another image with the same layers, or one
    /// that began while this image was being pulled, waits for that one first: it unpacks the layers, and this image's
    /// own flight then sets only its anchor (the gc label on the config blob) or the name in the labels. The same for a
    /// flight from before everything was forgotten, which may have other rules. `since` is from before the target was
    /// looked up.
    pub(crate) async fn flight_of(
        self: &Arc<Self>,
        target: Target,
        since: Epoch,
        priority: Priority,
    ) -> Ticket {
        let target = Arc::new(target);
        let containerd = self.shared.containerd.as_ref();
        // A snapshotter that applies the layers asks no registry: the labels may get their name later, and the callers see
        // how far the flight is.
        let shares_pull =
            !target.may_have_guest_layers && self.facts.capabilities(containerd).await.applies;
        loop {
            match self.join(&target, since, &priority, shares_pull) {
                Joined::Ours(ticket) => return ticket,
                // A failure of the other flight does not concern this image.
                Joined::Another(mut ticket) => drop(ticket.outcome().await),
                Joined::First(ticket, ..) => return ticket,
            }
        }
    }

    /// Joins the flight of this chain. Starts it if there is none.
    fn join(
        self: &Arc<Self>,
        target: &Arc<Target>,
        since: Epoch,
        priority: &Priority,
        shares_pull: bool,
    ) -> Joined {
        let stop = &self.shared.stop;
        let forgotten = since.forgotten;
        let joined = self
            .flights
            .join(target, forgotten, priority, shares_pull, stop);
        let Joined::First(ticket, reporter, token) = joined else {
            self.layers.layer_locks.inherit();
            self.places.wake();
            self.shared.limits.permits.wake();
            return joined;
        };
        let guard = FlightGuard {
            worker: self.clone(),
            token,
            since,
        };
        self.shared
            .tasks
            .spawn(guard.fly(target.clone(), priority.clone(), reporter));
        Joined::Ours(ticket)
    }

    /// Takes each lock that the flights need and releases it.
    pub(crate) fn probe_locks(&self) {
        self.flights.probe_locks();
        self.places.probe_locks();
        self.replacements.probe_locks();
        self.shared.limits.permits.probe_locks();
    }
}

/// A running flight. Its entry is removed when it ends, even by a panic.
struct FlightGuard {
    worker: Arc<Worker>,
    token: FlightToken,
    since: Epoch,
}

impl FlightGuard {
    async fn fly(self, target: Arc<Target>, priority: Priority, reporter: Reporter) {
        let outcome = self.run(&target, &priority, &reporter).await;
        // From now on a caller starts a new flight; callers with a ticket get this outcome.
        drop(self);
        reporter.end(outcome);
    }

    async fn run(&self, target: &Target, priority: &Priority, reporter: &Reporter) -> Outcome {
        let worker = &*self.worker;
        let shared = &*worker.shared;
        let record = Record {
            containerd: shared.containerd.as_ref(),
            image: &target.image,
            flights: &worker.flights,
            token: &self.token,
            removals: &shared.removals,
        };
        let context = FlightContext {
            target,
            images: &shared.images,
            containerd: shared.containerd.as_ref(),
            leases: &shared.leases,
            places: &worker.places,
            last_look: LastLook::default(),
            layers: &worker.layers,
            priority,
            fallback: &shared.fallback,
            collections: &worker.collections,
            reporter,
            record: &record,
            stop: &self.token.stop,
        };
        let flight = Flight { context: &context };
        let began = Instant::now();
        let (done, created_at) = flight.run().await.map_err(Arc::new)?;
        let chain = &self.token.chain;
        if done.action != Action::None {
            metrics::unpacked(&worker.facts.snapshotter, began.elapsed());
        }
        if target.manifest.chain_id().is_some() {
            worker.sentinels.saw(chain);
        }
        // If the image is still being pulled, its labels have to be checked again when it has a name.
        if !target.arrives {
            let top = created_at.map(|created_at| target.top(created_at));
            worker.ready_cache.record_ready(chain, top, self.since);
        }
        Ok(done)
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        self.worker.flights.leave(&self.token);
    }
}
