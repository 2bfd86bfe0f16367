//! Finds what the plugin has left. Changes nothing.
//!
//! Each list of containerd is read once, as a stream, and only what belongs to the plugin is kept.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::meaning::{Meaning, meaning};
use super::seen::Seen;
use super::{Fate, Leftover, LeftoverKind};
use crate::containerd::{self, Blob, Containerd, Labels, SnapshotKind};
use crate::image::distinct;
use crate::unpack::snapshotter::guest_pull::{is_private, public_name};
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::{ANCHOR, OWN_LABELS};
use crate::unpack::target::images::Images;
use crate::unpack::target::usage;

/// Finds what the plugin has left.
pub(crate) struct Survey<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) images: &'a Images,
    pub(crate) leases: &'a Leases,
}

/// The config blobs with anchors or labels of this program: these labels, by the digest of the blob.
type Configs = BTreeMap<String, Labels>;

/// The names of images, by the digests of their configs and by their chain ids.
#[derive(Default)]
struct Names {
    by_config: HashMap<String, String>,
    by_chain: HashMap<String, String>,
}

impl Survey<'_> {
    /// Returns all leftovers.
    pub(crate) async fn run(&self) -> Result<Vec<Leftover>, containerd::Error> {
        let leases = self.leases.of_this_program(self.containerd).await?;
        let mut found: Vec<_> = leases.iter().map(lease).collect();
        let working = self.snapshots_at_work(&leases).await?;
        let configs = self.configs().await?;
        let names = self.names().await?;
        let mut snapshotters: BTreeMap<String, Option<String>> = BTreeMap::new();
        for listed in self.containerd.snapshotters().await? {
            snapshotters.insert(listed.name, listed.init_error);
        }
        // What containerd has no snapshotter for is kept by labels alone.
        let known: HashSet<_> = snapshotters.keys().cloned().collect();
        let named = configs.values().flat_map(BTreeMap::keys);
        for snapshotter in named.filter_map(|key| meaning(key).snapshotter()) {
            snapshotters.entry(snapshotter.to_owned()).or_default();
        }
        for (snapshotter, init_error) in &snapshotters {
            let read = match init_error {
                Some(why) => Err(why.clone()),
                None if !known.contains(snapshotter) => Ok(Seen::default()),
                None => Seen::read(self.containerd, snapshotter)
                    .await
                    .map_err(|e| e.to_string()),
            };
            let (seen, silent) = match read {
                Ok(mut seen) => {
                    let anchor = format!("{ANCHOR}{snapshotter}");
                    let tops = configs.values().filter_map(|labels| labels.get(&anchor));
                    seen.forget_false_marks(self.containerd, snapshotter, tops)
                        .await;
                    (seen, None)
                }
                Err(why) => (Seen::default(), Some(why)),
            };
            let node = Node {
                snapshotter,
                configs: &configs,
                names: &names,
                working: &working,
                silent,
                seen,
            };
            found.extend(node.leftovers());
        }
        for (config, labels) in &configs {
            for key in labels.keys().filter(|key| meaning(key) == Meaning::Other) {
                found.push(names.labelled(config, key, None));
            }
        }
        Ok(found)
    }

    /// Returns the temporary snapshots in leases of processes that still run.
    async fn snapshots_at_work(
        &self,
        leases: &[(String, bool)],
    ) -> Result<HashSet<String>, containerd::Error> {
        let mut working = HashSet::new();
        for (lease, _) in leases.iter().filter(|(_, is_left)| !is_left) {
            match self.containerd.lease_resources(lease).await {
                Err(e) if e.is_not_found() => {}
                held => working.extend(held?.into_iter().map(|held| held.id)),
            }
        }
        Ok(working)
    }

    async fn configs(&self) -> Result<Configs, containerd::Error> {
        let mut configs = Configs::new();
        let each = &mut |mut blob: Blob| {
            blob.labels
                .retain(|key, _| key.starts_with(ANCHOR) || key.starts_with(OWN_LABELS));
            if !blob.labels.is_empty() {
                configs.insert(blob.digest, blob.labels);
            }
        };
        self.containerd.blobs(each).await?;
        Ok(configs)
    }

    /// Reads the names of all images. An image that cannot be read has none.
    async fn names(&self) -> Result<Names, containerd::Error> {
        let mut names = Names::default();
        for image in distinct(self.containerd.images().await?) {
            if let Ok(Some(ends)) = self.images.ends(&image.image).await {
                let name = image.image.name;
                let chain = ends.chain.map(|chain| (chain, name.clone()));
                names.by_chain.extend(chain);
                names.by_config.insert(ends.config, name);
            }
        }
        Ok(names)
    }
}

fn lease((id, is_left): &(String, bool)) -> Leftover {
    let stays = || {
        let why =
            "its process runs, or ran in another process namespace: containerd ends it after a day";
        Fate::Stays(why.to_owned())
    };
    Leftover {
        kind: LeftoverKind::Lease,
        snapshotter: None,
        name: id.clone(),
        label: None,
        config: None,
        image: None,
        fate: if *is_left { Fate::Removable } else { stays() },
    }
}

impl Names {
    /// Returns the leftover of a label on a config blob.
    fn labelled(&self, config: &str, key: &str, snapshotter: Option<&str>) -> Leftover {
        Leftover {
            kind: LeftoverKind::Label,
            snapshotter: snapshotter.map(str::to_owned),
            name: config.to_owned(),
            label: Some(key.to_owned()),
            config: Some(config.to_owned()),
            image: self.by_config.get(config).cloned(),
            fate: Fate::Removable,
        }
    }
}

/// One snapshotter, and what is known of the store.
struct Node<'a> {
    snapshotter: &'a str,
    configs: &'a Configs,
    names: &'a Names,
    /// The temporary snapshots of processes that run.
    working: &'a HashSet<String>,
    /// Why the snapshots could not be listed.
    silent: Option<String>,
    seen: Seen,
}

impl Node<'_> {
    fn leftovers(&self) -> Vec<Leftover> {
        let mut found = self.snapshots();
        for (config, labels) in self.configs {
            found.extend(self.of_config(config, labels));
        }
        if let Some(why) = &self.silent {
            let why = format!("the snapshotter does not answer: {why}");
            found
                .iter_mut()
                .for_each(|it| it.fate = Fate::Failed(why.clone()));
        }
        found
    }

    /// Returns the snapshots and labels of snapshots that no config blob tells of.
    fn snapshots(&self) -> Vec<Leftover> {
        let anchored = self.configs.values().flat_map(BTreeMap::values);
        let anchored: HashSet<_> = anchored.collect();
        let seen = &self.seen;
        let temporary = seen.temporary.iter();
        let temporary = temporary.filter(|key| !self.working.contains(*key));
        let temporary = temporary.map(|key| self.chain(LeftoverKind::TemporarySnapshot, key));
        let private = seen.private.iter().filter(|name| !anchored.contains(name));
        let private = private.map(|name| self.private(name));
        let labels = seen.labels.iter().map(|(key, kind, label)| Leftover {
            label: Some(label.clone()),
            fate: match kind {
                SnapshotKind::Committed => Fate::Removable,
                _ => Fate::Stays("it is on a pod's own snapshot, and goes with the pod".to_owned()),
            },
            ..self.chain(LeftoverKind::Label, key)
        });
        temporary.chain(private).chain(labels).collect()
    }

    /// Returns what the labels of a config blob tell of.
    fn of_config(&self, config: &str, labels: &Labels) -> Vec<Leftover> {
        let here = |key: &str| meaning(key).snapshotter() == Some(self.snapshotter);
        let copy = self.copy(config, labels);
        let keeps_usage = copy
            .as_ref()
            .is_some_and(|copy| copy.fate != Fate::Removable);
        let own = labels.iter().filter(|(key, _)| here(key));
        let own = own.filter_map(|(key, value)| match meaning(key) {
            Meaning::OwnAnchor(_) if is_private(value) => Some(Leftover {
                label: Some(key.clone()),
                config: Some(config.to_owned()),
                ..self.private(value)
            }),
            // By it the next purge finds a guest-pulled chain that is in use now.
            Meaning::Usage(_) if keeps_usage => None,
            Meaning::OwnAnchor(_) | Meaning::Usage(_) => {
                let labelled = self.names.labelled(config, key, Some(self.snapshotter));
                Some(labelled)
            }
            Meaning::Anchor(_) | Meaning::Other => None,
        });
        let name = self.names.by_config.get(config);
        let named = own.chain(copy).map(|leftover| Leftover {
            image: name.cloned().or(leftover.image),
            ..leftover
        });
        named.collect()
    }

    /// Returns the image's own chain, if it should not stay: no container has used what the plugin has unpacked; or it has
    /// guest-pulled layers, which containerd alone would not have, and on which its own unpacks are broken.
    fn copy(&self, config: &str, labels: &Labels) -> Option<Leftover> {
        let anchor = format!("{ANCHOR}{}", self.snapshotter);
        let top = labels.get(&anchor)?;
        let usage = labels.get(&usage::key(self.snapshotter));
        let is_broken = self.seen.below_host_layers(top).is_some();
        let has_guest_layers = is_broken || (usage.is_some() && self.seen.is_proxied(top));
        let is_unused = usage.is_some_and(|value| value != usage::USED);
        let fate = match (has_guest_layers, self.seen.is_used(top)) {
            (true, true) => Fate::Stays(
                "containers use its guest-pulled layers: purge again when their pods are gone"
                    .to_owned(),
            ),
            (true, false) => Fate::Removable,
            // containerd would have unpacked it for its container.
            (false, true) => return None,
            (false, false) if !is_unused => return None,
            (false, false) => Fate::Removable,
        };
        Some(Leftover {
            label: Some(anchor),
            config: Some(config.to_owned()),
            fate,
            ..self.chain(LeftoverKind::Copy, top)
        })
    }

    fn private(&self, name: &str) -> Leftover {
        let fate = match self.seen.is_used(name) {
            true => Fate::Stays(STAYS_FOR_CONTAINER.to_owned()),
            false => Fate::Removable,
        };
        Leftover {
            fate,
            ..self.chain(LeftoverKind::PrivateChain, name)
        }
    }

    fn chain(&self, kind: LeftoverKind, name: &str) -> Leftover {
        Leftover {
            kind,
            snapshotter: Some(self.snapshotter.to_owned()),
            name: name.to_owned(),
            label: None,
            config: None,
            image: self.names.by_chain.get(public_name(name)).cloned(),
            fate: Fate::Removable,
        }
    }
}

/// Why a private chain stays.
pub(super) const STAYS_FOR_CONTAINER: &str =
    "a container uses it: containerd removes it after its last container";
