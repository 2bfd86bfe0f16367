//! One flight: reads the status of a chain, plans, executes the plan, and reads the status again.

pub(crate) mod context;
pub(crate) mod executor;
mod pulled;
pub(crate) mod registry;
pub(crate) mod removal;
pub(crate) mod worker;
pub(crate) mod workers;

use std::time::{Duration, SystemTime};

use futures::future::try_join_all;
use tokio::time::Instant;

use crate::image::Layer;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::plan::{Step, plan};
use crate::unpack::chain::state::{ChainStatus, State};
use crate::unpack::schedule::progress::Done;
use crate::unpack::snapshotter::capabilities::Capabilities;
use crate::unpack::snapshotter::lease::Lease;
use context::{FlightContext, Work};
use executor::PlanExecutor;
use removal::After;

/// The number of rounds after which a flight gives up although every step succeeded. Another client may change the chain
/// at the same time: containerd's own unpack commits layers without labels.
const MAX_ROUNDS: usize = 8;

/// The shortest estimate that is reported to waiters: a caller that still waits after this long also waits for a
/// shorter unpack.
const LEAST_REPORTED: Duration = Duration::from_millis(20);

/// A flight for one target.
pub(crate) struct Flight<'a> {
    pub(crate) context: &'a FlightContext<'a>,
}

impl Flight<'_> {
    /// Makes the chain ready. Returns what was done, and the creation time of the top layer. The lease is released on
    /// every path.
    pub(crate) async fn run(&self) -> Result<(Done, Option<SystemTime>), Error> {
        let (status, created_at) = self.read_status().await?;
        let found = status.state(&self.context.target.rules);
        self.context.reporter.found(found);
        if let Some(refused) = self.context.target.refused(&status) {
            return Err(refused);
        }
        let steps = self.plan(&status);
        if steps.is_empty() {
            return Ok((self.done(found, &Work::default(), &status), created_at));
        }
        self.estimate_minimum(&steps).await;
        let removals = self.context.record.removals();
        let lease = self.context.leases.take(self.context.containerd).await;
        let lease = lease.map_err(|e| self.context.target.failed(e))?;
        let outcome = self.rounds(&lease, status).await;
        lease.release(self.context.containerd).await;
        // Checked after the lease is released: a removal from now on finds no lease that keeps the layers.
        match self.context.record.after(&outcome, removals).await {
            After::Kept => outcome,
            After::Arriving => {
                self.context.leases.collect(self.context.containerd).await;
                outcome
            }
            After::Removed => {
                self.context.leases.collect(self.context.containerd).await;
                Err(self.context.removed())
            }
        }
    }

    /// Reports the least duration to the waiters, if each missing layer has to be applied and its blob is there. Without
    /// a blob the flight may fail at once, so nothing is reported.
    async fn estimate_minimum(&self, steps: &[Step]) {
        let FlightContext {
            target,
            containerd,
            layers,
            ..
        } = *self.context;
        let from = steps.iter().find_map(|step| match step {
            Step::Unpack(from) => Some(*from),
            _ => None,
        });
        let missing = from.and_then(|from| target.manifest.layers.get(from..));
        let (Some(missing), false) = (missing, target.rules.guest_pulls) else {
            return;
        };
        let sizes = missing.iter().map(Layer::bytes);
        let bytes = sizes.fold(0, u64::saturating_add);
        let all = layers.throughput.least(bytes);
        if all < LEAST_REPORTED || missing.iter().any(Layer::is_encrypted) {
            return;
        }
        let least = match layers.facts.capabilities(containerd).await {
            Capabilities { applies: false, .. } => return,
            Capabilities { rebases: true, .. } => all.div_f64(layers.limits.at_once as f64),
            Capabilities { rebases: false, .. } => all,
        };
        let earliest = Instant::now() + least;
        let blobs = missing
            .iter()
            .map(|layer| containerd.blob(&layer.blob.digest));
        if try_join_all(blobs).await.is_ok() {
            self.context.reporter.not_before(earliest);
        }
    }

    /// Plans and executes until the chain is ready.
    async fn rounds(
        &self,
        lease: &Lease,
        mut status: ChainStatus,
    ) -> Result<(Done, Option<SystemTime>), Error> {
        let mut work = Work::default();
        let found = status.state(&self.context.target.rules);
        for _ in 0..MAX_ROUNDS {
            let steps = self.plan(&status);
            PlanExecutor::new(self.context, lease, &status, &mut work)
                .act(&steps)
                .await?;
            let created_at;
            (status, created_at) = self.read_status().await?;
            if let Some(refused) = self.context.target.refused(&status) {
                return Err(refused);
            }
            if self.plan(&status).is_empty() {
                return Ok((self.done(found, &work, &status), created_at));
            }
        }
        Err(Error::Unsettled {
            image: self.context.target.image.clone(),
            snapshotter: self.context.target.snapshotter.clone(),
            state: status.state(&self.context.target.rules),
            tries: MAX_ROUNDS,
        })
    }

    async fn read_status(&self) -> Result<(ChainStatus, Option<SystemTime>), Error> {
        let (status, created_at) = self
            .context
            .target
            .read_status(self.context.containerd)
            .await?;
        self.context.report(&status, 0);
        Ok((status, created_at))
    }

    fn plan(&self, status: &ChainStatus) -> Vec<Step> {
        plan(status, &self.context.target.rules)
    }

    fn done(&self, found: State, work: &Work, status: &ChainStatus) -> Done {
        Done {
            image: self.context.target.image.clone(),
            found,
            action: work.action,
            layers_done: work.layers.len(),
            layers_kept: status.kept_layers(&self.context.target.rules),
            layers: self.context.target.manifest.layers.len(),
        }
    }
}
