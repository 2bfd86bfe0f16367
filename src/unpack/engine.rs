//! The engine: makes chains ready. It owns all tasks of the work, which continue without their callers, and
//! [`Engine::close`] waits for them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::containerd::{Containerd, Image};
use crate::metrics;

use super::inspect::{self, ImageStatus};
use super::ready_cache::ParentChain;
use super::serve::Serve;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::plan::Planned;
use crate::unpack::chain::profile::Profile;
use crate::unpack::chain::state::State;
use crate::unpack::flight::worker::Shared;
use crate::unpack::flight::workers::Workers;
use crate::unpack::layer::fallback::ContentFallback;
use crate::unpack::purge::{Leftover, Removal, Survey};
use crate::unpack::repair::lost;
use crate::unpack::repair::replacements::Source;
use crate::unpack::repair::retag::name_layers;
use crate::unpack::repair::swap::{self, SwapDeadlines, SwapOutcome};
use crate::unpack::schedule::permits::Parallel;
use crate::unpack::schedule::priority::{Priority, Urgency};
use crate::unpack::schedule::progress::{Outcome, Reporter, Ticket, outcome_label};
use crate::unpack::snapshotter::facts::Facts;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::lease_owner::Role;
use crate::unpack::snapshotter::listing::{Listing, Lists};
use crate::unpack::snapshotter::sentinels::Look;
use crate::unpack::target::images::Images;
use crate::unpack::target::label_policy::LabelPolicy;
use crate::unpack::target::request::{Move, Request, Want};
use crate::unpack::target::resolve::Resolver;
use crate::unpack::target::stuck;
use crate::unpack::target::usage::{self, Usage};

/// Makes chains ready.
pub struct Engine {
    containerd: Arc<dyn Containerd>,
    resolver: Resolver,
    swap_cost: swap::Cost,
    leases: Arc<Leases>,
    shared: Arc<Shared>,
    workers: Workers,
}

impl Engine {
    /// Creates an engine without work. `fallback` is how the content of a layer is obtained if its blob is gone.
    pub fn new(
        containerd: Arc<dyn Containerd>,
        role: Role,
        parallel: Parallel,
        policy: Box<dyn LabelPolicy>,
        fallback: ContentFallback,
    ) -> Arc<Self> {
        let leases = Arc::new(Leases::new(role));
        let images = Arc::new(Images::new(containerd.clone()));
        let resolver = Resolver::new(images.clone(), leases.clone(), policy.into());
        let shared = Arc::new(Shared::new(
            images,
            containerd.clone(),
            leases.clone(),
            fallback,
            parallel,
        ));
        Arc::new(Self {
            resolver,
            containerd,
            swap_cost: swap::Cost::default(),
            leases,
            workers: Workers::new(shared.clone()),
            shared,
        })
    }

    /// Starts the work of a request, or joins it if it is running, and returns at once.
    pub fn ensure(self: &Arc<Self>, request: Request) -> Ticket {
        let (reporter, ticket) = Reporter::new(&request.to_string());
        let (urgency, snapshotter) = (request.urgency, request.snapshotter.clone());
        let priority = Priority::new(urgency);
        let engine = self.clone();
        let mut own_ticket = ticket.clone();
        self.shared.tasks.spawn(async move {
            Serve {
                resolver: &engine.resolver,
                worker: &engine.workers.of(&request.snapshotter),
                request: &request,
            }
            .run(priority, reporter)
            .await;
            let outcome = outcome_label(&own_ticket.outcome().await);
            metrics::ensured(urgency.trigger(), &snapshotter, outcome);
        });
        ticket
    }

    /// Reads the parent of a container's own snapshot, and returns whether that chain is known to be ready. With
    /// `left_to_containerd`, it is enough that a container can start from the chain.
    /// Takes one round trip if the chain is known.
    pub async fn parent_chain(
        &self,
        snapshotter: &str,
        key: &str,
        name: Option<&str>,
        left_to_containerd: bool,
    ) -> Result<ParentChain, crate::containerd::Error> {
        let containerd = self.containerd.as_ref();
        let worker = self.workers.of(snapshotter);
        let guest_pulls = self.resolver.guest_mode.now(&worker.facts);
        worker
            .ready_cache
            .parent_chain(
                containerd,
                snapshotter,
                key,
                name,
                left_to_containerd,
                guest_pulls,
            )
            .await
    }

    /// Returns the kind of snapshotter, as far as it is known now.
    pub fn profile(&self, snapshotter: &str) -> Profile {
        self.resolver.guest_mode.profile(&self.facts(snapshotter))
    }

    /// Finds out whether the guest pulls the snapshotter's images, ahead of the first request. Takes no call if it is
    /// known of the snapshotter's process.
    pub async fn find_out(&self, snapshotter: &str) {
        if let Err(e) = self
            .resolver
            .guest_mode
            .find_out(&self.facts(snapshotter))
            .await
        {
            log::debug!(snapshotter, error:% = e; "whether the guest pulls images could not be found out: the next request of the snapshotter tries again");
        }
    }

    /// Whether the guest pulls the labelled images of the snapshotter, as far as that is configured or found out.
    pub fn supports_guest_pull(&self, snapshotter: &str) -> bool {
        self.resolver
            .guest_mode
            .supports_guest_pull(&self.facts(snapshotter))
    }

    /// Returns whether layers have to be applied to make the image of a request ready. `false` if the snapshotter mounts
    /// them from elsewhere. To find that out, it may have to wait for a registry: the caller's permit to look at images,
    /// `look`, is dropped before.
    pub async fn needs_content<L: Send>(&self, request: &Request, look: L) -> Result<bool, Error> {
        let worker = self.workers.of(&request.snapshotter);
        let target = self.resolver.target(request, &worker.facts).await?;
        let containerd = self.containerd.as_ref();
        worker
            .need_content
            .ask(containerd, &self.leases, &target, look)
            .await
    }

    /// Puts the image's name into the labels of layers that were made while the image was being pulled. Returns their
    /// number.
    pub async fn name_layers(&self, image: &str, snapshotter: &str) -> Result<usize, Error> {
        let request = Request {
            want: Want::Image(image.to_owned()),
            snapshotter: snapshotter.to_owned(),
            urgency: Urgency::Background,
        };
        let target = self
            .resolver
            .target(&request, &self.facts(snapshotter))
            .await?;
        name_layers(self.containerd.as_ref(), &target).await
    }

    /// Reads all snapshots of a snapshotter, and all blobs.
    pub async fn list(&self, snapshotter: &str) -> Result<Listing, crate::containerd::Error> {
        self.lists().read(snapshotter).await
    }

    /// Returns what reads the listings of several snapshotters.
    pub fn lists(&self) -> Lists<'_> {
        Lists::new(self.containerd.as_ref())
    }

    /// Returns the status of the image with these names, from a listing. Changes nothing.
    pub async fn image_status(
        &self,
        image: &Image,
        names: &[String],
        listing: &Listing,
    ) -> Result<ImageStatus, Error> {
        let worker = self.workers.of(&listing.snapshotter);
        let status =
            inspect::image_status(&self.resolver, image, names, listing, &worker.facts).await?;
        if status.committed == status.layers
            && let Some(chain) = &status.chain
        {
            worker.sentinels.saw(chain);
        }
        Ok(status)
    }

    /// Looks whether the snapshotter still has a chain that it had. [`Look::Lost`] is returned at least once for each loss.
    pub async fn look(&self, snapshotter: &str) -> Result<Look, crate::containerd::Error> {
        let containerd = self.containerd.as_ref();
        let worker = self.workers.of(snapshotter);
        let look = worker.sentinels.look(containerd, snapshotter).await?;
        if look == Look::Lost {
            worker.ready_cache.lost();
        }
        Ok(look)
    }

    /// Returns the steps that [`Engine::ensure`] would run for an image, in order; none for an excluded image.
    pub async fn planned(
        &self,
        image: &Image,
        names: &[String],
        listing: &Listing,
    ) -> Result<Vec<Planned>, Error> {
        let facts = self.facts(&listing.snapshotter);
        inspect::planned(&self.resolver, image, names, listing, &facts).await
    }

    /// Reads the manifests of many images at the same time, so that those who ask for them next do not wait. Errors are
    /// theirs to meet.
    pub async fn read_manifests(&self, images: impl Iterator<Item = &Image>) {
        self.resolver.images.read_ahead(images).await;
    }

    /// Returns the chain ids of an image's layers, bottom first.
    pub async fn chain(&self, image: &Image) -> Result<Vec<String>, Error> {
        inspect::chain(&self.resolver, image).await
    }

    /// Returns whether a container has used an image in a snapshotter.
    pub async fn usage(&self, image: &Image, snapshotter: &str) -> Result<Usage, Error> {
        usage::of(&self.resolver.images, image, snapshotter).await
    }

    /// Returns the same from a listing.
    pub async fn usage_in(&self, image: &Image, listing: &Listing) -> Result<Usage, Error> {
        usage::listed(&self.resolver.images, image, listing).await
    }

    /// Whether an image has its anchor in the snapshotter of a listing.
    pub async fn had(&self, image: &Image, listing: &Listing) -> bool {
        let usage = self.usage_in(image, listing).await;
        usage.is_ok_and(|usage| usage != Usage::Absent)
    }

    /// Whether the snapshotter of a listing has lost an image, and it was not made again.
    pub async fn is_marked_lost(&self, image: &Image, listing: &Listing) -> bool {
        lost::is_marked(&self.resolver.images, image, listing).await
    }

    /// Removes the mark of an image that is there again.
    pub async fn unmark_lost(&self, image: &Image, snapshotter: &str) {
        if let Err(e) = lost::unmark(&self.resolver.images, image, snapshotter).await {
            log::debug!(image = image.name.as_str(), snapshotter, error:% = e; "mark of a lost image could not be removed: the next reconcile tries again");
        }
    }

    /// Records that a container uses an image in a snapshotter. The reference may be a name, a digest or an id.
    pub async fn record_use(&self, reference: &str, snapshotter: &str) -> Result<(), Error> {
        usage::record(&self.resolver.images, reference, snapshotter).await
    }

    /// Returns the size of the (compressed) blobs of an image's layers, in bytes.
    pub async fn bytes(&self, image: &Image) -> Result<u64, Error> {
        inspect::bytes(&self.resolver, image).await
    }

    /// Returns the images that have the layer `chain` and that containerd cannot unpack by itself in a snapshotter, the
    /// newest first.
    pub async fn stuck_at(&self, snapshotter: &str, chain: &str) -> Result<Vec<Image>, Error> {
        stuck::with_layer(&self.resolver.images, snapshotter, chain).await
    }

    /// Returns whether containerd cannot unpack this image by itself in a snapshotter: a blob is gone, will be collected,
    /// or is encrypted.
    pub async fn is_stuck(&self, snapshotter: &str, image: &Image) -> Result<bool, Error> {
        stuck::is(&self.resolver.images, snapshotter, image).await
    }

    /// Moves a container that is being created onto the private chain that was made for it
    /// ([`Progress::onto`](super::Progress)). Returns before the deadline. A move that has begun is finished in the background, where its lease is released, too.
    pub async fn swap(self: &Arc<Self>, wanted: Move, until: SwapDeadlines) -> SwapOutcome {
        let (answer, answered) = oneshot::channel();
        let inner = until.before_answer();
        let engine = self.clone();
        self.shared.tasks.spawn(async move {
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
            let outcome = swap.run(inner, &engine.swap_cost).await;
            if outcome == SwapOutcome::Done {
                engine.swap_cost.measured(began.elapsed());
            }
            // Fails if the hook has stopped waiting.
            drop(answer.send(outcome));
            lease.release(containerd).await;
        });
        // Without an answer, the container's snapshot may be gone.
        let answered = tokio::time::timeout_at(until.last, answered).await;
        answered
            .ok()
            .and_then(Result::ok)
            .unwrap_or(SwapOutcome::Lost)
    }

    /// Starts to replace the chain of this error in the background, if the error is [`Error::InUse`]. The chain is
    /// replaced when nothing uses it any more.
    pub fn replace_if_in_use(self: &Arc<Self>, error: &Error, snapshotter: &str) {
        // A lost chain is no chain to replace: the next reconcile tries again.
        let Error::InUse { image, state, .. } = error else {
            return;
        };
        if *state == State::Lost {
            return;
        }
        let worker = self.workers.of(snapshotter);
        if !worker.replacements.add(image) {
            return;
        }
        let (engine, snapshotter) = (self.clone(), snapshotter.to_owned());
        self.shared.tasks.spawn(async move {
            let source = Source {
                containerd: engine.containerd.as_ref(),
                images: &engine.resolver.images,
                snapshotter: &snapshotter,
            };
            let replace = |image: String| engine.replace(image, &snapshotter);
            let rounds = worker.replacements.run(&source, replace);
            engine.shared.stop.run_until_cancelled(rounds).await;
        });
    }

    /// Has the chains replaced soon that a snapshot of this key used. The snapshot, or a container with this id, was removed.
    pub fn user_removed(&self, key: &str) {
        for worker in self.workers.all() {
            worker.replacements.user_removed(key);
            worker.collections.user_removed();
        }
    }

    /// Whether the chain of this error was still in use some seconds after its first error: its user is not a short-lived
    /// one.
    pub fn is_held(&self, error: &Error, snapshotter: &str) -> bool {
        matches!(error, Error::InUse { image, .. } if self.workers.of(snapshotter).replacements.is_held(image))
    }

    /// Makes one attempt to replace the chain of an image.
    async fn replace(self: &Arc<Self>, image: String, snapshotter: &str) -> Outcome {
        // At the time of the request the image may have had no name but its digest.
        let name = self.resolver.images.best_name(&image).await;
        let name = name.unwrap_or(image);
        let request = Request {
            want: Want::Image(name.clone()),
            snapshotter: snapshotter.to_owned(),
            urgency: Urgency::Background,
        };
        let outcome = self.ensure(request).outcome().await;
        if outcome.is_ok()
            && let Err(e) = self.name_layers(&name, snapshotter).await
        {
            log::debug!(image = name, snapshotter, error:% = e; "image name could not be put into the labels of its layers: they may still name the image by its digest");
        }
        outcome
    }

    /// Forgets which chains are ready, after an image of this name was removed, or any may have been. A container may keep
    /// the chain of the image, but the chain has lost its anchor (the gc label on the config blob) when the image is pulled
    /// again.
    pub fn images_removed(&self, name: Option<&str>) {
        self.shared.removals.count();
        for worker in self.workers.all() {
            worker.ready_cache.images_removed(name);
            // A look at content may ask a registry: not for all images because any may have been removed.
            if name.is_some() {
                worker.need_content.forget();
            }
        }
    }

    /// Ends the flights of images that were removed, and forgets their documents. Returns the images of the store.
    pub async fn end_removed(&self) -> Result<Vec<Image>, crate::containerd::Error> {
        let workers = self.workers.all();
        let moments: Vec<_> = workers.iter().map(|worker| worker.flights.now()).collect();
        let images = self.containerd.images().await?;
        let records = images.iter().map(|image| image.target.digest.as_str());
        let records = records.collect();
        for (worker, moment) in workers.iter().zip(&moments) {
            worker.flights.end_without(&records, moment);
        }
        self.resolver.images.keep(&records);
        Ok(images)
    }

    /// Forgets what was cached, since containerd was restarted or the policy has changed.
    pub fn forget(&self) {
        self.resolver.forget();
        for worker in self.workers.all() {
            worker.need_content.forget();
            worker.facts.forget();
            // Last: what was found out with older facts must not be recorded after this.
            worker.ready_cache.forget();
        }
    }

    fn facts(&self, snapshotter: &str) -> Arc<Facts> {
        self.workers.of(snapshotter).facts.clone()
    }

    /// Sets whether stream processors that decrypt a layer get the payload that CRI passes to them if the keys belong to
    /// the node (`image_decryption.key_model`).
    pub fn hand_keys_over(&self, hand_over: bool) {
        let keys = &self.shared.limits.hands_keys_over;
        keys.store(hand_over, Ordering::Relaxed);
    }

    /// Removes the leases and temporary snapshots that a crash has left. Returns the number of leases.
    pub async fn sweep(&self) -> Result<usize, crate::containerd::Error> {
        self.leases.sweep(self.containerd.as_ref()).await
    }

    /// Returns the leases that a crash has left, which [`Engine::sweep`] would remove.
    pub async fn leftovers(&self) -> Result<Vec<String>, crate::containerd::Error> {
        self.leases.leftovers(self.containerd.as_ref()).await
    }

    /// Returns what the plugin has left on this node. Changes nothing.
    pub async fn left_behind(&self) -> Result<Vec<Leftover>, crate::containerd::Error> {
        let survey = Survey {
            containerd: self.containerd.as_ref(),
            images: &self.resolver.images,
            leases: &self.leases,
        };
        survey.run().await
    }

    /// Removes what the plugin has left on this node, as far as nothing uses it. No plugin may run. Returns all that was
    /// found, with what became of it.
    pub async fn purge(&self) -> Result<Vec<Leftover>, crate::containerd::Error> {
        let removal = Removal {
            containerd: self.containerd.as_ref(),
            leases: &self.leases,
        };
        Ok(removal.run(self.left_behind().await?).await)
    }

    /// Stops all work and waits until it has cleaned up.
    pub async fn close(&self) {
        self.shared.stop.cancel();
        self.shared.tasks.close();
        self.shared.tasks.wait().await;
        self.leases.close(self.containerd.as_ref()).await;
    }

    /// Takes each lock that all work needs and releases it.
    pub fn probe_locks(&self) {
        for worker in self.workers.all() {
            worker.probe_locks();
        }
    }
}
