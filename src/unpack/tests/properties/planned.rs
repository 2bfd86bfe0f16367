//! Property tests of the plan, with a model of containerd: a chain in any state becomes `ready`.

use proptest::collection::vec;
use proptest::prelude::*;

use crate::containerd::Labels;

use super::super::super::chain::plan::{Step, plan};
use super::super::super::chain::state::{Rules, tests as statuses};
use super::super::super::{ChainStatus, Repair, State};

/// A removal of records, a replacement, the unpack of the removed layers, and a last check.
const ROUNDS: usize = 4;

/// Returns chains, their rules, and the number of layers that a replacement cannot remove.
fn chains() -> impl Strategy<Value = (ChainStatus, Rules, usize)> {
    let layer = |i| match i {
        0 => statuses::bare(),
        1 => statuses::labelled(),
        2 => statuses::of_lower_layer(),
        3 => statuses::proxied(),
        _ => Some(Labels::from([("a".to_owned(), "other".to_owned())])),
    };
    let layers = prop_oneof![
        vec(0..5, 0..9_usize).prop_map(move |all| all.into_iter().map(layer).collect::<Vec<_>>()),
        (0..5, 0..9_usize).prop_map(move |(i, count)| vec![layer(i); count]),
    ];
    let missing = prop_oneof![Just(0), 0..9_usize];
    // With guest pull, a chain can only be replaced.
    let repair = prop_oneof![
        Just((true, Repair::Replace)),
        Just((false, Repair::Replace)),
        Just((false, Repair::Relabel)),
    ];
    let rules = (repair, any::<bool>());
    (layers, missing, any::<(bool, bool)>(), rules, 0..9_usize).prop_map(
        |(mut layers, missing, (anchored, lost), ((guest_pulls, repair), supports), mut kept)| {
            layers.extend(vec![None; missing]);
            let mut rules = statuses::rules(layers.len(), guest_pulls);
            rules.repair = repair;
            rules.supports_guest_pull |= supports;
            let is_guest_pulled = |layer: &Option<Labels>| *layer == statuses::proxied();
            let first = layers.iter().position(is_guest_pulled);
            // Where no guest pulls, a chain with a guest-pulled layer that is held cannot become ready.
            if let Some(first) = first.filter(|_| !rules.supports_guest_pull) {
                kept = kept.min(first);
            }
            let is_lost = lost && missing > 0;
            (
                ChainStatus {
                    layers,
                    anchored,
                    is_lost,
                },
                rules,
                kept,
            )
        },
    )
}

/// Changes the status as containerd would after these steps.
fn execute(status: &mut ChainStatus, rules: &Rules, steps: &[Step], kept: usize) {
    // A snapshotter that has guest-pulled layers commits labelled layers without content.
    let unpacked = if rules.guest_pulls || status.has_guest_layers() {
        statuses::proxied()
    } else {
        statuses::labelled()
    };
    for step in steps {
        match *step {
            Step::Relabel(i) => {
                let layer = status.layers[i].as_mut().expect("committed");
                layer.extend(rules.required[i].clone());
            }
            Step::Unpack(i) => {
                let below = i.checked_sub(1).map(|below| &status.layers[below]);
                assert!(
                    below.is_none_or(Option::is_some),
                    "layer {i} without a parent"
                );
                status.layers[i..].fill(unpacked.clone());
            }
            Step::Replace => {
                // The top layer is removed, or the step fails. Lower layers may be held.
                let kept = kept.min(status.layers.len() - 1);
                status.layers[kept..].fill(None);
            }
            Step::RemoveRecords => status.is_lost = false,
            Step::Anchor => {
                assert_eq!(status.committed(), status.layers.len());
                status.anchored = true;
            }
        }
    }
}

proptest! {
    #[test]
    fn every_planned_step_is_needed((status, rules, _) in chains()) {
        let (state, steps) = (status.state(&rules), plan(&status, &rules));
        prop_assert_eq!(steps.is_empty(), state == State::Ready, "{:?}", steps);
        prop_assert_eq!(state == State::Lost, steps == [Step::RemoveRecords]);
        if state == State::Lost {
            return Ok(());
        }
        if steps.contains(&Step::Replace) {
            prop_assert_eq!(&steps, &[Step::Replace]);
            prop_assert!(matches!(state, State::Unlabelled | State::Mixed), "{}", state);
            prop_assert!(state == State::Mixed || rules.repair == Repair::Replace);
            return Ok(());
        }
        let unpacked = steps.iter().filter_map(|step| match step {
            Step::Unpack(i) => Some(*i),
            _ => None,
        });
        let missing = status.committed();
        let missing = Some(missing).filter(|from| *from < status.layers.len());
        prop_assert_eq!(unpacked.collect::<Vec<_>>(), Vec::from_iter(missing));
        for step in &steps {
            if let Step::Relabel(i) = step {
                let lacking = status.unlabelled(&rules).any(|lacking| lacking == *i);
                let foreign = state == State::Foreign && i + 1 == status.layers.len();
                prop_assert!(lacking || foreign, "{}", i);
            }
        }
        let anchors = steps.iter().filter(|step| **step == Step::Anchor).count();
        let anchor = !status.anchored && !status.layers.is_empty();
        prop_assert_eq!(anchors, usize::from(anchor));
        prop_assert!(!anchor || steps.last() == Some(&Step::Anchor));
    }

    #[test]
    fn every_chain_becomes_ready((mut status, rules, kept) in chains()) {
        for _ in 0..ROUNDS {
            let steps = plan(&status, &rules);
            execute(&mut status, &rules, &steps, kept);
        }
        prop_assert_eq!(status.state(&rules), State::Ready, "{:?}", status);
        prop_assert_eq!(plan(&status, &rules), vec![]);
        prop_assert_eq!(status.ready_layers(&rules), status.layers.len());
    }
}
