//! The steps of one round of a flight, each done once, in the order of the plan.

use crate::containerd::{self, Labels};

use super::flight::{Flight, Work};
use super::gate::Place;
use super::guest::Guest;
use super::hold;
use super::layer::{Committed, Failure, Unpack};
use super::lease::Lease;
use super::plan::Step;
use super::replace::{Replace, Replaced};
use super::target::Target;
use super::{Action, Error, Sight};

/// The steps that follow from one look at the chain.
pub(super) struct Round<'a> {
    pub(super) flight: &'a Flight<'a>,
    pub(super) lease: &'a Lease,
    pub(super) sight: &'a Sight,
}

impl Round<'_> {
    pub(super) async fn act(&self, steps: &[Step], work: &mut Work) -> Result<(), Error> {
        if steps == [Step::Replace] {
            self.replace().await?;
            work.action = work.action.max(Action::Replaced);
            return Ok(());
        }
        let target = self.flight.target;
        let unpacks = steps.iter().any(|step| matches!(step, Step::Unpack(_)));
        let held = self.hold(unpacks && !target.rules.guest_pulls).await;
        held.map_err(|e| target.failed(e))?;
        let _place = if unpacks {
            Some(self.turn().await?)
        } else {
            None
        };
        let mut layers = 0;
        for step in steps {
            if self.flight.stop.is_cancelled() {
                return Err(self.flight.stopped());
            }
            let acted = match *step {
                Step::Relabel(i) => self.relabel(i).await?.then(|| Action::from(*step)),
                Step::Unpack(i) => match self.unpack(i).await? {
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
            work.action = work.action.max(action);
            if let Step::Relabel(i) | Step::Unpack(i) = step {
                work.layers.insert(*i);
                layers += 1;
                self.flight.report(self.sight, layers);
            }
        }
        Ok(())
    }

    /// What the steps stand on is not to be collected under them.
    async fn hold(&self, blobs: bool) -> Result<(), containerd::Error> {
        let (containerd, target) = (self.flight.containerd, self.flight.target);
        hold::committed(containerd, self.lease, target, self.sight).await?;
        if blobs {
            hold::blobs(containerd, self.lease, target, self.sight).await?;
        }
        Ok(())
    }

    async fn turn(&self) -> Result<Place, Error> {
        let enter = self.flight.gate.enter(self.flight.hurry);
        let place = self.flight.stop.run_until_cancelled(enter).await.flatten();
        place.ok_or_else(|| self.flight.stopped())
    }

    /// `false` where the layer has gone meanwhile: the next look finds it missing.
    async fn relabel(&self, i: usize) -> Result<bool, Error> {
        let Target {
            manifest,
            labels,
            snapshotter,
            ..
        } = self.flight.target;
        let chain_id = &manifest.layers[i].chain_id;
        let containerd = self.flight.containerd;
        let labelled = containerd.label_snapshot(snapshotter, chain_id, labels[i].clone());
        match labelled.await {
            Ok(()) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(self.flight.target.failed(e)),
        }
    }

    /// `None` where the layer below was taken away meanwhile: the next look finds it missing.
    async fn unpack(&self, i: usize) -> Result<Option<Action>, Error> {
        let Flight {
            target, containerd, ..
        } = *self.flight;
        let layers = &target.manifest.layers;
        let unpack = Unpack {
            containerd,
            snapshotter: &target.snapshotter,
            lease: self.lease,
            image: &target.image,
            manifest: &target.manifest,
            layer: &layers[i],
            parent: i
                .checked_sub(1)
                .map(|below| layers[below].chain_id.as_str()),
            labels: &target.labels[i],
            missing: self.flight.missing,
            stop: self.flight.stop,
        };
        self.settled(i, unpack.run().await)
    }

    /// What a layer's outcome means for the chain.
    fn settled(
        &self,
        i: usize,
        outcome: Result<Committed, Failure>,
    ) -> Result<Option<Action>, Error> {
        let target = self.flight.target;
        let layers = &target.manifest.layers;
        let (image, position) = (target.image.clone(), i + 1);
        let digest = layers[i].blob.digest.clone();
        Err(match outcome {
            // Whoever committed it: it was missing, and is there now.
            Ok(Committed::Applied | Committed::Existed) => return Ok(Some(Action::Unpacked)),
            Ok(Committed::Rebuilt) => return Ok(Some(Action::Rebuilt)),
            Err(Failure::ParentGone) => return Ok(None),
            Err(Failure::Containerd(source)) => target.failed(source),
            Err(Failure::Stopped) => self.flight.stopped(),
            Err(Failure::NoBlob(tried)) => target.unavailable(i, tried),
            Err(Failure::Encrypted(e)) => Error::Encrypted {
                image,
                digest,
                position,
                layers: layers.len(),
                reason: e.to_string(),
            },
            Err(Failure::WrongDiffId(applied)) => Error::WrongDiffId {
                image,
                digest,
                position,
                layers: layers.len(),
                applied,
                expected: layers[i].diff_id.clone(),
            },
        })
    }

    async fn anchor(&self) -> Result<bool, Error> {
        let target = self.flight.target;
        let Some(chain_id) = target.manifest.chain_id() else {
            return Ok(false);
        };
        let label = Labels::from([(target.anchor(), chain_id.to_owned())]);
        let config = &target.manifest.config;
        let anchored = self.flight.containerd.label_blob(config, label).await;
        anchored.map(|()| true).map_err(|e| target.failed(e))
    }

    /// Takes the chain away, as far as nothing else holds it. A chain whose layers cannot all be
    /// unpacked again stays.
    async fn replace(&self) -> Result<(), Error> {
        let Flight {
            target,
            containerd,
            leases,
            ..
        } = *self.flight;
        if !target.rules.guest_pulls {
            let missing = hold::all_blobs(containerd, self.lease, target).await;
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
        };
        match replace.run().await.map_err(|e| target.failed(e))? {
            Replaced::Gone => Ok(()),
            Replaced::InUse(holders) => Err(self.in_use(holders).await),
        }
    }

    /// The chain cannot be replaced because it is in use. Where the guest pulls, a private chain is
    /// made, onto which a container that is being created can be moved.
    async fn in_use(&self, holders: usize) -> Error {
        let target = self.flight.target;
        let onto = match target.labels.last() {
            Some(labels) if target.rules.guest_pulls => {
                let guest = Guest {
                    containerd: self.flight.containerd,
                    snapshotter: &target.snapshotter,
                    lease: self.lease,
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
            state: self.sight.state(&target.rules),
            holders,
            onto,
        }
    }
}
