//! From what a chain looks like to the steps that make it ready. Pure.

use crate::image::Layer;

use super::profile::Repair;
use super::state::{ChainStatus, Rules, State};

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Put the labels on a committed layer.
    Relabel(usize),
    /// Take the chain away from the top down, as far as nothing else holds it.
    Replace,
    /// Prepare, apply, verify and commit this layer and all above it.
    Unpack(usize),
    /// Let the config blob keep the chain.
    Anchor,
}

/// The least that makes the chain ready, in the order in which it has to happen: the chain is
/// anchored when it is complete. What has to be done after a
/// [`Step::Replace`] depends on how far that got. Empty for a ready chain.
pub(crate) fn plan(status: &ChainStatus, rules: &Rules) -> Vec<Step> {
    let state = status.state(rules);
    let is_replaced = match state {
        State::Mixed => true,
        State::Unlabelled => rules.repair == Repair::Replace,
        _ => false,
    };
    if is_replaced {
        return vec![Step::Replace];
    }
    let mut steps = Vec::new();
    if !rules.guest_pulls {
        steps.extend(status.unlabelled(rules).map(Step::Relabel));
    }
    if state == State::Foreign {
        steps.extend(status.foreign(rules).map(Step::Relabel));
    }
    if status.committed() < status.layers.len() {
        steps.push(Step::Unpack(status.committed()));
    }
    if !status.anchored && !status.layers.is_empty() {
        steps.push(Step::Anchor);
    }
    steps
}

/// One thing that an `ensure` would do, for people to read before it does.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Planned {
    /// What.
    pub step: StepKind,
    /// The layer's position, from 1 at the bottom; `None` where it is about the whole chain.
    pub layer: Option<usize>,
    /// The digest of the layer's blob.
    pub digest: Option<String>,
    /// Of that blob, in bytes.
    pub size: Option<u64>,
}

/// The kinds of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// Put the labels on a committed layer.
    Relabel,
    /// Take the chain away as far as nothing else holds it; then everything is looked at anew.
    Replace,
    /// Make the layer, with its labels.
    Unpack,
    /// Let the config blob keep the chain.
    Anchor,
}

/// The same plan, with each layer for itself.
pub(crate) fn spelled_out(steps: &[Step], layers: &[Layer]) -> Vec<Planned> {
    let whole = |step| Planned {
        step,
        layer: None,
        digest: None,
        size: None,
    };
    let one = |step, i: usize| Planned {
        layer: Some(i + 1),
        digest: Some(layers[i].blob.digest.clone()),
        size: layers[i].blob.size.try_into().ok(),
        ..whole(step)
    };
    let spell = |step: &Step| match *step {
        Step::Relabel(i) => vec![one(StepKind::Relabel, i)],
        Step::Replace => vec![whole(StepKind::Replace)],
        Step::Unpack(from) => (from..layers.len())
            .map(|i| one(StepKind::Unpack, i))
            .collect(),
        Step::Anchor => vec![whole(StepKind::Anchor)],
    };
    steps.iter().flat_map(spell).collect()
}

#[cfg(test)]
mod tests {
    use super::Step::{Anchor, Relabel, Replace, Unpack};
    use super::*;
    use crate::containerd::Labels;
    use crate::unpack::chain::state::tests::{bare, goes_on, labelled, proxied, rules};

    fn assert_plans(guest_pulls: bool, cases: Vec<(Vec<Option<Labels>>, bool, Vec<Step>)>) {
        for (layers, anchored, steps) in cases {
            let rules = rules(layers.len(), guest_pulls);
            let status = ChainStatus { layers, anchored };
            assert_eq!(plan(&status, &rules), steps, "{status:?}");
        }
    }

    #[test]
    fn the_least_that_is_lacking() {
        assert_plans(
            false,
            vec![
                (vec![], false, vec![]),
                (vec![labelled(), labelled()], true, vec![]),
                (vec![labelled(), labelled()], false, vec![Anchor]),
                (vec![None, None], false, vec![Unpack(0), Anchor]),
                (vec![labelled(), None], false, vec![Unpack(1), Anchor]),
                (vec![bare(), labelled()], true, vec![Relabel(0)]),
                (vec![labelled(), goes_on()], true, vec![Relabel(1)]),
                (vec![bare(), goes_on()], true, vec![Relabel(0)]),
                (
                    vec![bare(), None],
                    false,
                    vec![Relabel(0), Unpack(1), Anchor],
                ),
            ],
        );
    }

    #[test]
    fn where_the_guest_pulls_a_host_unpack_is_replaced() {
        assert_plans(
            true,
            vec![
                (vec![proxied(), proxied()], true, vec![]),
                (vec![bare(), bare()], true, vec![Replace]),
                (vec![proxied(), bare()], false, vec![Replace]),
                (vec![bare(), None], false, vec![Unpack(1), Anchor]),
                (vec![bare(), proxied()], false, vec![Anchor]),
            ],
        );
    }
}
