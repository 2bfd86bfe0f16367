//! Runs the flights: starts or joins the one flight of a chain, passes it what all flights share, and removes its entry
//! when it ends.

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
use crate::unpack::ready_cache::ReadyCache;
use crate::unpack::repair::lost::LastCollections;
use crate::unpack::schedule::limits::Layers;
use crate::unpack::schedule::permits::Parallel;
use crate::unpack::schedule::place::Places;
use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::progress::{Outcome, Reporter, Ticket};
use crate::unpack::snapshotter::capabilities::CapabilityCache;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::sentinels::Sentinels;
use crate::unpack::target::Target;
use crate::unpack::target::images::Images;

/// The flights of one engine, and what they share.
pub(crate) struct FlightRunner {
    images: Arc<Images>,
    sentinels: Arc<Sentinels>,
    pub(crate) containerd: Arc<dyn Containerd>,
    pub(crate) leases: Arc<Leases>,
    fallback: ContentFallback,
    last_collections: LastCollections,
    pub(crate) ready_cache: ReadyCache,
    pub(crate) flights: Flights,
    pub(crate) removals: Removals,
    places: Places,
    pub(crate) layers: Layers,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

impl FlightRunner {
    /// A runner without flights.
    pub(crate) fn new(
        images: Arc<Images>,
        sentinels: Arc<Sentinels>,
        containerd: Arc<dyn Containerd>,
        leases: Arc<Leases>,
        fallback: ContentFallback,
        parallel: Parallel,
        capabilities: Arc<CapabilityCache>,
    ) -> Self {
        Self {
            images,
            sentinels,
            containerd,
            leases,
            fallback,
            last_collections: LastCollections::default(),
            ready_cache: ReadyCache::default(),
            flights: Flights::default(),
            removals: Removals::default(),
            places: Places::new(parallel.images),
            layers: Layers::new(parallel.layers, capabilities),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        }
    }

    /// Returns the ticket of this image's flight. If the chain has a flight of another image with the same layers, or one
    /// that began while this image was being pulled, waits for that one first: it unpacks the layers, and this image's
    /// own flight then sets only its anchor (the gc label on the config blob) or the name in the labels.
    pub(crate) async fn flight_of(self: &Arc<Self>, target: Target, priority: Priority) -> Ticket {
        let target = Arc::new(target);
        loop {
            match self.join(&target, &priority) {
                Joined::Ours(ticket) => return ticket,
                // A failure of the other flight does not concern this image.
                Joined::Another(mut ticket) => drop(ticket.outcome().await),
                Joined::First(ticket, ..) => return ticket,
            }
        }
    }

    /// Joins the flight of this chain. Starts it if there is none.
    fn join(self: &Arc<Self>, target: &Arc<Target>, priority: &Priority) -> Joined {
        let joined = self.flights.join(target, priority, &self.stop);
        let Joined::First(ticket, reporter, token) = joined else {
            self.layers.layer_locks.inherit();
            self.places.wake();
            self.layers.permits.wake();
            return joined;
        };
        let guard = FlightGuard {
            runner: self.clone(),
            token,
        };
        self.tasks
            .spawn(guard.fly(target.clone(), priority.clone(), reporter));
        Joined::Ours(ticket)
    }

    /// Takes each lock that the flights need and releases it.
    pub(crate) fn probe_locks(&self) {
        self.flights.probe_locks();
        self.places.probe_locks();
        self.layers.permits.probe_locks();
    }
}

/// A running flight. Its entry is removed when it ends, even by a panic.
struct FlightGuard {
    runner: Arc<FlightRunner>,
    token: FlightToken,
}

impl FlightGuard {
    async fn fly(self, target: Arc<Target>, priority: Priority, reporter: Reporter) {
        let outcome = self.run(&target, &priority, &reporter).await;
        // From now on a caller starts a new flight; callers with a ticket get this outcome.
        drop(self);
        reporter.end(outcome);
    }

    async fn run(&self, target: &Target, priority: &Priority, reporter: &Reporter) -> Outcome {
        let runner = &*self.runner;
        let record = Record {
            containerd: runner.containerd.as_ref(),
            image: &target.image,
            flights: &runner.flights,
            token: &self.token,
            removals: &runner.removals,
        };
        let context = FlightContext {
            target,
            images: &runner.images,
            containerd: runner.containerd.as_ref(),
            leases: &runner.leases,
            places: &runner.places,
            layers: &runner.layers,
            priority,
            fallback: &runner.fallback,
            last_collections: &runner.last_collections,
            reporter,
            record: &record,
            stop: &self.token.stop,
        };
        let flight = Flight { context: &context };
        let began = Instant::now();
        let (done, created_at) = flight.run().await.map_err(Arc::new)?;
        let (snapshotter, chain) = &self.token.key;
        if done.action != Action::None {
            metrics::unpacked(snapshotter, began.elapsed());
        }
        if target.manifest.chain_id().is_some() {
            runner.sentinels.saw(snapshotter, chain);
        }
        // If the image is still being pulled, its labels have to be checked again when it has a name.
        if !target.arrives {
            let top = created_at.map(|created_at| target.top(created_at));
            runner.ready_cache.record_ready(snapshotter, chain, top);
        }
        Ok(done)
    }
}

impl Drop for FlightGuard {
    fn drop(&mut self) {
        self.runner.flights.leave(&self.token);
    }
}
