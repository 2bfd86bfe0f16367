//! Runs the flights: one for each (snapshotter, chain), joined by all who ask for the same, detached
//! from them, and owned here: [`Engine::close`] waits for the last.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::containerd::{Containerd, Image, Labels};
use crate::image::{self, Manifests, Platform};

use super::flight::{Flight, Target};
use super::lease::{Leases, Role};
use super::progress::{Outcome, Reporter, Ticket};
use super::standing::Memory;
use super::{Error, Standing, State};

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

/// Says what is wanted for `(snapshotter, image name)`. That is for others to decide.
pub type LabelPolicy = Box<dyn Fn(&str, &str) -> Labelling + Send + Sync>;

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
    policy: LabelPolicy,
    manifests: Manifests,
    leases: Arc<Leases>,
    memory: Memory,
    flights: Mutex<HashMap<FlightKey, Ticket>>,
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
        policy: LabelPolicy,
    ) -> Arc<Self> {
        Arc::new(Self {
            containerd,
            policy,
            manifests: Manifests::new(Platform::of_this_node()),
            leases: Arc::new(Leases::new(role)),
            memory: Memory::default(),
            flights: Mutex::default(),
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
        // Which name the labels carry does not matter here, only that they are there.
        let reference = Some(image.name.as_str());
        let target = self.target(image, snapshotter, reference).await?;
        let look = target.look(self.containerd.as_ref()).await;
        let (sight, _) = look.map_err(|source| Error::Containerd {
            image: image.name.clone(),
            snapshotter: snapshotter.to_owned(),
            source,
        })?;
        Ok(Look {
            manifest: target.manifest.digest.clone(),
            state: sight.state(&target.required),
            layers: sight.layers.len(),
            ready_layers: sight.ready_layers(&target.required),
            committed: sight.committed(),
        })
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
        match self.resolve(&request).await {
            Err(e) => reporter.end(Err(Arc::new(e))),
            Ok(target) => {
                let flight = self.join(target, request.background);
                reporter.follow(flight).await;
            }
        }
    }

    async fn resolve(&self, request: &Request) -> Result<Target, Error> {
        let containerd = self.containerd.as_ref();
        let snapshotter = request.snapshotter.as_str();
        let (image, asked) = match &request.want {
            Want::Image(name) => (image::find(containerd, name).await?, Some(name)),
            Want::Container { key, chain, name } => {
                let found = self.of_chain(chain, name.as_deref()).await?;
                let image = found.ok_or_else(|| Error::NoImage {
                    chain: chain.clone(),
                    key: key.clone(),
                    snapshotter: snapshotter.to_owned(),
                })?;
                if let Some(name) = name {
                    self.memory.stood_on(snapshotter, name, chain);
                }
                (image, name.as_ref())
            }
        };
        if (self.policy)(snapshotter, &image.name) == Labelling::None {
            return self.target(&image, snapshotter, None).await;
        }
        let names = self.names(&image).await?;
        let reference = image::name_for_labels(asked.map(String::as_str), &names);
        let reference = reference.ok_or_else(|| Error::NoName(image.name.clone()))?;
        self.target(&image, snapshotter, Some(&reference)).await
    }

    /// The image whose chain ends at `chain`: the one that the name stands for, else any.
    async fn of_chain(&self, chain: &str, name: Option<&str>) -> Result<Option<Image>, Error> {
        let containerd = self.containerd.as_ref();
        if let Some(name) = name
            && let Ok(image) = image::find(containerd, name).await
            && self.ends_at(&image, chain).await
        {
            return Ok(Some(image));
        }
        for image in self.all_images().await? {
            if self.ends_at(&image, chain).await {
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// An image that cannot be read is not the one that is looked for.
    async fn ends_at(&self, image: &Image, chain: &str) -> bool {
        let read = self.manifests.read(self.containerd.as_ref(), image).await;
        read.is_ok_and(|manifest| manifest.chain_id() == Some(chain))
    }

    /// All names of an image's target.
    async fn names(&self, image: &Image) -> Result<Vec<String>, Error> {
        let same = |other: &Image| other.target.digest == image.target.digest;
        let images = self.all_images().await?.into_iter();
        Ok(images.filter(same).map(|other| other.name).collect())
    }

    async fn all_images(&self) -> Result<Vec<Image>, Error> {
        let images = self.containerd.images().await;
        images.map_err(|source| {
            let image = "(all images)".to_owned();
            Error::Image(image::Error::Containerd { image, source })
        })
    }

    /// `reference` is the name that the labels carry; without one there are none.
    async fn target(
        &self,
        image: &Image,
        snapshotter: &str,
        reference: Option<&str>,
    ) -> Result<Target, Error> {
        let manifest = self.manifests.read(self.containerd.as_ref(), image).await?;
        let labelling = (self.policy)(snapshotter, &image.name);
        let reference = reference.filter(|_| labelling != Labelling::None);
        let labels = image::layer_labels(&manifest, reference);
        Ok(Target {
            required: match labelling {
                Labelling::Required => labels.clone(),
                Labelling::AtUnpack | Labelling::None => vec![Labels::new(); labels.len()],
            },
            labels,
            image: image.name.clone(),
            manifest,
            snapshotter: snapshotter.to_owned(),
        })
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
        let (snapshotter, chain) = &self.key;
        engine.memory.is_ready(snapshotter, chain, created_at);
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
