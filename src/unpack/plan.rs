//! From what a chain looks like to the steps that make it ready. Pure.

use std::fmt;

use crate::image::LayerLabels;

use super::Sight;

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Put the labels on a committed layer.
    Relabel(usize),
    /// Prepare, apply, verify and commit a layer.
    Unpack(usize),
    /// Let the config blob keep the chain.
    Anchor,
}

/// The least that makes the chain ready, in the order in which it has to happen: layers are
/// unpacked bottom up, and the chain is anchored when it is complete. Empty for a ready chain.
pub(super) fn plan(sight: &Sight, required: &LayerLabels) -> Vec<Step> {
    let mut steps: Vec<Step> = sight.unlabelled(required).map(Step::Relabel).collect();
    steps.extend((sight.committed()..sight.layers.len()).map(Step::Unpack));
    if !sight.anchored && !sight.layers.is_empty() {
        steps.push(Step::Anchor);
    }
    steps
}

/// What was done for a chain: of several things the one that says most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was ready.
    #[default]
    None,
    /// Kept from garbage collection.
    Anchored,
    /// Labels put on layers in place.
    Relabelled,
    /// Layers unpacked.
    Unpacked,
}

impl From<Step> for Action {
    fn from(step: Step) -> Self {
        match step {
            Step::Relabel(_) => Self::Relabelled,
            Step::Unpack(_) => Self::Unpacked,
            Step::Anchor => Self::Anchored,
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::None => "none",
            Self::Anchored => "anchored",
            Self::Relabelled => "relabelled",
            Self::Unpacked => "unpacked",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::state::tests::{labelled, required};
    use super::*;
    use crate::containerd::Labels;

    #[test]
    fn the_least_that_is_lacking() {
        use Step::{Anchor, Relabel, Unpack};
        let bare = || Some(Labels::new());
        for (layers, anchored, steps) in [
            (vec![], false, vec![]),
            (vec![labelled(), labelled()], true, vec![]),
            (vec![labelled(), labelled()], false, vec![Anchor]),
            (vec![None, None], false, vec![Unpack(0), Unpack(1), Anchor]),
            (vec![labelled(), None], false, vec![Unpack(1), Anchor]),
            (vec![bare(), labelled()], true, vec![Relabel(0)]),
            (
                vec![bare(), None],
                false,
                vec![Relabel(0), Unpack(1), Anchor],
            ),
        ] {
            let required = required(layers.len());
            let sight = Sight { layers, anchored };
            assert_eq!(plan(&sight, &required), steps, "{sight:?}");
        }
    }

    #[test]
    fn the_action_that_says_most_is_reported() {
        let steps = [Step::Relabel(0), Step::Unpack(1), Step::Anchor];
        let most = steps.into_iter().map(Action::from).max();
        assert_eq!(most, Some(Action::Unpacked));
    }
}
