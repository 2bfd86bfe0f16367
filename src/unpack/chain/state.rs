//! The status of a chain in a snapshotter, and the state that follows from it. No I/O.

use std::fmt;

use crate::containerd::Labels;
use crate::image::{self, IMAGE_LAYERS, IMAGE_REF, LayerLabels, MANIFEST_DIGEST};

use super::profile::{Repair, is_proxied};

/// The state of an image's chain in one snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Every layer is committed with its labels, and the chain is anchored.
    Ready,
    /// No layer is committed.
    Missing,
    /// Only the lower layers are committed.
    Partial,
    /// Every layer is committed, and at least one lacks labels.
    Unlabelled,
    /// A layer that was unpacked on the host lies over guest-pulled layers, which the snapshotter committed
    /// without content: a broken root file system. Or a layer is guest-pulled, and the snapshotter does not leave
    /// images to the guest any more.
    Mixed,
    /// The labels name another image: those of the top layer an image that has more layers above it, or those
    /// of any layer this image in a registry or repository that it is not from.
    Foreign,
    /// The chain is complete, and nothing keeps it from garbage collection.
    Unanchored,
    /// containerd's metadata has a snapshot of the chain that the snapshotter has lost: its directory was deleted, or it
    /// was installed again.
    Lost,
    /// The image, or a blob that has to be applied, cannot be read.
    Unavailable,
}

impl State {
    /// All states.
    pub const ALL: [Self; 9] = [
        Self::Ready,
        Self::Missing,
        Self::Partial,
        Self::Unlabelled,
        Self::Mixed,
        Self::Foreign,
        Self::Unanchored,
        Self::Lost,
        Self::Unavailable,
    ];

    /// The state's name in JSON and metrics.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Missing => "missing",
            Self::Partial => "partial",
            Self::Unlabelled => "unlabelled",
            Self::Mixed => "mixed",
            Self::Foreign => "foreign",
            Self::Unanchored => "unanchored",
            Self::Lost => "lost",
            Self::Unavailable => "unavailable",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// The conditions under which a chain is ready.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The labels that each layer must have, bottom first. Only the keys are compared: a layer that two images
    /// share has one chain id and carries the labels of the image that was unpacked first.
    pub required: LayerLabels,
    /// The repositories that the labels may name; `None` if the labels need not name any.
    pub origin: Option<Origin>,
    /// How missing labels are repaired.
    pub repair: Repair,
    /// The guest pulls the image: the chain counts as labelled if its top layer is a guest-pulled layer. The
    /// layers below do not matter.
    pub guest_pulls: bool,
    /// The guest pulls the labelled images of the snapshotter. If it does not, guest-pulled layers are left from the
    /// time when it did, and no container can start from them.
    pub supports_guest_pull: bool,
}

/// The manifest of an image and the repositories in its names.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The digest of the manifest: labels with another digest belong to an image that shares the layer.
    pub manifest: String,
    /// The registry and repository of each name.
    pub repositories: Vec<String>,
}

impl Origin {
    /// Whether these labels belong to this image and name a repository that it is not from. They may, since the
    /// registry's port is not known while the image is pulled.
    fn is_misnamed(&self, labels: &Labels) -> bool {
        let is_ours = labels.get(MANIFEST_DIGEST) == Some(&self.manifest);
        let named = labels.get(IMAGE_REF);
        let repository = named.map(|name| image::repository(name));
        is_ours && repository.is_some_and(|r| !r.is_some_and(|r| self.repositories.contains(&r)))
    }
}

/// The snapshots of a chain, as containerd lists them.
///
/// Invariant: the parents of a committed layer are committed, so in `layers` no `Some` follows a `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainStatus {
    /// The labels of each committed layer, bottom first; `None` for a layer without a snapshot.
    pub layers: Vec<Option<Labels>>,
    /// Whether the chain has its anchor: a label on the image's config blob that keeps the chain from garbage
    /// collection.
    pub anchored: bool,
    /// The lowest layer without a snapshot has a record in containerd's metadata: the snapshotter has lost it, and what
    /// was on it.
    pub is_lost: bool,
}

impl ChainStatus {
    /// Returns the number of committed layers.
    pub fn committed(&self) -> usize {
        let layers = self.layers.iter();
        layers.take_while(|layer| layer.is_some()).count()
    }

    /// Returns the number of layers that are ready.
    pub fn ready_layers(&self, rules: &Rules) -> usize {
        if !rules.guest_pulls {
            self.committed() - self.unlabelled(rules).count()
        } else if self.top().is_some_and(is_proxied) {
            // A mount of the chain depends on its top layer alone.
            self.layers.len()
        } else {
            self.layers
                .iter()
                .flatten()
                .filter(|l| is_proxied(l))
                .count()
        }
    }

    /// Returns the number of host-unpacked layers in a chain that the guest pulls. They stay, since something else
    /// uses them.
    pub(crate) fn kept_layers(&self, rules: &Rules) -> usize {
        if rules.guest_pulls && self.top().is_some_and(is_proxied) {
            let layers = self.layers.iter().flatten();
            layers.filter(|labels| !is_proxied(labels)).count()
        } else {
            0
        }
    }

    /// Returns the positions of the committed layers that lack labels, bottom first.
    pub(crate) fn unlabelled<'a>(&'a self, rules: &'a Rules) -> impl Iterator<Item = usize> + 'a {
        let layers = self.layers.iter().enumerate();
        layers.filter_map(|(i, layer)| {
            let labels = layer.as_ref()?;
            let has_all = rules.required.has_all_keys(i, labels);
            (!has_all).then_some(i)
        })
    }

    /// Whether the chain has a guest-pulled layer, which the snapshotter committed without content.
    pub(crate) fn has_guest_layers(&self) -> bool {
        self.layers.iter().flatten().any(is_proxied)
    }

    /// Returns the labels of the top layer, if it is committed.
    fn top(&self) -> Option<&Labels> {
        self.layers.last()?.as_ref()
    }

    /// Returns the positions of the committed layers whose labels name another image, bottom first.
    pub(crate) fn foreign<'a>(&'a self, rules: &'a Rules) -> impl Iterator<Item = usize> + 'a {
        let top = self.layers.len().checked_sub(1);
        let foreign_top = top.filter(|_| self.is_top_foreign(rules));
        let layers = self.layers.iter().enumerate();
        layers.filter_map(move |(i, layer)| {
            let labels = layer.as_ref()?;
            let origin = rules.origin.as_ref();
            let is_misnamed = origin.is_some_and(|origin| origin.is_misnamed(labels));
            (is_misnamed || foreign_top == Some(i)).then_some(i)
        })
    }

    /// Whether the labels of the top layer list more layers than that one: they belong to an image that has layers
    /// above it.
    fn is_top_foreign(&self, rules: &Rules) -> bool {
        let listed = self.top().and_then(|labels| labels.get(IMAGE_LAYERS));
        rules.required.top_has(IMAGE_LAYERS) && listed.is_some_and(|layers| layers.contains(','))
    }

    /// Returns the state.
    pub fn state(&self, rules: &Rules) -> State {
        if self.is_lost {
            return State::Lost;
        }
        if !rules.supports_guest_pull && self.has_guest_layers() {
            // Left from another mode of the snapshotter: they have no content, and no guest pulls it.
            return State::Mixed;
        }
        let Some(top) = self.top() else {
            return match self.committed() {
                // An image without layers has nothing to unpack, label or lose.
                _ if self.layers.is_empty() => State::Ready,
                0 => State::Missing,
                _ => State::Partial,
            };
        };
        let guest_pulls = rules.guest_pulls && is_proxied(top);
        if !is_proxied(top) && self.has_guest_layers() {
            // Under every policy: the snapshotter mounts the chain as unpacked on the host.
            State::Mixed
        } else if !guest_pulls && (rules.guest_pulls || self.unlabelled(rules).next().is_some()) {
            State::Unlabelled
        } else if self.foreign(rules).next().is_some() {
            State::Foreign
        } else if !self.anchored {
            State::Unanchored
        } else {
            State::Ready
        }
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::super::profile;
    use super::*;

    pub(crate) fn labelled() -> Option<Labels> {
        rules(1, false).required.last().cloned()
    }

    pub(crate) fn proxied() -> Option<Labels> {
        labelled().map(profile::tests::proxied)
    }

    /// The labels of a layer that has another layer above it.
    pub(crate) fn of_lower_layer() -> Option<Labels> {
        let mut labels = labelled()?;
        labels.insert(IMAGE_LAYERS.to_owned(), "sha256:a,sha256:b".to_owned());
        Some(labels)
    }

    pub(crate) fn rules(layers: usize, guest_pulls: bool) -> Rules {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let labels = Labels::from([label("a", "x"), label(IMAGE_LAYERS, "sha256:a")]);
        Rules {
            required: vec![labels; layers].into(),
            origin: None,
            repair: if guest_pulls {
                Repair::Replace
            } else {
                Repair::Relabel
            },
            guest_pulls,
            supports_guest_pull: guest_pulls,
        }
    }

    #[test]
    fn host_unpacked_layers_below_a_guest_pulled_one_are_counted() {
        for (layers, kept) in [
            (vec![bare(), proxied()], 1),
            (vec![proxied(), proxied()], 0),
            (vec![bare(), bare()], 0),
        ] {
            let rules = rules(layers.len(), true);
            let status = ChainStatus {
                layers,
                anchored: true,
                is_lost: false,
            };
            assert_eq!(status.kept_layers(&rules), kept, "{status:?}");
        }
    }

    fn assert_states(guest_pulls: bool, cases: Vec<(Vec<Option<Labels>>, bool, State, usize)>) {
        for (layers, anchored, state, ready) in cases {
            let rules = rules(layers.len(), guest_pulls);
            let status = ChainStatus {
                layers,
                anchored,
                is_lost: false,
            };
            assert_eq!(status.state(&rules), state, "{status:?}");
            assert_eq!(status.ready_layers(&rules), ready, "{status:?}");
        }
    }

    pub(crate) fn bare() -> Option<Labels> {
        Some(Labels::new())
    }

    #[test]
    fn each_status_has_its_state() {
        let incomplete = || Some(Labels::from([("a".to_owned(), "other".to_owned())]));
        assert_states(
            false,
            vec![
                (vec![], false, State::Ready, 0),
                (vec![None, None], false, State::Missing, 0),
                (vec![None, None], true, State::Missing, 0),
                (vec![labelled(), None], true, State::Partial, 1),
                (vec![bare(), None], true, State::Partial, 0),
                (vec![labelled(), bare()], true, State::Unlabelled, 1),
                (vec![incomplete(), labelled()], false, State::Unlabelled, 1),
                (vec![labelled(), of_lower_layer()], true, State::Foreign, 2),
                (vec![of_lower_layer(), labelled()], true, State::Ready, 2),
                (vec![labelled(), labelled()], false, State::Unanchored, 2),
                (vec![labelled(), labelled()], true, State::Ready, 2),
            ],
        );
    }

    #[test]
    fn with_guest_pull_the_top_layer_decides() {
        assert_states(
            true,
            vec![
                (vec![None, None], false, State::Missing, 0),
                (vec![bare(), None], false, State::Partial, 0),
                (vec![proxied(), None], false, State::Partial, 1),
                (vec![bare(), bare()], true, State::Unlabelled, 0),
                // Labels that are put on a host-unpacked layer do not help.
                (vec![labelled(), labelled()], true, State::Unlabelled, 0),
                (vec![proxied(), bare()], true, State::Mixed, 1),
                (vec![proxied(), labelled()], true, State::Mixed, 1),
                (vec![bare(), proxied()], true, State::Ready, 2),
                (vec![proxied(), proxied()], false, State::Unanchored, 2),
                (vec![proxied(), proxied()], true, State::Ready, 2),
            ],
        );
    }

    /// The snapshotter's own labels decide, not the labels that the configuration requires.
    #[test]
    fn a_host_layer_over_guest_pulled_layers_is_mixed_under_every_policy() {
        let rules = Rules {
            required: LayerLabels::none(2),
            origin: None,
            repair: Repair::Relabel,
            guest_pulls: false,
            supports_guest_pull: true,
        };
        for (layers, state) in [
            (vec![proxied(), bare()], State::Mixed),
            (vec![proxied(), labelled()], State::Mixed),
            (vec![bare(), proxied()], State::Ready),
            (vec![bare(), bare()], State::Ready),
        ] {
            let status = ChainStatus {
                layers,
                anchored: true,
                is_lost: false,
            };
            assert_eq!(status.state(&rules), state, "{status:?}");
        }
    }

    /// The snapshotter was restarted and does not leave images to a guest any more.
    #[test]
    fn guest_pulled_layers_are_mixed_where_no_guest_pulls() {
        assert_states(
            false,
            vec![
                (vec![proxied(), proxied()], true, State::Mixed, 2),
                (vec![labelled(), proxied()], true, State::Mixed, 2),
                (vec![proxied(), labelled()], true, State::Mixed, 2),
                (vec![proxied(), None], true, State::Mixed, 1),
            ],
        );
    }

    #[test]
    fn labels_that_name_another_repository_are_foreign() {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let naming = |manifest: &str, image: &str| {
            let mut labels = labelled().unwrap();
            labels.extend([label(MANIFEST_DIGEST, manifest), label(IMAGE_REF, image)]);
            Some(labels)
        };
        let mut rules = rules(2, false);
        rules.origin = Some(Origin {
            manifest: "sha256:m".to_owned(),
            repositories: vec![
                "r.example:5000/app".to_owned(),
                "other.example/app".to_owned(),
            ],
        });
        let correct = || naming("sha256:m", "r.example:5000/app:1");
        for (layers, foreign) in [
            (vec![correct(), correct()], vec![]),
            (
                vec![correct(), naming("sha256:m", "other.example/app:old")],
                vec![],
            ),
            (
                vec![correct(), naming("sha256:m", "r.example/app:1")],
                vec![1],
            ),
            (
                vec![naming("sha256:m", "r.example:80/app:1"), correct()],
                vec![0],
            ),
            // A name that cannot be pulled.
            (vec![naming("sha256:m", "sha256:0"), correct()], vec![0]),
            // Labels of another image that shares the layer.
            (
                vec![naming("sha256:n", "r.example/app:1"), correct()],
                vec![],
            ),
            (
                vec![correct(), naming("sha256:n", "r.example/twin:1")],
                vec![],
            ),
        ] {
            let status = ChainStatus {
                layers,
                anchored: true,
                is_lost: false,
            };
            let found: Vec<_> = status.foreign(&rules).collect();
            assert_eq!(found, foreign, "{status:?}");
            let state = match foreign.is_empty() {
                true => State::Ready,
                false => State::Foreign,
            };
            assert_eq!(status.state(&rules), state, "{status:?}");
        }
    }

    #[test]
    fn without_required_labels_a_chain_is_ready() {
        let rules = Rules {
            required: LayerLabels::none(1),
            origin: None,
            repair: Repair::Relabel,
            guest_pulls: false,
            supports_guest_pull: false,
        };
        for layers in [vec![bare()], vec![of_lower_layer()]] {
            let status = ChainStatus {
                layers,
                anchored: true,
                is_lost: false,
            };
            assert_eq!(status.state(&rules), State::Ready);
        }
    }
}
