//! What a chain looks like in a snapshotter, and the one word for it. Pure.

use std::fmt;

use crate::containerd::Labels;
use crate::image::{self, IMAGE_LAYERS, IMAGE_REF, LayerLabels, MANIFEST_DIGEST};

use super::profile::{Repair, is_proxied};

/// The state of an image's chain in one snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Every layer committed, with its labels, and anchored.
    Ready,
    /// No layer committed.
    Missing,
    /// Only the lower layers committed.
    Partial,
    /// Committed, labels absent on at least one layer.
    Unlabelled,
    /// A layer that was unpacked on the host lies over layers that the snapshotter left to the
    /// guest, and so holds empty: a broken root file system.
    Mixed,
    /// The labels name another image than this one: the top layer's one whose chain does not end there, or
    /// any layer's this image in a registry that it is not from.
    Foreign,
    /// Complete, but nothing keeps it from garbage collection.
    Unanchored,
    /// The image, or a blob that has to be applied, cannot be read.
    Unavailable,
}

impl State {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Missing,
        Self::Partial,
        Self::Unlabelled,
        Self::Mixed,
        Self::Foreign,
        Self::Unanchored,
        Self::Unavailable,
    ];

    /// As JSON and metrics have it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Missing => "missing",
            Self::Partial => "partial",
            Self::Unlabelled => "unlabelled",
            Self::Mixed => "mixed",
            Self::Foreign => "foreign",
            Self::Unanchored => "unanchored",
            Self::Unavailable => "unavailable",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// What a chain has to look like to be ready.
#[derive(Clone, Debug)]
pub struct Rules {
    /// The label keys that each layer has to have, bottom first. Values are not compared: a layer
    /// that two images share has one chain id and carries the labels of whichever came first.
    pub required: LayerLabels,
    /// From where the image may be said to come; `None` where its labels need not say it.
    pub origin: Option<Origin>,
    /// How absent labels are repaired.
    pub repair: Repair,
    /// The snapshotter leaves images to the guest: a chain is labelled when it did so with the top
    /// layer, and what the layers below are does not matter.
    pub guest_pulls: bool,
}

/// From where an image comes, as all of its names say.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The digest of its manifest: labels with another one are those of an image that shares the layer.
    pub manifest: String,
    /// Registry and repository of each name.
    pub repositories: Vec<String>,
}

impl Origin {
    /// Whether these labels are this image's, and name a repository that it is not from: while an image is
    /// pulled, its registry's port is not known.
    fn is_misnamed(&self, labels: &Labels) -> bool {
        let is_ours = labels.get(MANIFEST_DIGEST) == Some(&self.manifest);
        let named = labels.get(IMAGE_REF);
        let from = named.map(|name| image::repository(name));
        is_ours && from.is_some_and(|from| !from.is_some_and(|f| self.repositories.contains(&f)))
    }
}

/// A chain as containerd shows it.
///
/// Invariant: a committed layer's parents are committed, so `layers` is a run of `Some`, then `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ChainStatus {
    /// The labels of each committed layer, bottom first; `None` where there is no such snapshot.
    pub layers: Vec<Option<Labels>>,
    /// Whether the image's config blob keeps the chain from garbage collection.
    pub anchored: bool,
}

impl ChainStatus {
    /// How many layers are committed, from the bottom.
    pub fn committed(&self) -> usize {
        let layers = self.layers.iter();
        layers.take_while(|layer| layer.is_some()).count()
    }

    /// How many layers need nothing more.
    pub fn ready_layers(&self, rules: &Rules) -> usize {
        if !rules.guest_pulls {
            self.committed() - self.unlabelled(rules).count()
        } else if self.top().is_some_and(is_proxied) {
            // What the top layer is, all are to whoever mounts it.
            self.layers.len()
        } else {
            self.layers
                .iter()
                .flatten()
                .filter(|l| is_proxied(l))
                .count()
        }
    }

    /// How many layers of a chain that the guest pulls stayed below it as the host has unpacked them,
    /// since something else uses them.
    pub(crate) fn kept_layers(&self, rules: &Rules) -> usize {
        if rules.guest_pulls && self.top().is_some_and(is_proxied) {
            let layers = self.layers.iter().flatten();
            layers.filter(|labels| !is_proxied(labels)).count()
        } else {
            0
        }
    }

    /// The committed layers that lack labels, bottom first.
    pub(crate) fn unlabelled<'a>(&'a self, rules: &'a Rules) -> impl Iterator<Item = usize> + 'a {
        let pairs = self.layers.iter().zip(&rules.required).enumerate();
        pairs.filter_map(|(i, (layer, required))| {
            let labels = layer.as_ref()?;
            let has_all = required.keys().all(|key| labels.contains_key(key));
            (!has_all).then_some(i)
        })
    }

    /// Whether the snapshotter left a layer to the guest, and so holds it empty.
    pub(crate) fn has_guest_layers(&self) -> bool {
        self.layers.iter().flatten().any(is_proxied)
    }

    /// The labels of the top layer, where that is committed.
    fn top(&self) -> Option<&Labels> {
        self.layers.last()?.as_ref()
    }

    /// The committed layers whose labels name another image, bottom first.
    pub(crate) fn foreign<'a>(&'a self, rules: &'a Rules) -> impl Iterator<Item = usize> + 'a {
        let top = self.layers.len().checked_sub(1);
        let goes_on = top.filter(|_| self.goes_on(rules));
        let layers = self.layers.iter().enumerate();
        layers.filter_map(move |(i, layer)| {
            let labels = layer.as_ref()?;
            let origin = rules.origin.as_ref();
            let is_misnamed = origin.is_some_and(|origin| origin.is_misnamed(labels));
            (is_misnamed || goes_on == Some(i)).then_some(i)
        })
    }

    /// The top layer of a chain that ends there lists no layer but itself.
    fn goes_on(&self, rules: &Rules) -> bool {
        let required = rules.required.last();
        let listed = self.top().and_then(|labels| labels.get(IMAGE_LAYERS));
        required.is_some_and(|required| required.contains_key(IMAGE_LAYERS))
            && listed.is_some_and(|layers| layers.contains(','))
    }

    /// The word for it.
    pub fn state(&self, rules: &Rules) -> State {
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
            // Under every policy: the snapshotter mounts it as what the host unpacked.
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
        Some(rules(1, false).required.remove(0))
    }

    pub(crate) fn proxied() -> Option<Labels> {
        labelled().map(profile::tests::proxied)
    }

    /// The labels of a layer over which the image goes on.
    pub(crate) fn goes_on() -> Option<Labels> {
        let mut labels = labelled()?;
        labels.insert(IMAGE_LAYERS.to_owned(), "sha256:a,sha256:b".to_owned());
        Some(labels)
    }

    pub(crate) fn rules(layers: usize, guest_pulls: bool) -> Rules {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let labels = Labels::from([label("a", "x"), label(IMAGE_LAYERS, "sha256:a")]);
        Rules {
            required: vec![labels; layers],
            origin: None,
            repair: if guest_pulls {
                Repair::Replace
            } else {
                Repair::Relabel
            },
            guest_pulls,
        }
    }

    #[test]
    fn what_stayed_below_is_counted() {
        for (layers, kept) in [
            (vec![bare(), proxied()], 1),
            (vec![proxied(), proxied()], 0),
            (vec![bare(), bare()], 0),
        ] {
            let rules = rules(layers.len(), true);
            let status = ChainStatus {
                layers,
                anchored: true,
            };
            assert_eq!(status.kept_layers(&rules), kept, "{status:?}");
        }
    }

    fn assert_states(guest_pulls: bool, cases: Vec<(Vec<Option<Labels>>, bool, State, usize)>) {
        for (layers, anchored, state, ready) in cases {
            let rules = rules(layers.len(), guest_pulls);
            let status = ChainStatus { layers, anchored };
            assert_eq!(status.state(&rules), state, "{status:?}");
            assert_eq!(status.ready_layers(&rules), ready, "{status:?}");
        }
    }

    pub(crate) fn bare() -> Option<Labels> {
        Some(Labels::new())
    }

    #[test]
    fn every_sight_has_its_word() {
        let half = || Some(Labels::from([("a".to_owned(), "other".to_owned())]));
        assert_states(
            false,
            vec![
                (vec![], false, State::Ready, 0),
                (vec![None, None], false, State::Missing, 0),
                (vec![None, None], true, State::Missing, 0),
                (vec![labelled(), None], true, State::Partial, 1),
                (vec![bare(), None], true, State::Partial, 0),
                (vec![labelled(), bare()], true, State::Unlabelled, 1),
                (vec![half(), labelled()], false, State::Unlabelled, 1),
                (vec![labelled(), goes_on()], true, State::Foreign, 2),
                (vec![goes_on(), labelled()], true, State::Ready, 2),
                (vec![labelled(), labelled()], false, State::Unanchored, 2),
                (vec![labelled(), labelled()], true, State::Ready, 2),
            ],
        );
    }

    #[test]
    fn where_the_guest_pulls_the_top_layer_decides() {
        assert_states(
            true,
            vec![
                (vec![None, None], false, State::Missing, 0),
                (vec![bare(), None], false, State::Partial, 0),
                (vec![proxied(), None], false, State::Partial, 1),
                (vec![bare(), bare()], true, State::Unlabelled, 0),
                // Labels that came later do not help.
                (vec![labelled(), labelled()], true, State::Unlabelled, 0),
                (vec![proxied(), bare()], true, State::Mixed, 1),
                (vec![proxied(), labelled()], true, State::Mixed, 1),
                (vec![bare(), proxied()], true, State::Ready, 2),
                (vec![proxied(), proxied()], false, State::Unanchored, 2),
                (vec![proxied(), proxied()], true, State::Ready, 2),
            ],
        );
    }

    /// By the labels that the snapshotter itself gives: what is wanted of an image does not matter.
    #[test]
    fn a_hosts_layer_over_guest_layers_is_mixed_under_every_policy() {
        let rules = Rules {
            required: vec![Labels::new(); 2],
            origin: None,
            repair: Repair::Relabel,
            guest_pulls: false,
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
            };
            assert_eq!(status.state(&rules), state, "{status:?}");
        }
    }

    #[test]
    fn labels_name_this_image_where_it_comes_from() {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        let named = |manifest: &str, image: &str| {
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
        let right = || named("sha256:m", "r.example:5000/app:1");
        for (layers, foreign) in [
            (vec![right(), right()], vec![]),
            (
                vec![right(), named("sha256:m", "other.example/app:old")],
                vec![],
            ),
            (vec![right(), named("sha256:m", "r.example/app:1")], vec![1]),
            (
                vec![named("sha256:m", "r.example:80/app:1"), right()],
                vec![0],
            ),
            // Not one that can be pulled.
            (vec![named("sha256:m", "sha256:0"), right()], vec![0]),
            // Another image that has the layer.
            (vec![named("sha256:n", "r.example/app:1"), right()], vec![]),
            (vec![right(), named("sha256:n", "r.example/twin:1")], vec![]),
        ] {
            let status = ChainStatus {
                layers,
                anchored: true,
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
    fn nothing_is_lacking_where_nothing_is_required() {
        let rules = Rules {
            required: vec![Labels::new()],
            origin: None,
            repair: Repair::Relabel,
            guest_pulls: false,
        };
        for layers in [vec![bare()], vec![goes_on()]] {
            let status = ChainStatus {
                layers,
                anchored: true,
            };
            assert_eq!(status.state(&rules), State::Ready);
        }
    }
}
