//! Checks that containerd's CRI has started. Without it no pod starts, NRI does not listen, and calls of CRI fail.
//! Then only this cause is a finding, and not its consequences.

use crate::containerd::ListedPlugin;
use crate::handlers::{CRI, IMAGES, RUNTIME};

use super::finding::{Finding, Severity};
use super::inventory::Inventory;

/// The plugins that serve CRI, each before those that depend on it. [`CRI`] itself exists in all versions.
const PARTS: [&str; 3] = [IMAGES, RUNTIME, CRI];

/// The transfer service. CRI pulls by it from containerd 2.1 on.
pub(super) const TRANSFER: &str = "io.containerd.transfer.v1.local";

/// Other plugins that CRI depends on. If CRI fails and one of these failed, that is the cause. Without a failure of
/// CRI, the error of a differ or a snapshotter only means that it does not work on this node.
const NEEDED: [&str; 4] = [
    "io.containerd.differ.v1.erofs",
    "io.containerd.service.v1.diff-service",
    TRANSFER,
    "io.containerd.metadata.v1.bolt",
];

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let file: &std::path::Path = inventory.config().containerd.config.as_ref();
    let finding = match problem(&seen.plugins) {
        None => return vec![],
        Some(Problem::Absent) => Finding::new(
            "cri-off",
            Severity::Error,
            "CRI is not among the plugins that containerd has loaded",
            "the kubelet cannot use this containerd, and NRI does not listen",
        )
        .advise(format!(
            "remove {CRI} (or cri) from disabled_plugins in {} or a file that it imports, and \
             restart containerd",
            file.display()
        )),
        Some(Problem::Failed(why)) => Finding::new(
            "cri-failed",
            Severity::Error,
            format!("containerd's CRI did not start: {why}"),
            "no pod starts on this node, and NRI does not listen",
        )
        .advise(
            "correct what the error names in containerd's configuration, and restart containerd",
        ),
    };
    vec![finding.run("systemctl restart containerd")]
}

/// Whether CRI is down. If containerd lists no plugins, this is unknown and the answer is no.
pub(super) fn is_down(plugins: &[ListedPlugin]) -> bool {
    problem(plugins).is_some()
}

#[derive(Debug, PartialEq)]
enum Problem {
    Absent,
    Failed(String),
}

fn problem(plugins: &[ListedPlugin]) -> Option<Problem> {
    let named = |uri: &&str| plugins.iter().find(|plugin| plugin.uri == **uri);
    let failed = |uri: &&str| {
        let why = named(uri)?.init_error.as_ref()?;
        Some(format!("{why} ({uri})"))
    };
    if plugins.is_empty() {
        return None;
    }
    if named(&CRI).is_none() {
        return Some(Problem::Absent);
    }
    let own = PARTS.iter().find_map(failed)?;
    let causes = NEEDED.iter().filter_map(failed);
    let all: Vec<_> = causes.chain([own]).collect();
    Some(Problem::Failed(all.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cause_is_named_first() {
        let plugin = |uri: &str, why: Option<&str>| ListedPlugin {
            uri: uri.to_owned(),
            init_error: why.map(str::to_owned),
        };
        let failed = |why: &str| Some(Problem::Failed(why.to_owned()));
        let images = "io.containerd.cri.v1.images";
        let differ = "io.containerd.differ.v1.erofs";
        for (plugins, expected) in [
            (vec![], None),
            (
                vec![plugin(CRI, None), plugin(differ, Some("no mkfs"))],
                None,
            ),
            (
                vec![plugin("io.containerd.nri.v1.nri", None)],
                Some(Problem::Absent),
            ),
            (
                vec![plugin(CRI, Some("bad registry"))],
                failed("bad registry (io.containerd.grpc.v1.cri)"),
            ),
            (
                vec![
                    plugin(CRI, Some("no images")),
                    plugin(images, Some("no transfer")),
                    plugin(differ, Some("no mkfs.erofs")),
                ],
                failed(
                    "no mkfs.erofs (io.containerd.differ.v1.erofs); no transfer (io.containerd.cri.v1.images)",
                ),
            ),
        ] {
            assert_eq!(problem(&plugins), expected, "{plugins:?}");
        }
    }
}
