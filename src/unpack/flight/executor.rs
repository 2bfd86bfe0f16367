//! Executes the steps of one plan, each once, in order.

use std::ops::Range;
use std::pin::pin;

use futures::stream::StreamExt;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::containerd;

use super::context::{FlightContext, Work};
use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::plan::Step;
use crate::unpack::chain::state::{ChainStatus, State};
use crate::unpack::layer::parallel;
use crate::unpack::layer::unpack::{Committed, Failure, Unpack};
use crate::unpack::repair::in_use;
use crate::unpack::repair::lost::{LostImages, Removed};
use crate::unpack::repair::replace::{Replace, Replaced};
use crate::unpack::schedule::place::Place;
use crate::unpack::snapshotter::guest_pull;
use crate::unpack::snapshotter::lease::Lease;
use crate::unpack::snapshotter::listing::loss_anchor;
use crate::unpack::target::{gc_protect, usage};

/// The executor of a plan that was made from one status of the chain.
pub(crate) struct PlanExecutor<'a> {
    pub(super) context: &'a FlightContext<'a>,
    lease: &'a Lease,
    status: &'a ChainStatus,
    work: &'a mut Work,
    /// The number of layers that became ready in this round.
    layers: usize,
}

impl<'a> PlanExecutor<'a> {
    pub(crate) fn new(
        context: &'a FlightContext<'a>,
        lease: &'a Lease,
        status: &'a ChainStatus,
        work: &'a mut Work,
    ) -> Self {
        Self {
            context,
            lease,
            status,
            work,
            layers: 0,
        }
    }

    /// Executes the steps. Ends early if the chain is no longer in the state that the plan was made for.
    pub(crate) async fn act(mut self, steps: &[Step]) -> Result<(), Error> {
        match steps {
            [Step::Replace] => return self.replace().await,
            [Step::RemoveRecords] => return self.remove_records().await,
            _ => {}
        }
        let unpacks = steps.iter().any(|step| matches!(step, Step::Unpack(_)));
        let held = self.hold(unpacks).await;
        held.map_err(|e| self.context.target.failed(e))?;
        let follows_pull = unpacks && self.follows_pull().await;
        let place = match unpacks && !follows_pull {
            true => Some(self.place().await?),
            false => None,
        };
        for step in steps {
            if self.context.stop.is_cancelled() {
                return Err(self.context.stopped());
            }
            match *step {
                Step::Relabel(i) => self.relabel(i).await?,
                Step::Unpack(from) => {
                    let layers = from..self.context.target.manifest.layers.len();
                    let unpacked = match &place {
                        Some(place) => place.during(self.unpack(layers, place)).await?,
                        None => self.unpack_as_blobs_arrive(layers).await?,
                    };
                    if !unpacked {
                        return Ok(());
                    }
                }
                Step::Anchor => self.anchor().await?,
                // Such a step is the only one of its plan: the next plan depends on its result.
                Step::Replace | Step::RemoveRecords => {}
            }
        }
        Ok(())
    }

    /// Puts what the steps need under the lease, so that garbage collection keeps it.
    async fn hold(&self, unpacks: bool) -> Result<(), containerd::Error> {
        let (containerd, target) = (self.context.containerd, self.context.target);
        let committed = gc_protect::committed(containerd, self.lease, target, self.status);
        if target.arrives {
            let documents = gc_protect::documents(containerd, self.lease, target);
            futures::try_join!(committed, documents)?;
        } else {
            committed.await?;
        }
        if unpacks && !target.rules.guest_pulls {
            gc_protect::blobs(containerd, self.lease, target, self.status).await?;
        }
        Ok(())
    }

    /// Records that a layer is ready, and reports the progress.
    fn did(&mut self, layer: usize, action: Action) {
        self.work.did(action);
        self.work.layers.insert(layer);
        self.layers += 1;
        self.context.report(self.status, self.layers);
        let layers = &self.context.target.manifest.layers;
        let sizes = self.work.layers.iter().map(|&i| layers[i].bytes());
        let bytes = sizes.fold(0, u64::saturating_add);
        self.context.reporter.bytes(bytes);
    }

    /// Waits for a place among the images that are unpacked at the same time.
    pub(super) async fn place(&self) -> Result<Place<'a>, Error> {
        let context = self.context;
        let applies = !context.target.rules.guest_pulls;
        let place = context.places.acquire(context.priority, applies);
        let place = context.stop.run_until_cancelled(place).await;
        let place = place.flatten();
        let place = place.ok_or_else(|| context.stopped())?;
        // The wait may have been long, and the image removed meanwhile.
        if context.record.is_gone().await {
            return Err(context.removed());
        }
        Ok(place)
    }

    /// Puts the labels on a committed layer. If the layer is gone, the next status shows it as missing.
    async fn relabel(&mut self, i: usize) -> Result<(), Error> {
        let target = self.context.target;
        let chain_id = &target.manifest.layers[i].chain_id;
        let labels = target.labels[i].clone();
        let containerd = self.context.containerd;
        let labelled = containerd.label_snapshot(&target.snapshotter, chain_id, labels);
        match labelled.await {
            Ok(()) => self.did(i, Action::Relabelled),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(target.failed(e)),
        }
        Ok(())
    }

    /// Unpacks these layers. `false` if a layer below was removed meanwhile: the next status shows it as missing.
    pub(super) async fn unpack(
        &mut self,
        missing: Range<usize>,
        place: &Place<'_>,
    ) -> Result<bool, Error> {
        if self.is_parallel(missing.len()).await {
            return self.unpack_at_once(missing, place).await;
        }
        for i in missing {
            if self.context.stop.is_cancelled() {
                return Err(self.context.stopped());
            }
            let layer = self.layer(i, place, self.context.stop);
            let outcome = match layer.lock().await {
                Ok(_lock) => self.context.fallback.unpack(&layer).await,
                Err(failure) => Err(failure),
            };
            match self.settled(i, outcome).await? {
                Some(action) => self.did(i, action),
                None => return Ok(false),
            }
        }
        Ok(true)
    }

    /// Whether the missing layers are unpacked at the same time. Guest-pulled layers are committed by `Prepare`, which
    /// needs the parent.
    async fn is_parallel(&self, missing: usize) -> bool {
        let FlightContext {
            target,
            containerd,
            layers,
            ..
        } = *self.context;
        missing > 1
            && layers.limits.at_once > 1
            && !target.rules.guest_pulls
            && layers.facts.capabilities(containerd).await.rebases
    }

    /// Unpacks the layers at the same time. If several fail, the failure of the lowest layer counts, as if they had been
    /// unpacked one after another.
    async fn unpack_at_once(
        &mut self,
        missing: Range<usize>,
        place: &Place<'_>,
    ) -> Result<bool, Error> {
        let stops = parallel::stops(self.context.stop, missing.len());
        let layers = missing.clone().zip(&stops);
        let layers: Vec<_> = layers.map(|(i, stop)| self.layer(i, place, stop)).collect();
        let window = Semaphore::new(self.context.layers.limits.at_once);
        let mut outcomes = pin!(parallel::unpack(&layers, self.context.fallback, &window));
        let mut failed: Option<(usize, Failure)> = None;
        while let Some((i, outcome)) = outcomes.next().await {
            let i = missing.start + i;
            match outcome {
                Ok(committed) => self.did(i, committed.into()),
                Err(failure) if failed.as_ref().is_none_or(|(lowest, _)| i < *lowest) => {
                    failed = Some((i, failure));
                }
                Err(_) => {}
            }
        }
        match failed {
            None => Ok(true),
            Some((i, failure)) => {
                let action = self.settled(i, Err(failure)).await?;
                Ok(action.is_some())
            }
        }
    }

    fn layer<'b>(&self, i: usize, place: &'b Place<'_>, stop: &'b CancellationToken) -> Unpack<'b>
    where
        'a: 'b,
    {
        let context = self.context;
        let target = context.target;
        let layers = &target.manifest.layers;
        Unpack {
            containerd: context.containerd,
            snapshotter: &target.snapshotter,
            lease: self.lease,
            image: &target.image,
            manifest: &target.manifest,
            layer: &layers[i],
            parent: i
                .checked_sub(1)
                .map(|below| layers[below].chain_id.as_str()),
            labels: &target.labels[i],
            is_for_guest: target.is_for_guest(),
            layers: context.layers,
            last_look: Some(&context.last_look),
            reporter: context.reporter,
            priority: context.priority,
            place: Some(place),
            stop,
        }
    }

    /// Converts a layer's result; `None` if the status has to be read again.
    async fn settled(
        &mut self,
        i: usize,
        outcome: Result<Committed, Failure>,
    ) -> Result<Option<Action>, Error> {
        match outcome {
            Ok(committed) => Ok(Some(committed.into())),
            Err(Failure::ParentGone | Failure::AllCommitted) => Ok(None),
            Err(Failure::Lost) => self.remove_records().await.map(|()| None),
            Err(failure) => Err(self.context.target.layer_failed(i, failure)),
        }
    }

    /// Removes the records of this and of all other images that the snapshotter has lost.
    async fn remove_records(&mut self) -> Result<(), Error> {
        let context = self.context;
        let lost = LostImages {
            containerd: context.containerd,
            images: context.images,
            leases: context.leases,
            collections: context.collections,
            target: context.target,
            stop: context.stop,
        };
        match lost.remove_records().await? {
            Removed::Gone => self.work.did(Action::Replaced),
            Removed::InUse => return Err(in_use::error(context.target, State::Lost, 1)),
        }
        Ok(())
    }

    /// Sets the anchor: the gc label on the config blob that keeps the chain from garbage collection.
    async fn anchor(&mut self) -> Result<(), Error> {
        let target = self.context.target;
        let Some(chain_id) = target.manifest.chain_id() else {
            return Ok(());
        };
        let (containerd, config) = (self.context.containerd, &target.manifest.config);
        let anchored = async {
            let found = containerd.blob(config).await?;
            let mut labels = usage::unused(&found.labels, &target.snapshotter);
            labels.insert(target.anchor(), chain_id.to_owned());
            let loss = loss_anchor(&target.snapshotter);
            if found.labels.contains_key(&loss) && !guest_pull::is_on_host(chain_id) {
                labels.insert(loss, String::new());
            }
            containerd.label_blob(config, labels).await
        };
        anchored.await.map_err(|e| target.failed(e))?;
        self.work.did(Action::Anchored);
        Ok(())
    }

    /// Removes the chain as far as nothing else holds it. A chain stays if one of its layers could not be unpacked
    /// again.
    async fn replace(&mut self) -> Result<(), Error> {
        let FlightContext {
            target,
            containerd,
            leases,
            ..
        } = *self.context;
        if target.in_use {
            // On a node with many images, a list of all snapshots takes longer than a hook may wait.
            return Err(self.in_use().await);
        }
        if !target.is_for_guest() {
            let missing = gc_protect::all_blobs(containerd, self.lease, target).await;
            if let Some(i) = missing.map_err(|e| target.failed(e))? {
                return Err(target.unavailable(i, vec![]));
            }
        }
        let replace = Replace {
            others: &target.others,
            containerd,
            leases,
            snapshotter: &target.snapshotter,
            manifest: &target.manifest,
            anchor: &target.anchor(),
            guest_layers_stay: target.supports_guest_pull,
        };
        match replace.run().await.map_err(|e| target.failed(e))? {
            Replaced::Gone => {
                if self.work.action >= Action::Replaced {
                    self.clean_snapshotter().await?;
                }
                self.work.did(Action::Replaced);
            }
            // No container is being created, so none needs a private chain.
            Replaced::InUse(holders) => {
                let state = self.status.state(&target.rules);
                return Err(in_use::error(target, state, holders));
            }
        }
        Ok(())
    }

    /// Waits until the snapshotter has removed the layers that a replacement removed: a second replacement in one flight
    /// shows that the old layers are back. containerd removes only its own records at once. For a `Prepare` that the
    /// snapshotter answers with *AlreadyExists*, it takes any snapshot of the snapshotter with the label of the chain id
    /// (`core/metadata/snapshot.go`).
    async fn clean_snapshotter(&self) -> Result<(), Error> {
        let FlightContext {
            target,
            containerd,
            leases,
            ..
        } = *self.context;
        // Their anchor was that of the whole chain.
        let (left, _) = target.read_status(containerd).await?;
        let held = gc_protect::committed(containerd, self.lease, target, &left);
        held.await.map_err(|e| target.failed(e))?;
        leases.collect(containerd).await;
        Ok(())
    }

    async fn in_use(&self) -> Error {
        let FlightContext {
            target,
            containerd,
            layers,
            reporter,
            ..
        } = *self.context;
        let state = self.status.state(&target.rules);
        let locks = &layers.layer_locks;
        in_use::in_use(containerd, self.lease, locks, target, state, reporter).await
    }
}
