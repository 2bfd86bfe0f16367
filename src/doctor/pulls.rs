//! What containerd's own pulls leave behind: labels, and the layers' blobs.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::MissingContent;
use crate::containerd::Snapshotter;

use super::finding::{Finding, Severity};
use super::inventory::{Inventory, PULL_HANDLER, Seen};

/// The first containerd that fetches blobs for somebody else.
pub(super) const PULLS_FROM: (u64, u64) = (2, 1);

/// The containerd that pulls for a handler without being configured to.
const PULLS_FOR_HANDLER: (u64, u64) = (1, 7);

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let annotations = annotations(inventory, seen);
    annotations
        .into_iter()
        .chain(for_handlers(inventory, seen))
        .chain(discarded(inventory, seen))
        .chain(unpacked_elsewhere(inventory, seen))
        .collect()
}

/// Only remote snapshotters need the labels, and only pulls into them lack them then.
fn annotations(inventory: &Inventory, seen: &Seen) -> Option<Finding> {
    let remote: Vec<_> = seen
        .handlers
        .snapshotters()
        .into_iter()
        .filter(|name| seen.is_proxy(name) && !is_labelled_by_transfer(inventory, seen, name))
        .collect();
    let (key, reported) = ("disable_snapshot_annotations", "disableSnapshotAnnotations");
    let (disabled, path) = switch(inventory, seen, key, reported, true);
    if !disabled || remote.is_empty() {
        return None;
    }
    // The plugin does not look after the default one: the labels stay away there.
    let is_default = seen
        .handlers
        .default_name()
        .is_some_and(|default| remote.contains(&default));
    let (severity, means) = match is_default {
        true => (
            Severity::Warning,
            "a pull unpacks without the labels that it needs: «missing CRI reference annotation», or a whole unpack instead of a lazy one",
        ),
        false => (
            Severity::Note,
            "what a pull unpacks there lacks labels until the plugin has put them on",
        ),
    };
    let finding = Finding::new(
        "annotations-off",
        severity,
        format!(
            "containerd labels nothing that it unpacks (disable_snapshot_annotations), and {} wants labels",
            remote.join(", ")
        ),
        means,
    );
    Some(
        finding
            .advise("have containerd put the labels on as well, and restart it")
            .lines(
                &path,
                &lines(inventory, "disable_snapshot_annotations = false"),
            )
            .run("systemctl restart containerd"),
    )
}

/// 1.7 pulls into the snapshotter of the handler that a pull names. One that leaves images to the guest refuses a layer
/// that says its chain id and not its digest, and so the whole pull.
fn for_handlers(inventory: &Inventory, seen: &Seen) -> Option<Finding> {
    let (key, reported) = ("disable_snapshot_annotations", "disableSnapshotAnnotations");
    let (disabled, path) = switch(inventory, seen, key, reported, true);
    if !disabled || inventory.version() != Some(PULLS_FOR_HANDLER) {
        return None;
    }
    let default = seen.handlers.default_name();
    let refuses = |snapshotter: &str| {
        Some(snapshotter) != default
            && seen.is_proxy(snapshotter)
            && inventory.node.engine.profile(snapshotter).may_proxy
    };
    let all = seen.handlers.iter();
    let refused: Vec<_> = all
        .filter(|(_, resolved)| refuses(&resolved.snapshotter))
        .map(|(handler, _)| handler)
        .collect();
    let asked: Vec<_> = refused
        .iter()
        .copied()
        .filter(|handler| seen.pulls_for.contains(*handler))
        .collect();
    let (severity, handlers) = match asked.is_empty() {
        true => (Severity::Note, &refused),
        false => (Severity::Warning, &asked),
    };
    let handlers = (!handlers.is_empty()).then(|| handlers.join(", "))?;
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
            format!("{found}: its snapshotter takes no layer without labels (disable_snapshot_annotations)"),
            format!("«missing CRI reference annotation»: a pod with the annotation {PULL_HANDLER} does not start where its image has to be pulled; without it the image is pulled for the default snapshotter, and the plugin makes it ready"),
        )
        .advise("take the annotation off, or have containerd put the labels on, and restart it")
        .lines(&path, &lines(inventory, "disable_snapshot_annotations = false"))
        .run("systemctl restart containerd"),
    )
}

/// The transfer service, by which CRI pulls from 2.1 on, asks the proxy plugin's own export.
fn is_labelled_by_transfer(inventory: &Inventory, seen: &Seen, name: &str) -> bool {
    let export = |s: &Snapshotter| s.exports.get("enable_remote_snapshot_annotations").cloned();
    let is_on = seen
        .snapshotter(name)
        .and_then(export)
        .is_some_and(|on| on == "true");
    is_on
        && inventory
            .version()
            .is_some_and(|version| version >= PULLS_FROM)
}

/// From 2.1 on CRI pulls by the transfer service, which unpacks for the snapshotters that it is configured
/// for: by itself that is the default one.
fn unpacked_elsewhere(inventory: &Inventory, seen: &Seen) -> Option<Finding> {
    const KEYS: [&str; 3] = [
        "plugins",
        "io.containerd.transfer.v1.local",
        "unpack_config",
    ];
    let (configs, path) = inventory.files.settings().find(&KEYS)?;
    let default = seen.handlers.default_name()?;
    let configs = configs.as_array()?.iter();
    let names: Vec<_> = configs
        .filter_map(|config| config.get("snapshotter")?.as_str())
        .collect();
    let is_by_transfer = inventory
        .version()
        .is_some_and(|version| version >= PULLS_FROM);
    if !is_by_transfer || names.is_empty() || names.contains(&default) {
        return None;
    }
    let found = format!(
        "containerd's transfer service unpacks for {} alone (unpack_config in {}), and the default snapshotter is {default}",
        names.join(", "),
        path.display()
    );
    let lines = format!(
        "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n  platform = \"linux\"\n  snapshotter = \"{default}\""
    );
    Some(
        Finding::new(
            "transfer-unpack-elsewhere",
            Severity::Error,
            found,
            "containerd refuses every pull of the kubelet",
        )
        .advise("add the default snapshotter, and restart containerd")
        .lines(path, &lines)
        .run("systemctl restart containerd"),
    )
}

fn discarded(inventory: &Inventory, seen: &Seen) -> Option<Finding> {
    let (key, reported) = ("discard_unpacked_layers", "discardUnpackedLayers");
    let (discards, path) = switch(inventory, seen, key, reported, false);
    if !discards {
        return None;
    }
    let helps = |means: &MissingContent| match means {
        MissingContent::Rebuild => true,
        MissingContent::Pull => inventory.version().is_some_and(|v| v >= PULLS_FROM),
    };
    let helped = inventory.config().unpack.missing_content.iter().any(helps);
    let (severity, means) = match helped {
        true => (
            Severity::Note,
            "an image for another snapshotter is rebuilt or pulled again, as unpack.missing_content says",
        ),
        false => (
            Severity::Warning,
            "an image that another snapshotter needs cannot be unpacked there: «content digest … not found»",
        ),
    };
    let finding = Finding::new(
        "layers-discarded",
        severity,
        format!(
            "containerd discards the layers of an image once it is unpacked (discard_unpacked_layers in {})",
            path.display()
        ),
        means,
    );
    Some(
        finding
            .advise("keep the layers of later pulls, and restart containerd; or let nri-unpack rebuild them: unpack.missing_content = [\"rebuild\"]")
            .lines(&path, &lines(inventory, "discard_unpacked_layers = false"))
            .run("systemctl restart containerd"),
    )
}

/// What the running containerd says (1.7 does), else its files; and where to change it.
fn switch(
    inventory: &Inventory,
    seen: &Seen,
    key: &str,
    reported: &str,
    by_default: bool,
) -> (bool, PathBuf) {
    let running = || {
        let containerd = seen.cri.as_ref()?.get("containerd")?;
        containerd.get(reported).and_then(Value::as_bool)
    };
    let settings = inventory.files.settings();
    let said = settings.images_switch(key);
    let file: &Path = inventory.config().containerd.config.as_ref();
    let path = said.map_or(file, |(_, path)| path).to_owned();
    let on = running().or(said.map(|(on, _)| on)).unwrap_or(by_default);
    (on, path)
}

/// In the words of this containerd.
fn lines(inventory: &Inventory, line: &str) -> String {
    format!("{}\n  {line}", inventory.files.settings().images_heading())
}
