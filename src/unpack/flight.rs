//! One `ensure` of one chain: look, plan, act, and look again whether it is so.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::SystemTime;

use futures::stream::{self, StreamExt, TryStreamExt};
use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Labels, Resource, Snapshot};
use crate::image::{LayerLabels, Manifest};

use super::gate::{Gate, Hurry, Place};
use super::guest::Guest;
use super::hold;
use super::layer::{Committed, Failure, Unpack};
use super::lease::{Lease, Leases};
use super::missing::Missing;
use super::plan::{Step, plan};
use super::progress::Reporter;
use super::replace::{Replace, Replaced};
use super::state::Rules;
use super::{Action, Done, Error, Sight};

/// Looks at a chain that do not find it ready although every step succeeded. Somebody else may work
/// on it at the same time (containerd's own unpack leaves layers without labels); more than this is
/// a fight.
const MAX_ROUNDS: usize = 4;

/// Snapshots that are asked for at once: enough to hide the round trips, few enough for others.
const PARALLEL_STATS: usize = 16;

/// What is to be made ready.
#[derive(Clone, Debug)]
pub(super) struct Target {
    /// For messages.
    pub(super) image: String,
    pub(super) manifest: Arc<Manifest>,
    /// What a layer gets when it is unpacked or relabelled.
    pub(super) labels: LayerLabels,
    /// When it is ready.
    pub(super) rules: Rules,
    /// Chains at which other images end, where this one may have to be taken away.
    pub(super) others: HashSet<String>,
    /// A container is known to stand on it: who else does has not to be found out.
    pub(super) in_use: bool,
    pub(super) snapshotter: String,
}

impl Target {
    /// The label of the config blob that keeps the chain from garbage collection. A second chain of
    /// the image carries it with a suffix, `/…`.
    fn anchor(&self) -> String {
        format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter)
    }

    /// How the chain stands now, and when its top layer was made.
    pub(super) async fn look(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<(Sight, Option<SystemTime>), containerd::Error> {
        let layers = self.manifest.layers.iter();
        let stats: Vec<_> = layers.map(|l| self.stat(containerd, &l.chain_id)).collect();
        let stats = stream::iter(stats).buffered(PARALLEL_STATS);
        let config = containerd.blob(&self.manifest.config);
        let (snapshots, config) = futures::join!(stats.try_collect::<Vec<_>>(), config);
        let snapshots = snapshots?;
        let top = snapshots.last().and_then(Option::as_ref);
        let created_at = top.and_then(|snapshot| snapshot.created_at);
        let sight = Sight {
            anchored: self.is_anchored(&config?.labels),
            layers: without_gaps(snapshots),
        };
        Ok((sight, created_at))
    }

    async fn stat(
        &self,
        containerd: &dyn Containerd,
        chain_id: &str,
    ) -> Result<Option<Snapshot>, containerd::Error> {
        match containerd.stat(&self.snapshotter, chain_id).await {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn is_anchored(&self, labels: &Labels) -> bool {
        let anchor = self.anchor();
        labels.iter().any(|(key, value)| {
            let suffix = key.strip_prefix(&anchor);
            suffix.is_some_and(|suffix| suffix.is_empty() || suffix.starts_with('/'))
                && Some(value.as_str()) == self.manifest.chain_id()
        })
    }

    pub(super) fn failed(&self, source: containerd::Error) -> Error {
        Error::Containerd {
            image: self.image.clone(),
            snapshotter: self.snapshotter.clone(),
            source,
        }
    }
}

/// The layers are asked for one by one: where somebody unpacks the chain at the same time, a lower
/// one may still have been missing when a higher one was there already.
fn without_gaps(snapshots: Vec<Option<Snapshot>>) -> Vec<Option<Labels>> {
    let mut gap = false;
    let layers = snapshots.into_iter().map(|snapshot| {
        gap |= snapshot.is_none();
        snapshot.filter(|_| !gap).map(|snapshot| snapshot.labels)
    });
    layers.collect()
}

/// The work on one target.
pub(super) struct Flight<'a> {
    pub(super) target: &'a Target,
    pub(super) containerd: &'a dyn Containerd,
    pub(super) leases: &'a Arc<Leases>,
    /// Where an unpack waits for its turn. Nothing else does.
    pub(super) gate: &'a Gate,
    pub(super) hurry: &'a Hurry,
    pub(super) missing: &'a Missing,
    pub(super) reporter: &'a Reporter,
    pub(super) stop: &'a CancellationToken,
}

impl Flight<'_> {
    /// Makes the chain ready; answers what that took, and when the top layer was made. The lease is
    /// released on every path.
    pub(super) async fn run(&self) -> Result<(Done, Option<SystemTime>), Error> {
        let mut lease = None;
        let outcome = self.rounds(&mut lease).await;
        if let Some(lease) = lease {
            lease.release(self.containerd).await;
        }
        outcome
    }

    async fn rounds(&self, lease: &mut Option<Lease>) -> Result<(Done, Option<SystemTime>), Error> {
        let target = self.target;
        let mut done = Done {
            image: target.image.clone(),
            action: Action::None,
            layers_done: 0,
            layers: target.manifest.layers.len(),
        };
        // Layers, each counted once however often it was worked on.
        let mut touched = HashSet::new();
        for _ in 0..MAX_ROUNDS {
            let look = target.look(self.containerd).await;
            let (sight, created_at) = look.map_err(|e| target.failed(e))?;
            self.report(&sight, 0);
            let steps = plan(&sight, &target.rules);
            if steps.is_empty() {
                return Ok((done, created_at));
            }
            if lease.is_none() {
                let taken = self.leases.take(self.containerd).await;
                *lease = Some(taken.map_err(|e| target.failed(e))?);
            }
            let Some(lease) = lease else { continue };
            if steps == [Step::Replace] {
                // The list of all snapshots costs more than a hook has on a node with many images.
                let replaced = match target.in_use {
                    true => Replaced::InUse(1),
                    false => self.replace(lease).await?,
                };
                if let Replaced::InUse(holders) = replaced {
                    return Err(self.in_use(lease, &sight, holders).await);
                }
                done.action = done.action.max(Action::Replaced);
                continue;
            }
            self.act(lease, &sight, &steps, &mut done, &mut touched)
                .await?;
        }
        let look = target.look(self.containerd).await;
        let (sight, created_at) = look.map_err(|e| target.failed(e))?;
        match sight.state(&target.rules) {
            super::State::Ready => Ok((done, created_at)),
            state => Err(Error::Unsettled {
                image: target.image.clone(),
                snapshotter: target.snapshotter.clone(),
                state,
                tries: MAX_ROUNDS,
            }),
        }
    }

    async fn act(
        &self,
        lease: &Lease,
        sight: &Sight,
        steps: &[Step],
        done: &mut Done,
        touched: &mut HashSet<usize>,
    ) -> Result<(), Error> {
        let target = self.target;
        let held = hold::committed(self.containerd, lease, target, sight).await;
        held.map_err(|e| target.failed(e))?;
        let unpacks = steps.iter().any(|step| matches!(step, Step::Unpack(_)));
        if unpacks && !target.rules.guest_pulls {
            let held = hold::blobs(self.containerd, lease, target, sight).await;
            held.map_err(|e| target.failed(e))?;
        }
        let _place = if unpacks {
            Some(self.turn().await?)
        } else {
            None
        };
        let mut layers = 0;
        for step in steps {
            if self.stop.is_cancelled() {
                return Err(Error::Stopped(self.target.image.clone()));
            }
            let acted = match *step {
                Step::Relabel(i) => self.relabel(i).await?.then(|| Action::from(*step)),
                Step::Unpack(i) => match self.unpack(lease, i).await? {
                    Some(action) => Some(action),
                    // What this round was planned on is not there any more.
                    None => return Ok(()),
                },
                Step::Anchor => self.anchor().await?.then(|| Action::from(*step)),
                // Stands alone: what comes after it is not known yet.
                Step::Replace => None,
            };
            let Some(action) = acted else {
                continue;
            };
            done.action = done.action.max(action);
            if let Step::Relabel(i) | Step::Unpack(i) = step {
                touched.insert(*i);
                done.layers_done = touched.len();
                layers += 1;
                self.report(sight, layers);
            }
        }
        Ok(())
    }

    async fn turn(&self) -> Result<Place, Error> {
        let enter = self.gate.enter(self.hurry);
        let place = self.stop.run_until_cancelled(enter).await.flatten();
        place.ok_or_else(|| Error::Stopped(self.target.image.clone()))
    }

    fn report(&self, sight: &Sight, more: usize) {
        let ready = sight.ready_layers(&self.target.rules) + more;
        self.reporter.layers(ready, sight.layers.len());
    }

    async fn replace(&self, lease: &Lease) -> Result<Replaced, Error> {
        if !self.target.rules.guest_pulls {
            self.hold_blobs(lease).await?;
        }
        let replace = Replace {
            others: &self.target.others,
            containerd: self.containerd,
            leases: self.leases,
            snapshotter: &self.target.snapshotter,
            manifest: &self.target.manifest,
            anchor: &self.target.anchor(),
        };
        replace.run().await.map_err(|e| self.target.failed(e))
    }

    /// A chain whose layers cannot all be unpacked again is not taken away.
    async fn hold_blobs(&self, lease: &Lease) -> Result<(), Error> {
        for (i, layer) in self.target.manifest.layers.iter().enumerate() {
            let digest = &layer.blob.digest;
            let held = self
                .containerd
                .hold(lease.id(), Resource::blob(digest))
                .await;
            held.map_err(|e| self.target.failed(e))?;
            match self.containerd.blob(digest).await {
                Ok(_) => {}
                Err(e) if e.is_not_found() => {
                    return Err(self.layer_failed(i, Failure::NoBlob(vec![])));
                }
                Err(e) => return Err(self.target.failed(e)),
            }
        }
        Ok(())
    }

    /// The chain cannot be replaced because it is in use. Where the guest pulls, a private chain is
    /// made, onto which a container that is being created can be moved.
    async fn in_use(&self, lease: &Lease, sight: &Sight, holders: usize) -> Error {
        let target = self.target;
        let onto = match target.labels.last() {
            Some(labels) if target.rules.guest_pulls => {
                let guest = Guest {
                    containerd: self.containerd,
                    snapshotter: &target.snapshotter,
                    lease,
                    labels,
                };
                match guest.private_chain(&target.manifest).await {
                    Ok(onto) => onto,
                    Err(e) => return target.failed(e),
                }
            }
            _ => None,
        };
        Error::InUse {
            image: target.image.clone(),
            snapshotter: target.snapshotter.clone(),
            state: sight.state(&target.rules),
            holders,
            onto,
        }
    }

    /// `false` where the layer has gone meanwhile: the next look finds it missing.
    async fn relabel(&self, i: usize) -> Result<bool, Error> {
        let Target {
            manifest,
            labels,
            snapshotter,
            ..
        } = self.target;
        let chain_id = &manifest.layers[i].chain_id;
        let labelled = self
            .containerd
            .label_snapshot(snapshotter, chain_id, labels[i].clone());
        self.unless_gone(labelled.await)
    }

    /// `None` where the layer below was taken away meanwhile: the next look finds it missing.
    async fn unpack(&self, lease: &Lease, i: usize) -> Result<Option<Action>, Error> {
        let layers = &self.target.manifest.layers;
        let unpack = Unpack {
            containerd: self.containerd,
            snapshotter: &self.target.snapshotter,
            lease,
            image: &self.target.image,
            manifest: &self.target.manifest,
            layer: &layers[i],
            parent: i
                .checked_sub(1)
                .map(|below| layers[below].chain_id.as_str()),
            labels: &self.target.labels[i],
            missing: self.missing,
            stop: self.stop,
        };
        match unpack.run().await {
            // Whoever committed it: it was missing, and is there now.
            Ok(Committed::Applied | Committed::Existed) => Ok(Some(Action::Unpacked)),
            Ok(Committed::Rebuilt) => Ok(Some(Action::Rebuilt)),
            Err(Failure::ParentGone) => Ok(None),
            Err(failure) => Err(self.layer_failed(i, failure)),
        }
    }

    async fn anchor(&self) -> Result<bool, Error> {
        let manifest = &self.target.manifest;
        let Some(chain_id) = manifest.chain_id() else {
            return Ok(false);
        };
        let label = Labels::from([(self.target.anchor(), chain_id.to_owned())]);
        let anchored = self.containerd.label_blob(&manifest.config, label).await;
        anchored.map(|()| true).map_err(|e| self.target.failed(e))
    }

    fn unless_gone(&self, result: Result<(), containerd::Error>) -> Result<bool, Error> {
        match result {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(self.target.failed(e)),
        }
    }

    fn layer_failed(&self, i: usize, failure: Failure) -> Error {
        let layers = &self.target.manifest.layers;
        let image = self.target.image.clone();
        let digest = layers[i].blob.digest.clone();
        let (position, layers, expected) = (i + 1, layers.len(), layers[i].diff_id.clone());
        match failure {
            Failure::Containerd(source) => self.target.failed(source),
            Failure::ParentGone | Failure::Stopped => Error::Stopped(image),
            Failure::NoBlob(tried) => Error::Unavailable {
                image,
                digest,
                position,
                layers,
                tried,
            },
            Failure::Encrypted(e) => Error::Encrypted {
                image,
                digest,
                position,
                layers,
                reason: e.to_string(),
            },
            Failure::WrongDiffId(applied) => Error::WrongDiffId {
                image,
                digest,
                position,
                layers,
                applied,
                expected,
            },
        }
    }
}
