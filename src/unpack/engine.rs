//! Runs the flights: one for each (snapshotter, chain), joined by all who ask for the same, detached
//! from them, and owned here: [`Engine::close`] waits for the last.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::containerd::{Containerd, Image};
use crate::retry;

use super::flight::{Flight, Target};
use super::lease::{Leases, Role};
use super::profile::Repair;
use super::progress::{Outcome, Reporter, Ticket};
use super::resolve::Resolver;
use super::standing::Memory;
use super::swap::{self, Swapped};
use super::{Error, Standing, State};

/// How often a chain in use is tried to be replaced: quick at first, since containerd takes a
/// rejected container's snapshot away within 0.2 s, then every 10 s or more for some minutes.
const REPLACE_TRIES: usize = 30;

/// What the labels of an image's layers are to be in a snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Labelling {
    /// The `cri.*` labels, put on what lacks them.
    Required,
    /// The `cri.*` labels on what is unpacked from now on; what is there without them is ready.
    AtUnpack,
    /// None.
    None,
}

/// What is wanted of labels, for others to decide.
pub trait LabelPolicy: Send + Sync {
    /// Which labels the layers of an image get in a snapshotter.
    fn labelling(&self, snapshotter: &str, image: &str) -> Labelling;
    /// How absent labels are repaired; `None` for what the snapshotter's profile says.
    fn repair(&self, snapshotter: &str) -> Option<Repair>;
}

/// Work at the same time that nobody waits for. One keeps the rest of the permits for hooks and
/// people.
const PARALLEL_BACKGROUND: usize = 1;

/// What is to be made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Want {
    /// An image, by whatever names it.
    Image(String),
    /// The image of a container that is being created: what its snapshot stands on is the truth, the
    /// name in its annotation a hint.
    Container {
        /// The container's snapshot.
        key: String,
        /// The chain id below it.
        chain: String,
        /// The annotation.
        name: Option<String>,
    },
}

/// One `ensure`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// What.
    pub want: Want,
    /// Where.
    pub snapshotter: String,
    /// Nobody waits for it: others go first.
    pub background: bool,
}

/// A container that is to stand on another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where its snapshot is.
    pub snapshotter: String,
    /// The container's id.
    pub key: String,
    /// What it stands on.
    pub from: String,
    /// What it is to stand on.
    pub onto: String,
}

/// How an image stands in a snapshotter, for the command line.
#[derive(Clone, Debug)]
pub struct Look {
    /// Of this platform.
    pub manifest: String,
    /// The word for it.
    pub state: State,
    /// Layers of the image.
    pub layers: usize,
    /// Of them, those that are committed with their labels.
    pub ready_layers: usize,
    /// Of them, those that are committed.
    pub committed: usize,
}

/// Brings chains to `ready`.
pub struct Engine {
    containerd: Arc<dyn Containerd>,
    resolver: Resolver,
    swap_cost: swap::Cost,
    leases: Arc<Leases>,
    memory: Memory,
    flights: Mutex<HashMap<FlightKey, Ticket>>,
    /// (snapshotter, image) that is being asked for until its chain is replaced.
    replacing: Mutex<HashSet<FlightKey>>,
    permits: Semaphore,
    background: Semaphore,
    tasks: TaskTracker,
    stop: CancellationToken,
}

/// A snapshotter and a chain id.
type FlightKey = (String, String);

impl Engine {
    /// An engine at rest. `parallel_images` flights run at the same time.
    pub fn new(
        containerd: Arc<dyn Containerd>,
        role: Role,
        parallel_images: usize,
        policy: Box<dyn LabelPolicy>,
    ) -> Arc<Self> {
        let leases = Arc::new(Leases::new(role));
        Arc::new(Self {
            resolver: Resolver::new(containerd.clone(), leases.clone(), policy),
            containerd,
            swap_cost: swap::Cost::default(),
            leases,
            memory: Memory::default(),
            flights: Mutex::default(),
            replacing: Mutex::default(),
            permits: Semaphore::new(parallel_images),
            background: Semaphore::new(PARALLEL_BACKGROUND),
            tasks: TaskTracker::new(),
            stop: CancellationToken::new(),
        })
    }

    /// Starts or joins the work; never waits.
    pub fn ensure(self: &Arc<Self>, request: Request) -> Ticket {
        let (reporter, ticket) = Reporter::new(&request.to_string());
        self.tasks.spawn(self.clone().serve(request, reporter));
        ticket
    }

    /// What a container's own snapshot stands on: one round trip where that is known to be ready.
    pub async fn standing(
        &self,
        snapshotter: &str,
        key: &str,
        name: Option<&str>,
    ) -> Result<Standing, crate::containerd::Error> {
        let containerd = self.containerd.as_ref();
        self.memory
            .standing(containerd, snapshotter, key, name)
            .await
    }

    /// How an image stands in a snapshotter. Changes nothing.
    pub async fn look(&self, image: &Image, snapshotter: &str) -> Result<Look, Error> {
        let target = self.resolver.seen(image, snapshotter).await?;
        let look = target.look(self.containerd.as_ref()).await;
        let (sight, _) = look.map_err(|e| target.failed(e))?;
        Ok(Look {
            manifest: target.manifest.digest.clone(),
            state: sight.state(&target.rules),
            layers: sight.layers.len(),
            ready_layers: sight.ready_layers(&target.rules),
            committed: sight.committed(),
        })
    }

    /// Moves a container that is being created onto the chain that a flight has made for it
    /// ([`Done::stand_on`](super::Done::stand_on)). Begun, it is seen through, even when nobody waits
    /// for it any more.
    pub async fn swap(self: &Arc<Self>, wanted: Move, deadline: Instant) -> Result<Swapped, Error> {
        let subject = wanted.key.clone();
        let engine = self.clone();
        let swap = self
            .tasks
            .spawn(async move { engine.swapped(wanted, deadline).await });
        swap.await.unwrap_or(Err(Error::Died(subject)))
    }

    async fn swapped(&self, wanted: Move, deadline: Instant) -> Result<Swapped, Error> {
        let containerd = self.containerd.as_ref();
        let failed = |source| Error::Containerd {
            image: format!("container {}", wanted.key),
            snapshotter: wanted.snapshotter.clone(),
            source,
        };
        let lease = self.leases.take(containerd).await.map_err(failed)?;
        let swap = swap::Swap {
            containerd,
            lease: &lease,
            snapshotter: &wanted.snapshotter,
            key: &wanted.key,
            from: &wanted.from,
            onto: &wanted.onto,
        };
        let began = Instant::now();
        let swapped = swap.run(deadline, self.swap_cost.estimate()).await;
        if matches!(swapped, Ok(Swapped::Done)) {
            self.swap_cost.measured(began.elapsed());
        }
        lease.release(containerd).await;
        swapped.map_err(failed)
    }

    /// Asks for an image again and again, in the background, until its chain could be replaced: as
    /// soon as nothing uses it any more. Gives up after a while; the next who asks tries again.
    pub fn replace_when_unused(self: &Arc<Self>, image: String, snapshotter: String) {
        let key = (snapshotter.clone(), image.clone());
        if !self.replacing().insert(key.clone()) {
            return;
        }
        let engine = self.clone();
        self.tasks.spawn(async move {
            let tries = engine.replaced(image, snapshotter);
            engine.stop.run_until_cancelled(tries).await;
            engine.replacing().remove(&key);
        });
    }

    async fn replaced(self: &Arc<Self>, image: String, snapshotter: String) {
        for pause in retry::pauses().take(REPLACE_TRIES) {
            tokio::time::sleep(pause).await;
            let request = Request {
                want: Want::Image(image.clone()),
                snapshotter: snapshotter.clone(),
                background: true,
            };
            match self.ensure(request).outcome().await {
                Ok(done) if done.stand_on.is_some() => {}
                Ok(done) => {
                    log::info!(image, snapshotter, action:% = done.action; "a chain that was unpacked on the host is replaced");
                    return;
                }
                Err(e) => log::debug!(image, snapshotter, error:% = e; "chain not replaced yet"),
            }
        }
        log::info!(image, snapshotter; "a chain that was unpacked on the host is still in use; containers on it go on, new ones get another");
    }

    /// Something about the node may have changed: containerd was restarted.
    pub fn forget(&self) {
        self.resolver.forget();
    }

    /// Takes away what a crash has left. Answers how many leases that were.
    pub async fn sweep(&self) -> Result<usize, crate::containerd::Error> {
        self.leases.sweep(self.containerd.as_ref()).await
    }

    /// Stops all work, which tidies up after itself, and waits for it.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    async fn serve(self: Arc<Self>, request: Request, reporter: Reporter) {
        match self.resolver.target(&request).await {
            Err(e) => reporter.end(Err(Arc::new(e))),
            Ok(target) => {
                if let Want::Container {
                    chain,
                    name: Some(name),
                    ..
                } = &request.want
                {
                    self.memory.stood_on(&request.snapshotter, name, chain);
                }
                let flight = self.join(target, request.background);
                reporter.follow(flight).await;
            }
        }
    }

    /// The ticket of the one flight of this chain, which starts now if there is none.
    fn join(self: &Arc<Self>, target: Target, background: bool) -> Ticket {
        let chain = target
            .manifest
            .chain_id()
            .unwrap_or(&target.manifest.digest);
        let key = (target.snapshotter.clone(), chain.to_owned());
        let mut flights = self.flights();
        if let Some(ticket) = flights.get(&key) {
            return ticket.clone();
        }
        let (reporter, ticket) = Reporter::new(&target.image);
        flights.insert(key.clone(), ticket.clone());
        let entry = Entry {
            engine: self.clone(),
            key,
        };
        self.tasks.spawn(entry.fly(target, background, reporter));
        ticket
    }

    fn replacing(&self) -> MutexGuard<'_, HashSet<FlightKey>> {
        self.replacing
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn flights(&self) -> MutexGuard<'_, HashMap<FlightKey, Ticket>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A flight's place in the map, which it leaves even when it panics.
struct Entry {
    engine: Arc<Engine>,
    key: FlightKey,
}

impl Entry {
    async fn fly(self, target: Target, background: bool, reporter: Reporter) {
        let outcome = self.run(&target, background, &reporter).await;
        // Whoever asks from now on gets a new look; whoever holds a ticket gets this outcome.
        drop(self);
        reporter.end(outcome);
    }

    async fn run(&self, target: &Target, background: bool, reporter: &Reporter) -> Outcome {
        let engine = &*self.engine;
        let stopped = || Arc::new(Error::Stopped(target.image.clone()));
        let permits = async {
            let quiet = match background {
                true => Some(engine.background.acquire().await),
                false => None,
            };
            (quiet, engine.permits.acquire().await)
        };
        let permits = engine.stop.run_until_cancelled(permits).await;
        let _permits = permits.ok_or_else(stopped)?;
        let flight = Flight {
            target,
            containerd: engine.containerd.as_ref(),
            leases: &engine.leases,
            reporter,
            stop: &engine.stop,
        };
        let (done, created_at) = flight.run().await.map_err(Arc::new)?;
        if done.stand_on.is_none() {
            let (snapshotter, chain) = &self.key;
            engine.memory.is_ready(snapshotter, chain, created_at);
        }
        Ok(done)
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.engine.flights().remove(&self.key);
    }
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.want {
            Want::Image(name) => write!(f, "{name}")?,
            Want::Container { key, .. } => write!(f, "container {key}")?,
        }
        write!(f, " in {}", self.snapshotter)
    }
}
