//! Removes a chain that has to be unpacked again, down to the first layer that something else holds.

use std::collections::{HashMap, HashSet};

use crate::containerd::{self, Containerd, ErrorKind, Labels, Snapshot};
use crate::image::Manifest;
use crate::unpack::chain::profile::is_proxied;
use crate::unpack::snapshotter::lease::Leases;

/// The result of a replacement.
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
    /// Removes the layers from the top down, to the first one that has another child or that is a guest-pulled
    /// layer.
    pub(crate) async fn run(&self) -> Result<Replaced, containerd::Error> {
        // Leases are read before the snapshots: a client that releases its lease in between has its snapshot in the list.
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
                // Another process has replaced it since the list was read.
                return Ok(Replaced::Gone);
            }
            match self.containerd.remove(self.snapshotter, chain_id).await {
                Err(e) if e.kind == ErrorKind::FailedPrecondition => {
                    // A snapshot was prepared on it meanwhile, or `Remove` cannot remove it.
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

    /// Whether the snapshot of this name is another one than in the list: another process may replace the same
    /// chain.
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

    /// Removes the chain by a garbage collection. `Remove` fails for ever on a snapshot that lost a child to a
    /// garbage collection, since the snapshotter keeps the child's entry. So the anchor is removed, and a lease is
    /// deleted with `sync`, which collects and returns afterwards. A collection keeps what a container, a lease or
    /// another image holds.
    async fn collect(&self, top: &str) -> Result<Replaced, containerd::Error> {
        let gone = self.let_go(top).await;
        if let Ok(true) = gone {
            return Ok(Replaced::Gone);
        }
        // The chain is still there, or a call has failed: it has to stay anchored.
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
