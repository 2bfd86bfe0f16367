//! Judges what was read of the store: what of it the plugin has left, and what of that can be removed. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::meaning::{Meaning, meaning};
use super::seen::Seen;
use super::{Fate, Leftover, LeftoverKind};
use crate::containerd::{Labels, SnapshotKind};
use crate::unpack::snapshotter::guest_pull::{is_private, public_name};
use crate::unpack::snapshotter::listing::ANCHOR;
use crate::unpack::target::usage;

/// The config blobs with anchors or labels of this program: these labels, by the digest of the blob.
pub(super) type Configs = BTreeMap<String, Labels>;

/// The names of images, by the digests of their configs and by their chain ids.
#[derive(Default)]
pub(super) struct Names {
    pub(super) by_config: HashMap<String, String>,
    pub(super) by_chain: HashMap<String, String>,
}

impl Names {
    /// Returns the leftover of a label on a config blob.
    pub(super) fn labelled(&self, config: &str, key: &str, snapshotter: Option<&str>) -> Leftover {
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
pub(super) struct SnapshotterSurvey<'a> {
    pub(super) snapshotter: &'a str,
    pub(super) configs: &'a Configs,
    pub(super) names: &'a Names,
    /// The temporary snapshots of processes that run.
    pub(super) working: &'a HashSet<String>,
    /// Why the snapshots could not be listed.
    pub(super) silent: Option<String>,
    pub(super) seen: Seen,
}

impl SnapshotterSurvey<'_> {
    /// Returns all leftovers in the snapshotter, and those of the labels that are about it.
    pub(super) fn leftovers(&self) -> Vec<Leftover> {
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
