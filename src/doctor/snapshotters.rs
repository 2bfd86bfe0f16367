//! Checks that each handler's snapshotter exists and answers, and that the configuration of the handlers is right.

use std::path::Path;

use crate::containerd::Snapshotter;
use crate::handlers::Problem;

use super::finding::{Finding, Severity};
use super::inventory::{Inventory, Seen};

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let file: &Path = inventory.config().containerd.config.as_ref();
    let mut findings: Vec<_> = seen.handlers.problems().iter().map(configured).collect();
    findings.extend(seen.handlers.differences().iter().map(configured));
    findings.extend(unread(inventory, seen));
    for name in seen.handlers.snapshotters() {
        let users = seen.users(name);
        match seen.snapshotter(name) {
            None => findings.push(unknown(seen, file, name, &users)),
            Some(snapshotter) => {
                let failed = snapshotter.init_error.as_ref();
                let failed = failed.map(|why| failed_to_start(name, &users, why));
                findings.extend(failed.or_else(|| silent(seen, snapshotter, &users)));
            }
        }
    }
    findings.extend(rootless(seen, file));
    findings
}

/// Checks that the default snapshotter has an export `root`. CRI reports it to the kubelet as the file system of images.
/// Without it, CRI reports a directory that does not exist.
fn rootless(seen: &Seen, file: &Path) -> Option<Finding> {
    let name = seen.handlers.default_name()?;
    let snapshotter = seen.snapshotter(name)?;
    if snapshotter.exports.contains_key("root") || snapshotter.proxy_address().is_none() {
        return None;
    }
    let lines = format!("[proxy_plugins.{name}.exports]\n  root = \"DIRECTORY\"");
    Some(
        Finding::new(
            "snapshotter-without-root",
            Severity::Warning,
            format!("the default snapshotter {name} is a proxy plugin without an export `root`"),
            "the kubelet finds no file system of images, and its image garbage collection fails",
        )
        .advise("add the export, with the snapshotter's directory in place of DIRECTORY, and restart containerd")
        .lines(file, &lines)
        .run("systemctl restart containerd"),
    )
}

/// Returns the finding for a problem with the handlers. The problem's text has the remedy.
fn configured(problem: &Problem) -> Finding {
    let (id, severity, means) = match problem {
        Problem::PulledElsewhere { .. } => (
            "handler-pulled-elsewhere",
            Severity::Warning,
            "a pull unpacks images into another snapshotter than its pods use",
        ),
        Problem::NoSuchHandler { .. } => (
            "handler-unknown",
            Severity::Warning,
            "this line of the configuration has no effect",
        ),
        Problem::Differs { .. } => (
            "containerd-config-differs",
            Severity::Warning,
            "the file was changed after containerd started, or containerd uses another file",
        ),
        Problem::UnknownDefault { .. } => (
            "default-snapshotter-unknown",
            Severity::Error,
            "the plugin does not manage snapshotters without a table of their own in the configuration, since each \
             may be the default one; pods of their handlers are left to containerd",
        ),
        _ => (
            "containerd-config",
            Severity::Warning,
            "its settings of handlers and snapshotters are unknown",
        ),
    };
    // The text has the form «problem: remedy», or only «problem».
    let text = problem.to_string();
    let (found, advice) = text
        .rsplit_once(": ")
        .unwrap_or((&text, "correct the file"));
    match problem {
        Problem::PulledElsewhere { .. }
        | Problem::NoSuchHandler { .. }
        | Problem::Differs { .. }
        | Problem::UnknownDefault { .. } => Finding::new(id, severity, found, means).advise(advice),
        _ => Finding::new(id, severity, text, means)
            .advise("correct the file, or let the plugin read it"),
    }
}

/// Returns notes for files that cannot be read although containerd reports all handlers, and for imports that
/// containerd may see and this process does not.
fn unread(inventory: &Inventory, seen: &Seen) -> Vec<Finding> {
    let note = |found: String| {
        Finding::new(
            "containerd-config",
            Severity::Note,
            found,
            "handlers and snapshotters come from the running containerd; the settings of the pause image, of \
             labels and of discarded layers in its files are unknown",
        )
        .advise("make the file readable for this process; in a container, mount its directory at the same path")
    };
    let reported: Vec<_> = seen
        .handlers
        .problems()
        .iter()
        .map(ToString::to_string)
        .collect();
    let problems = inventory.files.problems().iter().map(ToString::to_string);
    let mut findings: Vec<_> = problems
        .filter(|problem| !reported.contains(problem))
        .map(note)
        .collect();
    if inventory.sees_other_files {
        let unseen = inventory.files.unseen().iter();
        findings.extend(unseen.map(|unseen| note(unseen.to_string())));
    }
    findings
}

fn unknown(seen: &Seen, file: &Path, name: &str, users: &str) -> Finding {
    let known: Vec<_> = seen.snapshotters.iter().map(|s| s.name.as_str()).collect();
    let lines = format!(
        "[proxy_plugins.{name}]\n  type = \"snapshot\"\n  address = \"/run/{name}/{name}.sock\""
    );
    Finding::new(
        "snapshotter-unknown",
        Severity::Error,
        format!(
            "handler {users} uses the snapshotter {name}, which containerd does not have: it has {}",
            known.join(", ")
        ),
        "every pod of this handler fails",
    )
    .advise("add it to containerd's configuration with the address of its socket, or correct the handler's snapshotter; then restart containerd")
    .lines(file, &lines)
    .run("systemctl restart containerd")
}

fn failed_to_start(name: &str, users: &str, why: &str) -> Finding {
    Finding::new(
        "snapshotter-failed",
        Severity::Error,
        format!("the snapshotter {name} of handler {users} did not start: {why}"),
        "every pod of this handler fails",
    )
    .advise("correct what the error names, and restart containerd")
    .run("journalctl -u containerd -n 200")
}

fn silent(seen: &Seen, snapshotter: &Snapshotter, users: &str) -> Option<Finding> {
    let name = &snapshotter.name;
    let Err(why) = seen.listings.get(name)? else {
        return None;
    };
    let finding = Finding::new(
        "snapshotter-silent",
        Severity::Error,
        format!("the snapshotter {name} of handler {users} does not answer: {why}"),
        "every pod of this handler fails, and its containers lose their file systems when they restart",
    );
    Some(match snapshotter.proxy_address() {
        Some(address) => finding
            .advise(format!(
                "start its daemon, which must listen on {address}; containerd reconnects by itself"
            ))
            .run(format!("systemctl status {name}-snapshotter")),
        None => finding
            .advise("see containerd's log")
            .run("journalctl -u containerd -n 200"),
    })
}
