//! Runs the flights: one for each (snapshotter, chain), joined by all who ask for the same, detached
//! from them, and owned here: [`Engine::close`] waits for the last.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::containerd::{Containerd, Image};
use crate::metrics;

use super::ready_cache::ParentChain;
use super::serve::Serve;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::Profile;
use crate::unpack::flight::runner::FlightRunner;
use crate::unpack::layer::fallback::ContentFallback;
use crate::unpack::repair::replacements::Replacements;
use crate::unpack::repair::retag::name_layers;
use crate::unpack::repair::swap::{self, SwapDeadlines, SwapOutcome};
use crate::unpack::schedule::permits::Parallel;
use crate::unpack::schedule::priority::{Priority, Urgency};
use crate::unpack::schedule::progress::{Outcome, Reporter, Ticket, word};
use crate::unpack::snapshotter::capabilities::CapabilityCache;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::lease_owner::Role;
use crate::unpack::target::content_needs::NeedContent;
use crate::unpack::target::label_policy::LabelPolicy;
use crate::unpack::target::request::{Move, Request, Want};
use crate::unpack::target::resolve::Resolver;

/// Brings chains to `ready`.
pub struct Engine {
    pub(super) containerd: Arc<dyn Containerd>,
    pub(super) resolver: Resolver,
    swap_cost: swap::Cost,
    leases: Arc<Leases>,
    need_content: NeedContent,
    runner: Arc<FlightRunner>,
    replacements: Replacements,
    tasks: TaskTracker,
    stop: CancellationToken,
}

impl Engine {
    /// An engine at rest; `missing` says what is done about blobs that are gone.
    pub fn new(
        containerd: Arc<dyn Containerd>,
        role: Role,
        parallel: Parallel,
        policy: Box<dyn LabelPolicy>,
        missing: ContentFallback,
    ) -> Arc<Self> {
        let leases = Arc::new(Leases::new(role));
        let capabilities = Arc::new(CapabilityCache::default());
        let resolver = Resolver::new(
            containerd.clone(),
            leases.clone(),
            policy,
            capabilities.clone(),
        );
        let runner = FlightRunner::new(
            containerd.clone(),
            leases.clone(),
            missing,
            parallel,
            capabilities,
        );
        Arc::new(Self {
            resolver,
            containerd,
            swap_cost: swap::Cost::default(),
            leases,
            need_content: NeedContent::default(),
            tasks: runner.tasks.clone(),
            stop: runner.stop.clone(),
            runner: Arc::new(runner),
            replacements: Replacements::default(),
        })
    }

    /// Starts or joins the work; never waits.
    pub fn ensure(self: &Arc<Self>, request: Request) -> Ticket {
        let (reporter, ticket) = Reporter::new(&request.to_string());
        let (urgency, snapshotter) = (request.urgency, request.snapshotter.clone());
        let priority = Priority::new(urgency);
        let engine = self.clone();
        let mut counted = ticket.clone();
        self.tasks.spawn(async move {
            let Engine {
                resolver, runner, ..
            } = &*engine;
            Serve {
                resolver,
                runner,
                request: &request,
            }
            .run(priority, reporter)
            .await;
            let outcome = word(&counted.outcome().await);
            metrics::ensured(urgency.trigger(), &snapshotter, outcome);
        });
        ticket
    }

    /// What a container's own snapshot stands on: one round trip where that is known to be ready; of a
    /// container that is left to containerd, where it is known that it can start.
    pub async fn parent_chain(
        &self,
        snapshotter: &str,
        key: &str,
        name: Option<&str>,
        left_alone: bool,
    ) -> Result<ParentChain, crate::containerd::Error> {
        let containerd = self.containerd.as_ref();
        self.runner
            .ready_cache
            .parent_chain(containerd, snapshotter, key, name, left_alone)
            .await
    }

    /// What kind of snapshotter it is, as far as that is known now.
    pub fn profile(&self, snapshotter: &str) -> Profile {
        self.resolver.profile(snapshotter)
    }

    /// Finds out what kind of snapshotter it is, before that counts.
    pub async fn find_out(&self, snapshotter: &str) {
        if let Err(e) = self.resolver.find_out(snapshotter).await {
            log::debug!(snapshotter, error:% = e; "whether the guest pulls images is not known yet");
        }
    }

    /// Whether the snapshotter was found to leave labelled images to the guest.
    pub fn leaves_to_guest(&self, snapshotter: &str) -> bool {
        self.resolver.leaves_to_guest(snapshotter)
    }

    /// Whether layers have to be applied to make the image of a request ready: not, where the snapshotter
    /// mounts them from elsewhere.
    pub async fn needs_content(&self, request: &Request) -> Result<bool, Error> {
        let target = self.resolver.target(request).await?;
        let containerd = self.containerd.as_ref();
        self.need_content
            .ask(containerd, &self.leases, &target)
            .await
    }

    /// Puts the name of an image that has one into the labels of layers that were made when it was still
    /// being pulled. Answers into how many.
    pub async fn name_layers(&self, image: &str, snapshotter: &str) -> Result<usize, Error> {
        let request = Request {
            want: Want::Image(image.to_owned()),
            snapshotter: snapshotter.to_owned(),
            urgency: Urgency::Background,
        };
        let target = self.resolver.target(&request).await?;
        name_layers(self.containerd.as_ref(), &target).await
    }

    /// Moves a container that is being created onto the chain that a flight has made for it
    /// ([`Error::InUse`]). Answers in time; what was begun is seen through all the same, and its lease
    /// is released without anybody waiting for that.
    pub async fn swap(self: &Arc<Self>, wanted: Move, until: SwapDeadlines) -> SwapOutcome {
        let (answer, answered) = oneshot::channel();
        let inner = until.answered();
        let engine = self.clone();
        self.tasks.spawn(async move {
            let containerd = engine.containerd.as_ref();
            let lease = swap::in_time(inner.usual, engine.leases.take(containerd)).await;
            let lease = match lease {
                Ok(lease) => lease,
                Err(untouched) => return drop(answer.send(untouched)),
            };
            let swap = swap::Swap {
                containerd,
                lease: &lease,
                wanted: &wanted,
            };
            let began = Instant::now();
            let swapped = swap.run(inner, &engine.swap_cost).await;
            if swapped == SwapOutcome::Done {
                engine.swap_cost.measured(began.elapsed());
            }
            // Refused where the hook has gone: nobody is left to tell.
            drop(answer.send(swapped));
            lease.release(containerd).await;
        });
        // Without an answer the worst has to be assumed.
        let answered = tokio::time::timeout_at(until.last, answered).await;
        answered
            .ok()
            .and_then(Result::ok)
            .unwrap_or(SwapOutcome::Lost)
    }

    /// Replaces the chain of this error in the background, if the error is [`Error::InUse`]: as soon as nothing
    /// uses the chain any more.
    pub fn replace_if_in_use(self: &Arc<Self>, error: &Error, snapshotter: &str) {
        let Error::InUse { image, .. } = error else {
            return;
        };
        let Some(replacement) = self.replacements.begin(image, snapshotter) else {
            return;
        };
        let (engine, image, snapshotter) = (self.clone(), image.clone(), snapshotter.to_owned());
        self.tasks.spawn(async move {
            let attempts = replacement.run(|| engine.replace(&image, &snapshotter));
            engine.stop.run_until_cancelled(attempts).await;
        });
    }

    /// Whether the chain of this error could not be replaced for some tries: something else uses it.
    pub fn is_held(&self, error: &Error, snapshotter: &str) -> bool {
        matches!(error, Error::InUse { image, .. } if self.replacements.is_held(image, snapshotter))
    }

    /// One attempt to replace the chain of an image.
    async fn replace(self: &Arc<Self>, image: &str, snapshotter: &str) -> Outcome {
        // It may have been known by its digest alone when it was asked for.
        let name = self.resolver.images.best_name(image).await;
        let name = name.unwrap_or_else(|| image.to_owned());
        let request = Request {
            want: Want::Image(name.clone()),
            snapshotter: snapshotter.to_owned(),
            urgency: Urgency::Background,
        };
        let outcome = self.ensure(request).outcome().await;
        if outcome.is_ok()
            && let Err(e) = self.name_layers(&name, snapshotter).await
        {
            log::debug!(image = name, snapshotter, error:% = e; "labels may name the image by its digest");
        }
        outcome
    }

    /// An image of this name was removed. A chain that a container keeps is not anchored any more when
    /// the image is pulled again, so no chain is taken for ready without a look.
    pub fn image_removed(&self, name: &str) {
        self.runner.removals.count();
        self.runner.ready_cache.image_removed(name);
        self.need_content.forget();
    }

    /// Ends the flights whose images have no record any more, and forgets what was read of removed images.
    /// Answers the images that there are.
    pub async fn end_removed(&self) -> Result<Vec<Image>, crate::containerd::Error> {
        let moment = self.runner.flights.now();
        let images = self.containerd.images().await?;
        let records = images.iter().map(|image| image.target.digest.as_str());
        let records = records.collect();
        self.runner.flights.end_without(&records, &moment);
        self.resolver.images.keep(&records);
        Ok(images)
    }

    /// Something about the node may have changed: containerd was restarted, or the policy is another.
    pub fn forget(&self) {
        self.runner.ready_cache.forget();
        self.resolver.forget();
        self.runner.layers.capabilities.forget();
        self.need_content.forget();
    }

    /// Whether an encrypted layer is unpacked as CRI does where the keys are the node's own
    /// (`image_decryption.key_model`).
    pub fn hand_keys_over(&self, hand_over: bool) {
        let keys = &self.runner.layers.hands_keys_over;
        keys.store(hand_over, Ordering::Relaxed);
    }

    /// Takes away what a crash has left. Answers how many leases that were.
    pub async fn sweep(&self) -> Result<usize, crate::containerd::Error> {
        self.leases.sweep(self.containerd.as_ref()).await
    }

    /// The leases that a crash has left: those that [`Engine::sweep`] would take away.
    pub async fn leftovers(&self) -> Result<Vec<String>, crate::containerd::Error> {
        self.leases.leftovers(self.containerd.as_ref()).await
    }

    /// Stops all work, which tidies up after itself, and waits for it.
    pub async fn close(&self) {
        self.stop.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    /// Takes each lock that all work takes, and lets it go.
    pub fn probe_locks(&self) {
        self.runner.probe_locks();
        self.replacements.probe_locks();
    }
}
