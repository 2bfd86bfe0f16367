//! Judges what was read of the store: what of it the plugin has left, and what of that can be removed. Pure.

use std::collections::{BTreeMap, HashMap, HashSet};

use super::meaning::{Meaning, meaning};
use super::seen::Seen;
use super::{Fate, Leftover, LeftoverKind};
use crate::containerd::{Labels, SnapshotKind};
use crate::unpack::snapshotter::guest_pull::{is_private, public_name};
use crate::unpack::snapshotter::listing::ANCHOR;
use crate::unpack::snapshotter::temporary::lease_of;
use crate::unpack::target::usage;

/// The config blobs with anchors or labels of this program: these labels, by the digest of the blob.
pub(super) type Configs = BTreeMap<String, Labels>;

/// The images: their names, by the digests of their configs and by their chain ids, and the blobs that they lack.
#[derive(Default)]
pub(super) struct Names {
    pub(super) by_config: HashMap<String, String>,
    pub(super) by_chain: HashMap<String, String>,
    /// A layer's blob that is not in the content store, by the digest of the config.
    pub(super) missing: HashMap<String, String>,
    /// Why an image could not be read.
    pub(super) unread: Option<String>,
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

impl Names {
    /// Returns the fate of a chain of the image with this config, by whether containerd can unpack it again. No container is
    /// created from an image that has no name.
    fn unpackable(&self, config: &str) -> Fate {
        if let Some(blob) = self.missing.get(config) {
            return Fate::Stays(format!(
                "containerd could not unpack it again: the blob {blob} of a layer is not in its content store"
            ));
        }
        match &self.unread {
            Some(why) if !self.by_config.contains_key(config) => Fate::Failed(format!(
                "whether containerd could unpack it again is unknown: {why}"
            )),
            _ => Fate::Removable,
        }
    }
}

/// What the leases of processes that still run tell of.
#[derive(Default)]
pub(super) struct Working {
    pub(super) leases: HashSet<String>,
    /// The snapshots in these leases.
    pub(super) snapshots: HashSet<String>,
}

impl Working {
    /// Whether a process that still runs has made this temporary snapshot.
    fn has(&self, key: &str) -> bool {
        let lease = lease_of(key);
        lease.is_some_and(|lease| self.leases.contains(lease)) || self.snapshots.contains(key)
    }
}

/// What is known of the store beside its snapshots.
pub(super) struct Store {
    pub(super) configs: Configs,
    pub(super) names: Names,
    pub(super) working: Working,
}

impl Store {
    /// Returns the labels of this program that are about no snapshotter.
    pub(super) fn other_labels(&self) -> impl Iterator<Item = Leftover> {
        let labels = self.configs.iter();
        let labels =
            labels.flat_map(|(config, labels)| labels.keys().map(move |key| (config, key)));
        let others = labels.filter(|(_, key)| meaning(key) == Meaning::Other);
        others.map(|(config, key)| self.names.labelled(config, key, None))
    }
}

/// One snapshotter, as it was read.
pub(super) struct SnapshotterSurvey<'a> {
    snapshotter: &'a str,
    /// Why the snapshots could not be listed.
    silent: Option<String>,
    seen: Seen,
}

impl<'a> SnapshotterSurvey<'a> {
    pub(super) fn new(snapshotter: &'a str, read: Result<Seen, String>) -> Self {
        let (seen, silent) = match read {
            Ok(seen) => (seen, None),
            Err(why) => (Seen::default(), Some(why)),
        };
        Self {
            snapshotter,
            silent,
            seen,
        }
    }

    /// Returns all leftovers in the snapshotter, and those of the labels that are about it.
    pub(super) fn leftovers(&self, store: &'a Store) -> Vec<Leftover> {
        let judge = Judge {
            survey: self,
            store,
        };
        let mut found = judge.snapshots();
        for (config, labels) in &store.configs {
            found.extend(judge.of_config(config, labels));
        }
        if let Some(why) = &self.silent {
            let why = format!("the snapshotter does not answer: {why}");
            found
                .iter_mut()
                .for_each(|it| it.fate = Fate::Failed(why.clone()));
        }
        found
    }
}

/// A snapshotter, judged by what is known of the store.
struct Judge<'a> {
    survey: &'a SnapshotterSurvey<'a>,
    store: &'a Store,
}

impl Judge<'_> {
    /// Returns the snapshots and labels of snapshots that no config blob tells of.
    fn snapshots(&self) -> Vec<Leftover> {
        let anchored = self.store.configs.values().flat_map(BTreeMap::values);
        let anchored: HashSet<_> = anchored.collect();
        let seen = &self.survey.seen;
        let temporary = seen.temporary.iter();
        let temporary = temporary.filter(|key| !self.store.working.has(key));
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
        let here = |key: &str| meaning(key).snapshotter() == Some(self.survey.snapshotter);
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
                let labelled =
                    self.store
                        .names
                        .labelled(config, key, Some(self.survey.snapshotter));
                Some(labelled)
            }
            Meaning::Anchor(_) | Meaning::Other => None,
        });
        let name = self.store.names.by_config.get(config);
        let named = own.chain(copy).map(|leftover| Leftover {
            image: name.cloned().or(leftover.image),
            ..leftover
        });
        named.collect()
    }

    /// Returns the image's own chain, if it should not stay: no container has used what the plugin has unpacked; or it has
    /// guest-pulled layers, which containerd alone would not have, and on which its own unpacks are broken.
    fn copy(&self, config: &str, labels: &Labels) -> Option<Leftover> {
        let anchor = format!("{ANCHOR}{}", self.survey.snapshotter);
        let top = labels.get(&anchor)?;
        let usage = labels.get(&usage::key(self.survey.snapshotter));
        let is_broken = self.survey.seen.below_host_layers(top).is_some();
        let has_guest_layers = is_broken || (usage.is_some() && self.survey.seen.is_proxied(top));
        let is_unused = usage.is_some_and(|value| value != usage::USED);
        let fate = match (has_guest_layers, self.survey.seen.is_used(top)) {
            (true, true) => Fate::Stays(
                "containers use its guest-pulled layers: purge again when their pods are gone"
                    .to_owned(),
            ),
            // containerd would have unpacked it for its container.
            (false, true) => return None,
            (false, false) if !is_unused => return None,
            (_, false) if is_broken => self.broken(top),
            (_, false) => self.store.names.unpackable(config),
        };
        Some(Leftover {
            label: Some(anchor),
            config: Some(config.to_owned()),
            fate,
            ..self.chain(LeftoverKind::Copy, top)
        })
    }

    /// Returns the fate of a chain with host-unpacked layers on guest-pulled ones. Its root file system is broken: it goes
    /// also where containerd cannot unpack it again.
    fn broken(&self, top: &str) -> Fate {
        match self.survey.seen.unknown(top) {
            Some(why) => Fate::Failed(format!(
                "whether a guest has pulled its lower layers is unknown: {why}"
            )),
            None => Fate::Removable,
        }
    }

    fn private(&self, name: &str) -> Leftover {
        let fate = match self.survey.seen.is_used(name) {
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
            snapshotter: Some(self.survey.snapshotter.to_owned()),
            name: name.to_owned(),
            label: None,
            config: None,
            image: self.store.names.by_chain.get(public_name(name)).cloned(),
            fate: Fate::Removable,
        }
    }
}

/// Why a private chain stays.
pub(super) const STAYS_FOR_CONTAINER: &str =
    "a container uses it: containerd removes it after its last container";
