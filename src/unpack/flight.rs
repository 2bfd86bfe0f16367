//! One `ensure` of one chain: look, plan, act, and look again whether it is so.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use futures::future::try_join_all;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::containerd::Containerd;
use crate::image::Layer;

use super::abilities::{Abilities, Ability};
use super::claims::Claims;
use super::gate::{Gate, Hurry};
use super::lease::{Lease, Leases};
use super::missing::Missing;
use super::pace::Pace;
use super::plan::{Step, plan};
use super::progress::Reporter;
use super::removed::{After, Record};
use super::round::Round;
use super::target::Target;
use super::{Action, Done, Error, Sight, State};

/// Rounds after which a chain that is still not ready although every step succeeded is given up.
/// Somebody else may work on it at the same time (containerd's own unpack leaves layers without
/// labels); more than this is a fight.
const MAX_ROUNDS: usize = 4;

/// Nobody has left by then who will not wait for longer.
const WORTH_TELLING: Duration = Duration::from_millis(20);

/// How the layers of all flights are unpacked.
pub(super) struct Layers {
    /// That many are applied at the same time,
    pub(super) at_once: usize,
    /// and the others wait here.
    pub(super) gate: Gate,
    pub(super) abilities: Arc<Abilities>,
    /// A layer that several chains have is unpacked once.
    pub(super) claims: Claims,
    /// How fast that goes.
    pub(super) pace: Pace,
    /// Whether what decrypts a layer is handed what CRI hands to it.
    pub(super) hands_keys_over: AtomicBool,
}

/// The work on one target.
pub(super) struct Flight<'a> {
    pub(super) target: &'a Target,
    pub(super) containerd: &'a dyn Containerd,
    pub(super) leases: &'a Arc<Leases>,
    /// Where an unpack waits for its turn. Nothing else does.
    pub(super) gate: &'a Gate,
    pub(super) layers: &'a Layers,
    pub(super) hurry: &'a Hurry,
    pub(super) missing: &'a Missing,
    pub(super) reporter: &'a Reporter,
    /// Whether the image is still there.
    pub(super) record: &'a Record<'a>,
    pub(super) stop: &'a CancellationToken,
}

/// What a flight has done so far.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Of several things the one that says most.
    pub(super) action: Action,
    /// Each once, however often it was worked on.
    pub(super) layers: HashSet<usize>,
}

impl Work {
    pub(super) fn did(&mut self, action: Action) {
        self.action = self.action.max(action);
    }
}

impl Flight<'_> {
    /// Makes the chain ready; answers what that took, and when the top layer was made. The lease is
    /// released on every path.
    pub(super) async fn run(&self) -> Result<(Done, Option<SystemTime>), Error> {
        let (sight, created_at) = self.look().await?;
        let found = sight.state(&self.target.rules);
        self.reporter.found(found);
        if let Some(refused) = self.target.refused(&sight) {
            return Err(refused);
        }
        let steps = self.plan(&sight);
        if steps.is_empty() {
            return Ok((self.done(found, &Work::default(), &sight), created_at));
        }
        self.foretell(&steps).await;
        let removals = self.record.removals();
        let lease = self.leases.take(self.containerd).await;
        let lease = lease.map_err(|e| self.target.failed(e))?;
        let outcome = self.rounds(&lease, sight).await;
        lease.release(self.containerd).await;
        // Not before the lease is gone: an image that is removed from now on leaves nothing here.
        match self.record.after(&outcome, removals).await {
            After::Kept => outcome,
            After::Arriving => {
                self.leases.collect(self.containerd).await;
                outcome
            }
            After::Removed => {
                self.leases.collect(self.containerd).await;
                Err(self.removed())
            }
        }
    }

    /// Says how long it takes at least, where each layer that is missing has to be applied, and can be: a
    /// failure may come at once.
    async fn foretell(&self, steps: &[Step]) {
        let Self { target, layers, .. } = self;
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
        let all = layers.pace.least(&target.snapshotter, bytes);
        if all < WORTH_TELLING || missing.iter().any(Layer::is_encrypted) {
            return;
        }
        let ability = layers.abilities.of(self.containerd, &target.snapshotter);
        let least = match ability.await {
            Ability { applies: false, .. } => return,
            Ability { rebases: true, .. } => all.div_f64(layers.at_once as f64),
            Ability { rebases: false, .. } => all,
        };
        let earliest = Instant::now() + least;
        let blobs = missing
            .iter()
            .map(|layer| self.containerd.blob(&layer.blob.digest));
        if try_join_all(blobs).await.is_ok() {
            self.reporter.not_before(earliest);
        }
    }

    /// From a chain that is not ready to one that is.
    async fn rounds(
        &self,
        lease: &Lease,
        mut sight: Sight,
    ) -> Result<(Done, Option<SystemTime>), Error> {
        let mut work = Work::default();
        let found = sight.state(&self.target.rules);
        for _ in 0..MAX_ROUNDS {
            let steps = self.plan(&sight);
            Round::new(self, lease, &sight, &mut work)
                .act(&steps)
                .await?;
            let created_at;
            (sight, created_at) = self.look().await?;
            if let Some(refused) = self.target.refused(&sight) {
                return Err(refused);
            }
            if self.plan(&sight).is_empty() {
                return Ok((self.done(found, &work, &sight), created_at));
            }
        }
        Err(Error::Unsettled {
            image: self.target.image.clone(),
            snapshotter: self.target.snapshotter.clone(),
            state: sight.state(&self.target.rules),
            tries: MAX_ROUNDS,
        })
    }

    async fn look(&self) -> Result<(Sight, Option<SystemTime>), Error> {
        let (sight, created_at) = self.target.look(self.containerd).await?;
        self.report(&sight, 0);
        Ok((sight, created_at))
    }

    fn plan(&self, sight: &Sight) -> Vec<Step> {
        plan(sight, &self.target.rules)
    }

    pub(super) fn report(&self, sight: &Sight, more: usize) {
        let ready = sight.ready_layers(&self.target.rules) + more;
        self.reporter.layers(ready, sight.layers.len());
    }

    fn done(&self, found: State, work: &Work, sight: &Sight) -> Done {
        Done {
            image: self.target.image.clone(),
            found,
            action: work.action,
            layers_done: work.layers.len(),
            layers_kept: sight.kept_layers(&self.target.rules),
            layers: self.target.manifest.layers.len(),
        }
    }

    pub(super) fn stopped(&self) -> Error {
        Error::Stopped(self.target.image.clone())
    }

    pub(super) fn removed(&self) -> Error {
        Error::Removed(self.target.image.clone())
    }
}
