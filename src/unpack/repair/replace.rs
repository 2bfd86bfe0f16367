//! Removes a chain that has to be unpacked again, as far as nothing else holds it. The anchor is the gc label on
//! the config blob that keeps the chain from garbage collection.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use crate::containerd::{self, Containerd, ErrorKind, Labels, Snapshot};
use crate::image::Manifest;
use crate::unpack::chain::profile::is_proxied;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::target::usage;

/// The outcome of a replacement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Replaced {
    /// The top layer is removed. Lower layers that something else holds may remain.
    Gone,
    /// Nothing was changed: this many containers, other images or leases use the chain.
    InUse(usize),
}

/// The chain of one image in one snapshotter.
pub(crate) struct Replace<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) leases: &'a std::sync::Arc<Leases>,
    pub(crate) snapshotter: &'a str,
    pub(crate) manifest: &'a Manifest,
    /// The chain ids of other images.
    pub(crate) others: &'a HashSet<String>,
    /// The key of the anchor.
    pub(crate) anchor: &'a str,
    /// The guest pulls the images of the snapshotter: guest-pulled layers are right, and stay.
    pub(crate) guest_layers_stay: bool,
}

/// What the list of all snapshots shows of the chain.
#[derive(Default)]
struct Listed {
    /// The snapshot of each layer that has one.
    layers: HashMap<String, ListedLayer>,
    /// The names of the snapshots on each layer.
    children: HashMap<String, Vec<String>>,
}

struct ListedLayer {
    created_at: Option<SystemTime>,
    is_proxied: bool,
}

impl Replace<'_> {
    /// Removes the layers from the top down. Stops at the first layer that something else holds, or that is a
    /// guest-pulled layer that stays. First records whether a container has used the chain: its anchor tells that, and is
    /// the plugin's afterwards.
    pub(crate) async fn run(&self) -> Result<Replaced, containerd::Error> {
        usage::record_replaced(self.containerd, self.snapshotter, &self.manifest.config).await?;
        self.remove().await
    }

    async fn remove(&self) -> Result<Replaced, containerd::Error> {
        // Leases are read before the list of snapshots: a container whose snapshot was made meanwhile is in the list.
        let held = Leases::held_by_others(self.containerd, self.snapshotter).await?;
        let listed = self.listed().await?;
        let mut above = None;
        for layer in self.manifest.layers.iter().rev() {
            let chain_id = layer.chain_id.as_str();
            let holders = listed.children.get(chain_id).into_iter().flatten();
            let holders = holders
                .filter(|child| Some(child.as_str()) != above)
                .count();
            if above.is_none() && holders > 0 {
                return Ok(Replaced::InUse(holders));
            }
            let is_kept = self.others.contains(chain_id) || held.contains(chain_id);
            if above.is_none() && is_kept {
                return Ok(Replaced::InUse(1));
            }
            let layer = listed.layers.get(chain_id);
            let stays = layer.is_some_and(|layer| layer.is_proxied && self.guest_layers_stay);
            if holders > 0 || is_kept || stays {
                break;
            }
            if self.is_another(chain_id, layer).await? {
                // Another client has replaced it since the list was read.
                return Ok(Replaced::Gone);
            }
            match self.containerd.remove(self.snapshotter, chain_id).await {
                Err(e) if e.kind == ErrorKind::FailedPrecondition => {
                    // A snapshot was made on it meanwhile, or `Remove` fails for good (see `collect`).
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

    /// Reads which snapshots the layers have, and which are on them.
    async fn listed(&self) -> Result<Listed, containerd::Error> {
        let layers = self.manifest.layers.iter();
        let chain: HashSet<_> = layers.map(|layer| layer.chain_id.as_str()).collect();
        let mut listed = Listed::default();
        let each = &mut |snapshot: Snapshot| {
            let name = snapshot.name;
            if let Some(parent) = snapshot.parent.filter(|it| chain.contains(it.as_str())) {
                let children = listed.children.entry(parent).or_default();
                children.push(name.clone());
            }
            if chain.contains(name.as_str()) {
                let layer = ListedLayer {
                    created_at: snapshot.created_at,
                    is_proxied: is_proxied(&snapshot.labels),
                };
                listed.layers.insert(name, layer);
            }
        };
        self.containerd.snapshots(self.snapshotter, each).await?;
        Ok(listed)
    }

    /// Whether the snapshot of this name is not the one in the list any more, since another process replaced the
    /// same chain.
    async fn is_another(
        &self,
        chain_id: &str,
        listed: Option<&ListedLayer>,
    ) -> Result<bool, containerd::Error> {
        match self.containerd.stat(self.snapshotter, chain_id).await {
            Ok(now) => Ok(listed.is_none_or(|listed| listed.created_at != now.created_at)),
            // It was removed, not replaced: the removal below handles that.
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Removes the chain by garbage collection. If garbage collection once removed a child of a snapshot, `Remove`
    /// fails for this snapshot for good: containerd keeps the child's entry. So the anchor is removed, and a lease
    /// is deleted with `sync`, which runs garbage collection and waits for it. This is safe: garbage collection
    /// keeps everything that a container, a lease or another image holds.
    async fn collect(&self, top: &str) -> Result<Replaced, containerd::Error> {
        let collected = self.collect_without_anchor().await;
        // Also after an error: the collection may have ended, and only its answer be lost.
        let remains = match self.containerd.stat(self.snapshotter, top).await {
            Err(e) if e.is_not_found() => return Ok(Replaced::Gone),
            Err(e) => Err(e),
            Ok(_) => Ok(()),
        };
        // The chain remains, or may remain: the anchor is restored.
        self.set_anchor(top).await?;
        collected.and(remains).map(|()| Replaced::InUse(1))
    }

    /// Removes the anchor and runs garbage collection.
    async fn collect_without_anchor(&self) -> Result<(), containerd::Error> {
        self.set_anchor("").await?;
        let lease = self.leases.take(self.containerd).await?;
        lease.release_and_collect(self.containerd).await
    }

    /// Sets the anchor to this value. An empty value removes it.
    async fn set_anchor(&self, value: &str) -> Result<(), containerd::Error> {
        let label = Labels::from([(self.anchor.to_owned(), value.to_owned())]);
        self.containerd
            .label_blob(&self.manifest.config, label)
            .await
    }
}
