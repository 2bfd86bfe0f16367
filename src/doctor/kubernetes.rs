//! Checks that the pods of this node can be watched at the API server, if that is configured.

use crate::kubernetes;
#[cfg(feature = "kubernetes")]
use crate::kubernetes::Trial;

use super::finding::{Finding, Severity};
use super::inventory::Inventory;

/// What pods miss.
const MEANS: &str = "the images of pods that are bound to this node are made ready when their sandbox starts, not before; all else works as without the watch";

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    if let Some(why) = kubernetes::not_built(inventory.config()) {
        return vec![finding("kubernetes-not-built", why).advise(kubernetes::BUILD)];
    }
    tried(inventory).await.into_iter().collect()
}

fn finding(id: &'static str, found: impl Into<String>) -> Finding {
    Finding::new(id, Severity::Warning, found, MEANS)
}

#[cfg(not(feature = "kubernetes"))]
async fn tried(_: &Inventory) -> Option<Finding> {
    None
}

#[cfg(feature = "kubernetes")]
async fn tried(inventory: &Inventory) -> Option<Finding> {
    let trial = kubernetes::try_access(&inventory.config().kubernetes).await;
    let runs_pods = async || {
        let pods = inventory.node.containerd.cri_pods().await;
        pods.is_ok_and(|pods| !pods.is_empty())
    };
    let is_empty = matches!(
        trial,
        Trial::Works {
            has_pods: false,
            ..
        }
    );
    of(trial, is_empty && runs_pods().await)
}

/// Returns the finding of a try. `runs_pods`: the runtime has pods.
#[cfg(feature = "kubernetes")]
fn of(trial: Trial, runs_pods: bool) -> Option<Finding> {
    const OFF: &str = "or set kubernetes.watch to \"off\"";
    Some(match trial {
        Trial::Off => return None,
        Trial::Works { has_pods: true, .. } => return None,
        Trial::Works { .. } if !runs_pods => return None,
        Trial::Works { node, .. } => finding(
            "kubernetes-node-unknown",
            format!("the API server has no pods on a node named {node}, but this node runs some"),
        )
        .advise("set kubernetes.node, or the variable NODE_NAME of the plugin's pod, to this node's name")
        .run("kubectl get nodes"),
        Trial::Unusable(why) => finding("kubernetes-credentials", why)
            .advise(format!("correct it, {OFF}")),
        Trial::Refused {
            origin,
            error,
            is_unknown: true,
            ..
        } => finding(
            "kubernetes-credentials",
            format!("the API server does not accept the credentials of {origin}: {error}"),
        )
        .advise(format!("renew them, {OFF}")),
        Trial::Refused {
            origin,
            resource,
            error,
            ..
        } => finding(
            "kubernetes-forbidden",
            format!("{origin} must not list {resource}: {error}"),
        )
        .advise(format!(
            "bind a ClusterRole with `list` and `watch` of pods and of runtimeclasses to it \
             (examples/kubernetes/watch has one), {OFF}"
        )),
        Trial::Failed { origin, error } => finding(
            "kubernetes-unreachable",
            format!("the API server that {origin} names cannot be used: {error}"),
        )
        .advise(format!(
            "check its address, and for a systemd unit `IPAddressAllow=` in a drop-in, {OFF}"
        )),
    })
}

#[cfg(all(test, feature = "kubernetes"))]
mod tests {
    use super::*;

    #[test]
    fn each_trial_has_its_finding() {
        let works = |has_pods| Trial::Works {
            node: "n".to_owned(),
            has_pods,
        };
        let refused = |is_unknown| Trial::Refused {
            origin: "/k".to_owned(),
            resource: "pods",
            error: "no".to_owned(),
            is_unknown,
        };
        let failed = Trial::Failed {
            origin: "/k".to_owned(),
            error: "refused".to_owned(),
        };
        for (trial, runs_pods, id) in [
            (Trial::Off, true, None),
            (works(true), true, None),
            (works(false), false, None),
            (works(false), true, Some("kubernetes-node-unknown")),
            (
                Trial::Unusable("x".to_owned()),
                true,
                Some("kubernetes-credentials"),
            ),
            (refused(true), true, Some("kubernetes-credentials")),
            (refused(false), true, Some("kubernetes-forbidden")),
            (failed, true, Some("kubernetes-unreachable")),
        ] {
            let finding = of(trial, runs_pods);
            assert_eq!(finding.as_ref().map(|finding| finding.id), id);
            if let Some(finding) = finding {
                assert!(!finding.remedy.say.is_empty(), "{finding:?}");
            }
        }
    }
}
