//! Checks that the pods of this node can be watched at the API server, and that its startup taint can be removed, if
//! that is configured.

use crate::kubernetes;
#[cfg(feature = "kubernetes")]
use crate::kubernetes::Trial;

use super::finding::{Finding, Severity};
use super::inventory::Inventory;

/// What pods miss without the watch.
const UNWATCHED: &str = "the images of pods that are bound to this node are made ready when their sandbox starts, not before; all else works as without the watch";

/// What a startup taint means.
const TAINTED: &str =
    "a new node keeps its startup taint, and no pod that does not tolerate it is bound to the node";

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    if let Some(why) = kubernetes::not_built(inventory.config()) {
        let means = match inventory.config().kubernetes.startup_taint() {
            Some(_) => TAINTED,
            None => UNWATCHED,
        };
        return vec![finding("kubernetes-not-built", why, means).advise(kubernetes::BUILD)];
    }
    tried(inventory).await
}

fn finding(id: &'static str, found: impl Into<String>, means: &'static str) -> Finding {
    Finding::new(id, Severity::Warning, found, means)
}

#[cfg(not(feature = "kubernetes"))]
async fn tried(_: &Inventory) -> Vec<Finding> {
    Vec::new()
}

#[cfg(feature = "kubernetes")]
async fn tried(inventory: &Inventory) -> Vec<Finding> {
    let config = &inventory.config().kubernetes;
    let (watch, taint) = tokio::join!(
        kubernetes::try_access(config),
        kubernetes::try_taint(config)
    );
    let runs_pods = async || {
        let pods = inventory.node.containerd.cri_pods().await;
        pods.is_ok_and(|pods| !pods.is_empty())
    };
    let is_empty = matches!(
        watch,
        Trial::Works {
            has_pods: false,
            ..
        }
    );
    let watch = of_watch(watch, is_empty && runs_pods().await);
    let mut taint = of_taint(taint);
    // The API server cannot be used for either.
    if watch.as_ref().map(|of| &of.found) == taint.as_ref().map(|of| &of.found) {
        taint = None;
    }
    watch.into_iter().chain(taint).collect()
}

/// Returns the finding of a try to watch pods. `runs_pods`: the runtime has pods.
#[cfg(feature = "kubernetes")]
fn of_watch(trial: Trial, runs_pods: bool) -> Option<Finding> {
    const OFF: &str = "or set kubernetes.watch to \"off\"";
    match trial {
        Trial::Works {
            node,
            has_pods: false,
        } if runs_pods => Some(
            finding(
                "kubernetes-node-unknown",
                format!(
                    "the API server has no pods on a node named {node}, but this node runs some"
                ),
                UNWATCHED,
            )
            .advise(NAME)
            .run("kubectl get nodes"),
        ),
        trial => of_failure(
            trial,
            UNWATCHED,
            &format!(
                "bind a ClusterRole with `list` and `watch` of pods and of runtimeclasses to it \
                 (examples/kubernetes/watch has one), {OFF}"
            ),
            OFF,
        ),
    }
}

/// Returns the finding of a try to remove the startup taint.
#[cfg(feature = "kubernetes")]
fn of_taint(trial: Trial) -> Option<Finding> {
    const OFF: &str = "or remove kubernetes.startup_taint and the taint";
    match trial {
        Trial::NoNode { node } => Some(
            finding(
                "kubernetes-node-unknown",
                format!("the API server has no node named {node}"),
                TAINTED,
            )
            .advise(NAME)
            .run("kubectl get nodes"),
        ),
        Trial::Tainted { node, key } => Some(
            finding(
                "kubernetes-startup-taint",
                format!("node {node} has the startup taint {key}"),
                "no pod that does not tolerate it is bound to this node",
            )
            .advise(
                "the running plugin removes it when it is registered, each managed snapshotter answers, and the pinned \
                 images are ready; its log and the other findings say what is missing; the command removes the taint \
                 without that",
            )
            .run(format!("kubectl taint nodes {node} {key}-")),
        ),
        trial => of_failure(
            trial,
            TAINTED,
            &format!(
                "bind a ClusterRole with `get` and `patch` of nodes to it (examples/kubernetes/taint has one), {OFF}"
            ),
            OFF,
        ),
    }
}

/// The remedy for a wrong name of this node.
#[cfg(feature = "kubernetes")]
const NAME: &str =
    "set kubernetes.node, or the variable NODE_NAME of the plugin's pod, to this node's name";

/// Returns the finding of a try that failed; with its meaning, the remedy for a refusal, and the way to do without.
#[cfg(feature = "kubernetes")]
fn of_failure(trial: Trial, means: &'static str, role: &str, off: &str) -> Option<Finding> {
    let finding = |id, found: String| finding(id, found, means);
    Some(match trial {
        Trial::Off | Trial::Works { .. } | Trial::NoNode { .. } | Trial::Tainted { .. } => {
            return None;
        }
        Trial::Unusable(why) => {
            finding("kubernetes-credentials", why).advise(format!("correct it, {off}"))
        }
        Trial::Refused {
            origin,
            error,
            is_unknown: true,
            ..
        } => finding(
            "kubernetes-credentials",
            format!("the API server does not accept the credentials of {origin}: {error}"),
        )
        .advise(format!("renew them, {off}")),
        Trial::Refused {
            origin,
            resource,
            error,
            ..
        } => finding(
            "kubernetes-forbidden",
            format!("{origin} has too few permissions for {resource}: {error}"),
        )
        .advise(role),
        Trial::Failed { origin, error } => finding(
            "kubernetes-unreachable",
            format!("the API server that {origin} names cannot be used: {error}"),
        )
        .advise(format!(
            "check its address, and for a systemd unit `IPAddressAllow=` in a drop-in, {off}"
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
            let finding = of_watch(trial, runs_pods);
            assert_eq!(finding.as_ref().map(|finding| finding.id), id);
            if let Some(finding) = finding {
                assert!(!finding.remedy.say.is_empty(), "{finding:?}");
            }
        }
    }
    #[test]
    fn each_try_with_the_taint_has_its_finding() {
        let (node, key) = ("n".to_owned(), "a/b".to_owned());
        let refused = Trial::Refused {
            origin: "/k".to_owned(),
            resource: "nodes",
            error: "no".to_owned(),
            is_unknown: false,
        };
        for (trial, id, words) in [
            (
                Trial::Unusable("x".to_owned()),
                "kubernetes-credentials",
                "kubernetes.startup_taint",
            ),
            (refused, "kubernetes-forbidden", "`patch` of nodes"),
            (
                Trial::NoNode { node: node.clone() },
                "kubernetes-node-unknown",
                "kubernetes.node",
            ),
            (
                Trial::Tainted { node, key },
                "kubernetes-startup-taint",
                "pinned images",
            ),
        ] {
            let finding = of_taint(trial).unwrap();
            assert_eq!(finding.id, id);
            assert!(finding.remedy.say.contains(words), "{finding:?}");
        }
        assert_eq!(of_taint(Trial::Off), None);
    }
}
