//! Serves one request: resolves its target, decides whether it needs a flight, and ends its ticket.

use std::sync::Arc;
use std::time::SystemTime;

use super::ready_cache::{Epoch, SANDBOX};
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::State;
use crate::unpack::flight::worker::Worker;
use crate::unpack::repair::in_use::{self, NextStep, next_step};
use crate::unpack::repair::volume::Volume;
use crate::unpack::schedule::priority::{Priority, Urgency};
use crate::unpack::schedule::progress::{Done, Reporter};
use crate::unpack::target::Target;
use crate::unpack::target::request::{Request, Want};
use crate::unpack::target::resolve::Resolver;

/// A request, and the parts of the engine that serve it.
pub(crate) struct Serve<'a> {
    pub(crate) resolver: &'a Resolver,
    pub(crate) worker: &'a Arc<Worker>,
    pub(crate) request: &'a Request,
}

impl Serve<'_> {
    /// Serves the request until its end.
    pub(crate) async fn run(&self, priority: Priority, reporter: Reporter) {
        let since = self.worker.ready_cache.now();
        match self.resolver.target(self.request, &self.worker.facts).await {
            Err(e) => {
                let e = self.resolver.images.unless_removed(e).await;
                reporter.end(Err(Arc::new(e)));
            }
            Ok(target) => {
                if let Want::Container {
                    chain,
                    name: Some(name),
                    ..
                } = &self.request.want
                {
                    self.worker.ready_cache.record_parent(name, chain);
                }
                if let Want::Sandbox { chain, .. } = &self.request.want {
                    self.worker.ready_cache.record_parent(SANDBOX, chain);
                }
                if let Want::Volume { path, .. } = &self.request.want {
                    let filled = self.fill(path, &target, &reporter).await;
                    return reporter.end(filled.map_err(Arc::new));
                }
                let layer_locks = &self.worker.layers.layer_locks;
                let shared = &self.worker.shared;
                let (containerd, leases) = (shared.containerd.as_ref(), &shared.leases);
                let is_created = self.request.urgency == Urgency::Creation;
                let next = next_step(
                    containerd,
                    leases,
                    layer_locks,
                    &target,
                    is_created,
                    &reporter,
                );
                match next.await {
                    NextStep::Fail(e) => reporter.end(Err(Arc::new(e))),
                    NextStep::LeftToContainerd(created_at) => {
                        self.leave_alone(&target, since, created_at, reporter);
                    }
                    NextStep::PrivateChain(private) => {
                        self.unpack_private(&target, *private, since, priority, reporter)
                            .await
                    }
                    NextStep::Flight => {
                        if target.in_use {
                            reporter.all_committed();
                        }
                        let flight = self.worker.flight_of(target, since, priority).await;
                        let outcome = reporter.watch(flight, true).await;
                        if let Err(e) = &outcome
                            && e.contradicts_guest_pull()
                        {
                            self.worker.facts.guest_pulls.doubt();
                        }
                        reporter.end(outcome);
                    }
                }
            }
        }
    }

    /// Applies the image's layers into a volume that is based on guest-pulled layers.
    async fn fill(&self, path: &str, target: &Target, reporter: &Reporter) -> Result<Done, Error> {
        let volume = Volume {
            containerd: self.worker.shared.containerd.as_ref(),
            leases: &self.worker.shared.leases,
            layers: &self.worker.layers,
            stop: &self.worker.shared.stop,
            reporter,
            target,
            path,
        };
        volume.fill().await
    }

    /// Ends the request with the result that the image is left to containerd and a container can start from its chain.
    fn leave_alone(
        &self,
        target: &Target,
        since: Epoch,
        created_at: Option<SystemTime>,
        reporter: Reporter,
    ) {
        let (image, snapshotter) = (target.image.clone(), target.snapshotter.clone());
        if let Want::Container { chain, .. } | Want::Sandbox { chain, .. } = &self.request.want {
            let top = created_at.map(|created_at| target.top(created_at));
            self.worker.ready_cache.record_sound(chain, top, since);
        }
        let error = match self.request.want.is_left_to_containerd() {
            true => Error::LeftToContainerd { image, snapshotter },
            false => Error::Excluded { image, snapshotter },
        };
        reporter.end(Err(Arc::new(error)));
    }

    /// Unpacks the private chain onto which a container with a mixed chain can be moved.
    async fn unpack_private(
        &self,
        target: &Target,
        private: Target,
        since: Epoch,
        priority: Priority,
        reporter: Reporter,
    ) {
        let chain = private.manifest.chain_id().map(str::to_owned);
        let flight = self.worker.flight_of(private, since, priority).await;
        reporter.found(State::Mixed);
        let outcome = reporter.watch(flight, false).await;
        let error = match outcome {
            Ok(_) => {
                if let Some(chain) = chain {
                    reporter.onto(chain);
                }
                in_use::error(target, State::Mixed, 1)
            }
            Err(source) => Error::Broken {
                image: target.image.clone(),
                snapshotter: target.snapshotter.clone(),
                source,
            },
        };
        reporter.end(Err(Arc::new(error)));
    }
}
