//! Whether containerd can be spoken to, and whether it is one of those that are known.

use std::io::ErrorKind;
use std::os::unix::net::UnixStream;
use std::path::Path;

use crate::containerd;

use super::finding::{Finding, Severity};
use super::inventory::Inventory;

/// The versions that the plugin is made for, the first and the last.
const KNOWN: [(u64, u64); 2] = [(1, 7), (2, 4)];

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let socket: &Path = inventory.config().containerd.socket.as_ref();
    match &inventory.seen {
        Ok(seen) => version(&seen.version).into_iter().collect(),
        Err(error) => vec![unreachable(socket, error)],
    }
}

/// What the operating system says of the socket tells more than a failed call.
fn unreachable(socket: &Path, error: &containerd::Error) -> Finding {
    const MEANS: &str = "nothing can be seen or done; pods are let pass as they are";
    let at = socket.display();
    let finding = |id, found| Finding::new(id, Severity::Error, found, MEANS);
    let why = match UnixStream::connect(socket) {
        Ok(_) => {
            let found = format!("containerd at {at} takes a call and does not answer it: {error}");
            return finding("containerd-silent", found)
                .advise("see what keeps it busy")
                .run("journalctl -u containerd -n 50");
        }
        Err(why) => why,
    };
    match why.kind() {
        ErrorKind::NotFound => finding(
            "containerd-socket-missing",
            format!("containerd's socket {at} does not exist"),
        )
        .advise("start containerd, or say where its socket is: containerd.socket in the configuration, or --containerd-socket (k3s and rke2: /run/k3s/containerd/containerd.sock)")
        .run("systemctl start containerd"),
        ErrorKind::PermissionDenied => finding(
            "containerd-permission",
            format!("containerd's socket {at} cannot be opened by this user: {why}"),
        )
        .advise("run as root: the sockets of containerd and NRI are root's"),
        _ => finding(
            "containerd-down",
            format!("nobody listens on containerd's socket {at}: {why}"),
        )
        .advise("start containerd")
        .run("systemctl start containerd"),
    }
}

fn version(version: &str) -> Option<Finding> {
    let [first, last] = KNOWN;
    let numbers = containerd::numbers(version);
    if numbers.is_some_and(|numbers| (first..=last).contains(&numbers)) {
        return None;
    }
    let found = format!("containerd is of version {version}");
    let finding = match numbers {
        Some(numbers) if numbers < first => Finding::new(
            "containerd-too-old",
            Severity::Error,
            found,
            "it has no NRI that the plugin could register with",
        )
        .advise("use containerd 1.7 or later"),
        _ => Finding::new(
            "containerd-unknown-version",
            Severity::Warning,
            found,
            "the plugin was tried on 1.7 to 2.4; what it relies on may have changed",
        )
        .advise("see whether there is a later nri-unpack, and try a pod of each handler"),
    };
    Some(finding)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_outside_of_those_tried_are_found() {
        for (text, id) in [
            ("1.7.24~ds1", None),
            ("v2.4.1", None),
            ("1.6.36", Some("containerd-too-old")),
            ("2.5.0", Some("containerd-unknown-version")),
            ("main", Some("containerd-unknown-version")),
        ] {
            assert_eq!(version(text).map(|finding| finding.id), id, "{text}");
        }
    }
}
