//! Checks containerd's settings for its own pulls: labels of snapshots, and whether blobs are kept.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::MissingContent;
use crate::containerd::Snapshotter;

use super::cri::TRANSFER;
use super::finding::{Finding, Severity};
use super::inventory::{Inventory, Seen};

/// The first containerd with a transfer service that fetches blobs for a client.
pub(super) const PULLS_FROM: (u64, u64) = (2, 1);

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let annotations = annotations(inventory, seen);
    annotations
        .into_iter()
        .chain(discarded(inventory, seen))
        .chain(unpacked_elsewhere(inventory, seen))
        .collect()
}

/// Checks that pulls label snapshots, where a remote snapshotter needs the labels.
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
    // The plugin does not manage the default snapshotter, so nothing adds the labels there.
    let is_default = seen
        .handlers
        .default_name()
        .is_some_and(|default| remote.contains(&default));
    let (severity, means) = match is_default {
        true => (
            Severity::Warning,
            "a pull unpacks without the labels that it needs: «missing CRI reference annotation», or a full unpack instead of lazy loading",
        ),
        false => (
            Severity::Note,
            "images that a pull unpacks there lack labels until the plugin has added them",
        ),
    };
    let finding = Finding::new(
        "annotations-off",
        severity,
        format!(
            "containerd unpacks without labels (disable_snapshot_annotations), and {} needs labels",
            remote.join(", ")
        ),
        means,
    );
    Some(
        finding
            .advise("make containerd set the labels as well, and restart it")
            .lines(
                &path,
                &lines(inventory, "disable_snapshot_annotations = false"),
            )
            .run("systemctl restart containerd"),
    )
}

/// Whether CRI pulls by the transfer service, which it does from 2.1 on.
pub(super) fn is_by_transfer(inventory: &Inventory) -> bool {
    let version = inventory.version();
    version.is_some_and(|version| version >= PULLS_FROM)
        && !inventory.files.settings().pulls_locally()
}

/// Whether the transfer service pulls, and sets the labels. An export of the proxy plugin decides about the labels.
pub(super) fn is_labelled_by_transfer(inventory: &Inventory, seen: &Seen, name: &str) -> bool {
    let export = |s: &Snapshotter| s.exports.get("enable_remote_snapshot_annotations").cloned();
    let is_on = seen
        .snapshotter(name)
        .and_then(export)
        .is_some_and(|on| on == "true");
    is_on && is_by_transfer(inventory)
}

/// Checks that the transfer service unpacks for the default snapshotter, if CRI pulls by it. It does so by default;
/// `unpack_config` may name others.
fn unpacked_elsewhere(inventory: &Inventory, seen: &Seen) -> Option<Finding> {
    let (names, path) = unpacks(inventory)?;
    let default = seen.handlers.default_name()?;
    if !is_by_transfer(inventory) || names.is_empty() || names.contains(&default) {
        return None;
    }
    let found = format!(
        "containerd's transfer service unpacks only for {} (unpack_config in {}), and the default snapshotter is {default}",
        names.join(", "),
        path.display()
    );
    let lines = format!(
        "[[plugins.\"{TRANSFER}\".unpack_config]]\n  platform = \"linux\"\n  snapshotter = \"{default}\""
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

/// Returns the snapshotters that the transfer service unpacks for, and the file that names them; `None` if none does: then
/// it unpacks for the default one.
pub(super) fn unpacks(inventory: &Inventory) -> Option<(Vec<&str>, &Path)> {
    const KEYS: [&str; 3] = ["plugins", TRANSFER, "unpack_config"];
    let (configs, path) = inventory.files.settings().find(&KEYS)?;
    let configs = configs.as_array()?.iter();
    let names = configs.filter_map(|config| config.get("snapshotter")?.as_str());
    Some((names.collect(), path))
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
            "the layers of an image for another snapshotter are rebuilt or pulled again, by unpack.missing_content",
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
            "containerd removes the blobs of an image after its unpack (discard_unpacked_layers in {})",
            path.display()
        ),
        means,
    );
    Some(
        finding
            .advise("keep the blobs of later pulls, and restart containerd; or let nri-unpack rebuild layers: unpack.missing_content = [\"rebuild\"]")
            .lines(&path, &lines(inventory, "discard_unpacked_layers = false"))
            .run("systemctl restart containerd"),
    )
}

/// Returns the value of a switch from the running containerd (1.7 reports it), else from its files, and the file to
/// change.
pub(super) fn switch(
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
    let written = settings.images_switch(key);
    let file: &Path = inventory.config().containerd.config.as_ref();
    let path = written.map_or(file, |(_, path)| path).to_owned();
    let on = running()
        .or(written.map(|(on, _)| on))
        .unwrap_or(by_default);
    (on, path)
}

/// Returns the lines for the configuration of this version of containerd.
pub(super) fn lines(inventory: &Inventory, line: &str) -> String {
    format!("{}\n  {line}", inventory.files.settings().images_heading())
}
