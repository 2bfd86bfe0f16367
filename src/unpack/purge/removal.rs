//! Removes what the plugin has left.
//!
//! Temporary snapshots go first, by name: a child that garbage collection deletes leaves an entry in its parent. Then the
//! labels, then one garbage collection for all chains. Whatever got a user meanwhile keeps its anchor.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use super::judgement::STAYS_FOR_CONTAINER;
use super::seen::Seen;
use super::{Fate, Leftover, LeftoverKind};
use crate::containerd::{self, Containerd, Labels, Snapshotter};
use crate::unpack::snapshotter::lease::Leases;

/// Removes what a survey has found.
pub(crate) struct Removal<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) leases: &'a Arc<Leases>,
}

/// What is there after the garbage collection.
struct Now {
    collected: Result<(), containerd::Error>,
    /// The snapshotters that containerd has; `None` if it has not told them.
    snapshotters: Option<Vec<Snapshotter>>,
    /// The snapshots of each snapshotter, read when they are needed first.
    seen: HashMap<String, Result<Seen, String>>,
}

impl Removal<'_> {
    /// Removes all leftovers that can be removed. Returns all, with what became of each.
    pub(crate) async fn run(&self, mut found: Vec<Leftover>) -> Vec<Leftover> {
        let swept = self.leases.sweep(self.containerd).await;
        for leftover in &mut found {
            match leftover.kind {
                LeftoverKind::TemporarySnapshot => self.remove_temporary(leftover).await,
                LeftoverKind::Label if leftover.config.is_none() => self.unlabel(leftover).await,
                _ => {}
            }
        }
        self.unlabel_configs(&mut found).await;
        let mut now = Now {
            collected: self.collect().await,
            snapshotters: self.containerd.snapshotters().await.ok(),
            seen: HashMap::new(),
        };
        for leftover in &mut found {
            if let LeftoverKind::PrivateChain | LeftoverKind::Copy = leftover.kind {
                self.look_again(leftover, &mut now).await;
            }
        }
        self.settle_leases(&mut found, swept.map(drop)).await;
        found
    }

    async fn remove_temporary(&self, leftover: &mut Leftover) {
        if let (Fate::Removable, Some(snapshotter)) = (&leftover.fate, &leftover.snapshotter) {
            leftover.fate = fate(self.containerd.remove(snapshotter, &leftover.name).await);
        }
    }

    /// Removes a label of a snapshot.
    async fn unlabel(&self, leftover: &mut Leftover) {
        if let (Fate::Removable, Some(snapshotter), Some(label)) =
            (&leftover.fate, &leftover.snapshotter, &leftover.label)
        {
            let none = Labels::from([(label.clone(), String::new())]);
            let labelled = self
                .containerd
                .label_snapshot(snapshotter, &leftover.name, none);
            leftover.fate = fate(labelled.await);
        }
    }

    /// Removes the labels of all config blobs: with one call for each blob, so that no chain loses its usage before its
    /// anchor. The anchor of a private chain goes also if a container uses the chain, which keeps it.
    async fn unlabel_configs(&self, found: &mut [Leftover]) {
        let mut by_config: BTreeMap<String, Vec<&mut Leftover>> = BTreeMap::new();
        let is_due = |it: &&mut Leftover| {
            let is_private = it.kind == LeftoverKind::PrivateChain;
            it.fate == Fate::Removable || (is_private && matches!(it.fate, Fate::Stays(_)))
        };
        for leftover in found.iter_mut().filter(is_due) {
            if let Some(config) = leftover.config.clone() {
                by_config.entry(config).or_default().push(leftover);
            }
        }
        for (config, leftovers) in by_config {
            let labels = leftovers.iter().filter_map(|it| it.label.clone());
            let none = labels.map(|label| (label, String::new())).collect();
            let unlabelled = fate(self.containerd.label_blob(&config, none).await);
            for leftover in leftovers {
                match (&unlabelled, leftover.kind) {
                    (Fate::Failed(_), _) => leftover.fate = unlabelled.clone(),
                    (_, LeftoverKind::Label) => leftover.fate = Fate::Removed,
                    // The collection decides.
                    _ => {}
                }
            }
        }
    }

    /// Runs a garbage collection and waits for its end.
    async fn collect(&self) -> Result<(), containerd::Error> {
        let lease = self.leases.take(self.containerd).await?;
        lease.release_and_collect(self.containerd).await
    }

    /// Sees what the collection has left of a chain.
    async fn look_again(&self, leftover: &mut Leftover, now: &mut Now) {
        let (Fate::Removable, Some(snapshotter)) = (&leftover.fate, &leftover.snapshotter) else {
            return;
        };
        leftover.fate = match self.containerd.stat(snapshotter, &leftover.name).await {
            Err(e) if e.is_not_found() => Fate::Removed,
            // The label was all that was left.
            Err(_) if !now.has_snapshotter(snapshotter) => Fate::Removed,
            Err(e) => Fate::Failed(e.to_string()),
            Ok(_) => match (now.is_used(self.containerd, leftover).await, &now.collected) {
                (Err(e), _) => Fate::Failed(e),
                (Ok(true), _) => self.restore(leftover).await,
                (Ok(false), Err(e)) => Fate::Failed(format!(
                    "garbage collection failed, containerd's next one removes it: {e}"
                )),
                (Ok(false), Ok(())) => Fate::Stays(
                    "another image, a lease or a container's copy has its layers".to_owned(),
                ),
            },
        };
    }

    /// Puts the anchor of a chain back that a container has begun to use meanwhile. A private chain needs none: the
    /// container keeps it.
    async fn restore(&self, leftover: &Leftover) -> Fate {
        let (LeftoverKind::Copy, Some(config), Some(label)) =
            (leftover.kind, &leftover.config, &leftover.label)
        else {
            return Fate::Stays(STAYS_FOR_CONTAINER.to_owned());
        };
        let anchor = Labels::from([(label.clone(), leftover.name.clone())]);
        match self.containerd.label_blob(config, anchor).await {
            Err(e) if !e.is_not_found() => Fate::Failed(e.to_string()),
            _ => Fate::Stays("a container began to use it".to_owned()),
        }
    }

    /// Sees which leases the sweep has left.
    async fn settle_leases(&self, found: &mut [Leftover], swept: Result<(), containerd::Error>) {
        let left = self.leases.leftovers(self.containerd).await;
        let leases = found.iter_mut().filter(|it| it.kind == LeftoverKind::Lease);
        for lease in leases.filter(|lease| lease.fate == Fate::Removable) {
            lease.fate = match (&left, &swept) {
                (Ok(left), _) if !left.contains(&lease.name) => Fate::Removed,
                (Err(e), _) | (_, Err(e)) => Fate::Failed(e.to_string()),
                (Ok(_), Ok(())) => Fate::Failed(
                    "a snapshot that it keeps could not be removed: see containerd's log"
                        .to_owned(),
                ),
            };
        }
    }
}

impl Now {
    fn has_snapshotter(&self, name: &str) -> bool {
        let snapshotters = self.snapshotters.as_ref();
        snapshotters.is_none_or(|all| all.iter().any(|it| it.name == name))
    }

    /// Whether a container uses the chain of a leftover.
    async fn is_used(
        &mut self,
        containerd: &dyn Containerd,
        leftover: &Leftover,
    ) -> Result<bool, String> {
        let snapshotter = leftover.snapshotter.clone().unwrap_or_default();
        if !self.seen.contains_key(&snapshotter) {
            let seen = Seen::read(containerd, &snapshotter).await;
            let seen = seen.map_err(|e| e.to_string());
            self.seen.insert(snapshotter.clone(), seen);
        }
        match &self.seen[&snapshotter] {
            Ok(seen) => Ok(seen.is_used(&leftover.name)),
            Err(e) => Err(e.clone()),
        }
    }
}

/// Returns the fate after a call that removes something. What is gone already was removed.
fn fate(removed: Result<(), containerd::Error>) -> Fate {
    match removed {
        Err(e) if !e.is_not_found() => Fate::Failed(e.to_string()),
        _ => Fate::Removed,
    }
}
