//! The plan: from the status of a chain to the steps that make it ready. No I/O.

use crate::image::Layer;

use super::profile::Repair;
use super::state::{ChainStatus, Rules, State};

/// One step of a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Step {
    /// Put the labels on a committed layer.
    Relabel(usize),
    /// Remove the layers of the chain from the top down, as far as nothing else uses them.
    Replace,
    /// Remove the records of the lost layers from containerd's metadata.
    RemoveRecords,
    /// Prepare, apply, verify and commit this layer and all layers above it.
    Unpack(usize),
    /// Set the anchor: the label on the image's config blob that keeps the chain from garbage collection.
    Anchor,
}

/// Returns the fewest steps that make the chain ready, in their order: the chain is anchored when it is complete.
/// A [`Step::Replace`] or [`Step::RemoveRecords`] is the only step of its plan, since the next steps depend on how many
/// layers it could remove. Empty for a ready chain.
pub(crate) fn plan(status: &ChainStatus, rules: &Rules) -> Vec<Step> {
    let state = status.state(rules);
    if state == State::Lost {
        return vec![Step::RemoveRecords];
    }
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

/// One step of a dry run, as printed by `ensure --dry-run`.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Planned {
    /// The kind of step.
    pub step: StepKind,
    /// The layer's position, from 1 at the bottom; `None` for a step on the whole chain.
    pub layer: Option<usize>,
    /// The digest of the layer's blob.
    pub digest: Option<String>,
    /// The size of that blob in bytes.
    pub size: Option<u64>,
}

/// The kinds of steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum StepKind {
    /// Put the labels on a committed layer.
    Relabel,
    /// Remove the chain as far as nothing else uses it, and plan again.
    Replace,
    /// Remove the records of layers that the snapshotter has lost, and plan again.
    Remove,
    /// Unpack the layer, with its labels.
    Unpack,
    /// Set the anchor.
    Anchor,
}

/// Returns the same plan with one entry per layer.
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
        Step::RemoveRecords => vec![whole(StepKind::Remove)],
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
    use crate::unpack::chain::state::tests::{bare, labelled, of_lower_layer, proxied, rules};

    fn assert_plans(guest_pulls: bool, cases: Vec<(Vec<Option<Labels>>, bool, Vec<Step>)>) {
        for (layers, anchored, steps) in cases {
            let rules = rules(layers.len(), guest_pulls);
            let status = ChainStatus {
                layers,
                anchored,
                is_lost: false,
            };
            assert_eq!(plan(&status, &rules), steps, "{status:?}");
        }
    }

    #[test]
    fn only_the_missing_parts_are_planned() {
        assert_plans(
            false,
            vec![
                (vec![], false, vec![]),
                (vec![labelled(), labelled()], true, vec![]),
                (vec![labelled(), labelled()], false, vec![Anchor]),
                (vec![None, None], false, vec![Unpack(0), Anchor]),
                (vec![labelled(), None], false, vec![Unpack(1), Anchor]),
                (vec![bare(), labelled()], true, vec![Relabel(0)]),
                (vec![labelled(), of_lower_layer()], true, vec![Relabel(1)]),
                (vec![bare(), of_lower_layer()], true, vec![Relabel(0)]),
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
