//! Checks pulls that name a runtime handler, which containerd unpacks in the handler's snapshotter: whether they fail.

use super::finding::{Finding, Severity};
use super::inventory::{Inventory, PULL_HANDLER, Seen};
use super::pulls::{is_by_transfer, is_labelled_by_transfer, lines, switch, unpacks};

/// The containerd that pulls for a handler without being configured to.
const UNCONFIGURED: (u64, u64) = (1, 7);

/// The table of CRI's settings with the snapshotters of pulls for handlers, from containerd 2.0 on.
const PLATFORMS: [&str; 3] = [
    "plugins",
    "io.containerd.cri.v1.images",
    "runtime_platforms",
];

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let finding = inventory.seen().and_then(|seen| found(inventory, seen));
    finding.into_iter().collect()
}

fn found(inventory: &Inventory, seen: &Seen) -> Option<Finding> {
    let (key, reported) = ("disable_snapshot_annotations", "disableSnapshotAnnotations");
    let (disabled, path) = switch(inventory, seen, key, reported, true);
    if !disabled {
        return None;
    }
    let failing: Vec<_> = pulls(inventory, seen)
        .into_iter()
        .filter_map(|(handler, snapshotter)| Some((handler, why(inventory, seen, snapshotter)?)))
        .collect();
    let used: Vec<_> = failing
        .iter()
        .filter(|(handler, _)| seen.pulls_for.contains(*handler))
        .collect();
    let (severity, named) = match used.is_empty() {
        true => (Severity::Note, failing.iter().collect()),
        false => (Severity::Warning, used),
    };
    let (_, why) = named.first()?;
    let handlers: Vec<_> = named.iter().map(|(handler, _)| *handler).collect();
    let handlers = handlers.join(", ");
    let found = match severity {
        Severity::Note => format!("a pull that names the handler {handlers} fails"),
        _ => format!(
            "pods on this node have their images pulled for the handler {handlers}, which fails"
        ),
    };
    Some(
        Finding::new(
            "handler-pull-fails",
            severity,
            format!("{found}: {} (disable_snapshot_annotations)", why.reason()),
            format!("{}: a pod with the annotation {PULL_HANDLER} (from containerd 2.2.2 on, each pod of a kubelet with RuntimeClassInImageCriApi) does not start if its image has to be pulled; without that the image is pulled for the default snapshotter, and the plugin makes it ready", why.error()),
        )
        .advise("remove the annotation, or make containerd set the labels and restart it")
        .lines(&path, &lines(inventory, "disable_snapshot_annotations = false"))
        .run("systemctl restart containerd"),
    )
}

/// Returns the handlers that have pulls of their own, with their snapshotters.
fn pulls<'a>(inventory: &'a Inventory, seen: &'a Seen) -> Vec<(&'a str, &'a str)> {
    let default = seen.handlers.default_name();
    let settings = inventory.files.settings();
    let all: Vec<_> = match inventory.version() {
        Some(UNCONFIGURED) => {
            let handlers = seen.handlers.iter();
            handlers
                .map(|(handler, resolved)| (handler, resolved.snapshotter.as_str()))
                .collect()
        }
        _ => {
            let handlers = settings.names(&PLATFORMS);
            let snapshotter = |handler| {
                let (name, _) =
                    settings.find(&[&PLATFORMS[..], &[handler, "snapshotter"]].concat())?;
                Some((handler, name.as_str()?))
            };
            handlers.filter_map(snapshotter).collect()
        }
    };
    all.into_iter()
        .filter(|(_, snapshotter)| !snapshotter.is_empty() && Some(*snapshotter) != default)
        .collect()
}

/// Why a pull fails.
#[derive(Clone, Copy)]
enum Why {
    /// A snapshotter with guest pull rejects a layer that has a label with its chain id and none with its digest.
    NeedsLabels,
    /// The transfer service unpacks only for the snapshotters of its configuration.
    NotListed,
}

impl Why {
    fn reason(self) -> &'static str {
        match self {
            Self::NeedsLabels => "its snapshotter accepts no layer without labels",
            Self::NotListed => {
                "without labels containerd pulls through its transfer service, whose unpack_config does not name the snapshotter"
            }
        }
    }

    /// The error of the pull.
    fn error(self) -> &'static str {
        match self {
            Self::NeedsLabels => "«missing CRI reference annotation»",
            Self::NotListed => "«no unpack platforms defined»",
        }
    }
}

/// Returns why a pull without labels fails in this snapshotter, if it does.
fn why(inventory: &Inventory, seen: &Seen, snapshotter: &str) -> Option<Why> {
    let is_listed = || unpacks(inventory).is_some_and(|(listed, _)| listed.contains(&snapshotter));
    if is_by_transfer(inventory) && !is_listed() {
        return Some(Why::NotListed);
    }
    let refuses = seen.is_proxy(snapshotter)
        && inventory.node.engine.profile(snapshotter).may_proxy
        && !is_labelled_by_transfer(inventory, seen, snapshotter);
    refuses.then_some(Why::NeedsLabels)
}
