//! What a chain looks like in a snapshotter, and the one word for it. Pure.

use std::fmt;

use crate::containerd::Labels;
use crate::image::LayerLabels;

/// The state of an image's chain in one snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
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
    /// Complete, but nothing keeps it from garbage collection.
    Unanchored,
    /// The image, or a blob that has to be applied, cannot be read.
    Unavailable,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Ready => "ready",
            Self::Missing => "missing",
            Self::Partial => "partial",
            Self::Unlabelled => "unlabelled",
            Self::Unanchored => "unanchored",
            Self::Unavailable => "unavailable",
        })
    }
}

/// A chain as containerd shows it.
///
/// Invariant: a committed layer's parents are committed, so `layers` is a run of `Some`, then `None`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Sight {
    /// The labels of each committed layer, bottom first; `None` where there is no such snapshot.
    pub layers: Vec<Option<Labels>>,
    /// Whether the image's config blob keeps the chain from garbage collection.
    pub anchored: bool,
}

impl Sight {
    /// How many layers are committed, from the bottom.
    pub fn committed(&self) -> usize {
        self.layers
            .iter()
            .take_while(|layer| layer.is_some())
            .count()
    }

    /// How many layers are committed and have every label that is required.
    pub fn ready_layers(&self, required: &LayerLabels) -> usize {
        let pairs = self.layers.iter().zip(required);
        pairs
            .filter(|(layer, required)| is_ready(layer.as_ref(), required))
            .count()
    }

    /// The committed layers that lack labels, bottom first.
    pub(super) fn unlabelled<'a>(
        &'a self,
        required: &'a LayerLabels,
    ) -> impl Iterator<Item = usize> + 'a {
        let pairs = self.layers.iter().zip(required).enumerate();
        pairs.filter_map(|(i, (layer, required))| {
            let layer = layer.as_ref()?;
            (!is_ready(Some(layer), required)).then_some(i)
        })
    }

    /// The word for it.
    pub fn state(&self, required: &LayerLabels) -> State {
        let committed = self.committed();
        if self.layers.is_empty() {
            // An image without layers has nothing to unpack, label or lose.
            State::Ready
        } else if committed == 0 {
            State::Missing
        } else if committed < self.layers.len() {
            State::Partial
        } else if self.unlabelled(required).next().is_some() {
            State::Unlabelled
        } else if !self.anchored {
            State::Unanchored
        } else {
            State::Ready
        }
    }
}

/// A layer has its labels when every required key is there. Values are not compared: a layer that two
/// images share has one chain id and carries the labels of whichever came first.
fn is_ready(layer: Option<&Labels>, required: &Labels) -> bool {
    layer.is_some_and(|labels| required.keys().all(|key| labels.contains_key(key)))
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub(crate) fn labelled() -> Option<Labels> {
        Some(required(1).remove(0))
    }

    pub(crate) fn required(layers: usize) -> LayerLabels {
        let key = |key: &str| (key.to_owned(), "x".to_owned());
        vec![Labels::from([key("a"), key("b")]); layers]
    }

    #[test]
    fn every_sight_has_its_word() {
        let bare = || Some(Labels::new());
        let half = || Some(Labels::from([("a".to_owned(), "other".to_owned())]));
        for (layers, anchored, state, ready) in [
            (vec![], false, State::Ready, 0),
            (vec![None, None], false, State::Missing, 0),
            (vec![None, None], true, State::Missing, 0),
            (vec![labelled(), None], true, State::Partial, 1),
            (vec![bare(), None], true, State::Partial, 0),
            (vec![labelled(), bare()], true, State::Unlabelled, 1),
            (vec![half(), labelled()], false, State::Unlabelled, 1),
            (vec![labelled(), labelled()], false, State::Unanchored, 2),
            (vec![labelled(), labelled()], true, State::Ready, 2),
        ] {
            let required = required(layers.len());
            let sight = Sight { layers, anchored };
            assert_eq!(sight.state(&required), state, "{sight:?}");
            assert_eq!(sight.ready_layers(&required), ready, "{sight:?}");
        }
    }

    #[test]
    fn nothing_is_lacking_where_nothing_is_wanted() {
        let sight = Sight {
            layers: vec![Some(Labels::new())],
            anchored: true,
        };
        assert_eq!(sight.state(&vec![Labels::new()]), State::Ready);
    }
}
