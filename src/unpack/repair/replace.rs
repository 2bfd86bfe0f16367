//! Takes a chain away that has to be unpacked again, as far as nothing else holds it.

use std::collections::{HashMap, HashSet};

use crate::containerd::{self, Containerd, ErrorKind, Labels, Snapshot};
use crate::image::Manifest;
use crate::unpack::chain::profile::is_proxied;
use crate::unpack::snapshotter::lease::Leases;

/// What came of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// The top layer is gone; lower ones that something else holds may have stayed.
    Gone,
    /// The chain is used by this many containers, other images or leases: nothing was changed.
    InUse(usize),
}

/// The chain of one image in one snapshotter.
pub(crate) struct Replace<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) leases: &'a std::sync::Arc<Leases>,
    pub(crate) snapshotter: &'a str,
    pub(crate) manifest: &'a Manifest,
    /// Chains at which other images end.
    pub(crate) others: &'a HashSet<String>,
    /// The config blob's label that keeps the chain from garbage collection.
    pub(crate) anchor: &'a str,
}

impl Replace<'_> {
    /// Takes the layers away from the top down, to the first that something else stands on or that
    /// the snapshotter left to the guest.
    pub(crate) async fn run(&self) -> Result<Replaced, containerd::Error> {
        // Before the list: a container that stands on the chain by now is in the list.
        let held = Leases::held_by_others(self.containerd, self.snapshotter).await?;
        let snapshots = self.containerd.snapshots(self.snapshotter).await?;
        let children = children(&snapshots);
        let proxied = snapshots.iter().filter(|s| is_proxied(&s.labels));
        let proxied: HashSet<_> = proxied.map(|s| s.name.as_str()).collect();
        let mut above = None;
        for layer in self.manifest.layers.iter().rev() {
            let chain_id = layer.chain_id.as_str();
            let holders = children.get(chain_id).into_iter().flatten();
            let holders = holders.filter(|child| Some(**child) != above).count();
            if above.is_none() && holders > 0 {
                return Ok(Replaced::InUse(holders));
            }
            let is_kept = self.others.contains(chain_id) || held.contains(chain_id);
            if above.is_none() && is_kept {
                return Ok(Replaced::InUse(1));
            }
            if holders > 0 || is_kept || proxied.contains(chain_id) {
                break;
            }
            if self.is_another(chain_id, &snapshots).await? {
                // Somebody else has replaced it since the list was read.
                return Ok(Replaced::Gone);
            }
            match self.containerd.remove(self.snapshotter, chain_id).await {
                Err(e) if e.kind == ErrorKind::FailedPrecondition => {
                    // Somebody was quicker to stand on it, or it cannot be removed in this way.
                    return match above {
                        None => self.collect(chain_id).await,
                        Some(_) => Ok(Replaced::Gone),
                    };
                }
                Err(e) if !e.is_not_found() => return Err(e),
                _ => above = Some(chain_id),
            }
        }
        Ok(Replaced::Gone)
    }

    /// Whether the snapshot of this name is not the one in the list any more: another process may
    /// replace the same chain.
    async fn is_another(
        &self,
        chain_id: &str,
        listed: &[Snapshot],
    ) -> Result<bool, containerd::Error> {
        match self.containerd.stat(self.snapshotter, chain_id).await {
            Ok(now) => {
                let then = listed.iter().find(|s| s.name == chain_id);
                Ok(then.is_none_or(|then| then.created_at != now.created_at))
            }
            // Not another one; that it is gone shows when it is removed.
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A snapshot that garbage collection once took a child from refuses `Remove` for good: its
    /// parent keeps the child's entry. What works is to let go of the chain and have garbage
    /// collected, which deleting a lease with `sync` does and waits for. Whatever is in use is in no
    /// danger: collection spares what a container, a lease or another image holds.
    async fn collect(&self, top: &str) -> Result<Replaced, containerd::Error> {
        let gone = self.let_go(top).await;
        if let Ok(true) = gone {
            return Ok(Replaced::Gone);
        }
        // Whatever kept it, or failed: a chain that is there stays anchored.
        self.set_anchor(top).await?;
        gone.map(|_| Replaced::InUse(1))
    }

    /// Whether the chain is gone after a garbage collection in which its anchor did not count.
    async fn let_go(&self, top: &str) -> Result<bool, containerd::Error> {
        self.set_anchor("").await?;
        let lease = self.leases.take(self.containerd).await?;
        lease.release_and_collect(self.containerd).await?;
        match self.containerd.stat(self.snapshotter, top).await {
            Err(e) if e.is_not_found() => Ok(true),
            Err(e) => Err(e),
            Ok(_) => Ok(false),
        }
    }

    /// An empty value takes the label away.
    async fn set_anchor(&self, value: &str) -> Result<(), containerd::Error> {
        let label = Labels::from([(self.anchor.to_owned(), value.to_owned())]);
        self.containerd
            .label_blob(&self.manifest.config, label)
            .await
    }
}

fn children(snapshots: &[Snapshot]) -> HashMap<&str, Vec<&str>> {
    let mut children: HashMap<&str, Vec<&str>> = HashMap::new();
    for snapshot in snapshots {
        if let Some(parent) = &snapshot.parent {
            children.entry(parent).or_default().push(&snapshot.name);
        }
    }
    children
}
