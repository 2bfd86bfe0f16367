//! Checks that containerd answers, and that its version is supported.

use std::io::ErrorKind;
use std::path::Path;
use std::time::Duration;

use tokio::net::UnixStream;

use crate::containerd;

use super::finding::{Finding, Severity};
use super::inventory::Inventory;

/// The first and the last version of containerd that the plugin supports.
const KNOWN: [(u64, u64); 2] = [(1, 7), (2, 4)];

/// The limit of a connection. The kernel makes it at once, or not at all.
const CONNECT_DEADLINE: Duration = Duration::from_secs(2);

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    let socket: &Path = inventory.config().containerd.socket.as_ref();
    match &inventory.seen {
        Ok(seen) => version(&seen.version).into_iter().collect(),
        Err(error) => vec![unreachable(socket, error).await],
    }
}

/// Returns the finding for a containerd that cannot be reached. A connection to its socket gives a more precise error
/// than the failed call.
async fn unreachable(socket: &Path, error: &containerd::Error) -> Finding {
    const MEANS: &str = "the plugin cannot check or unpack images; by default, containers are created as without it";
    let at = socket.display();
    let finding = |id, found| Finding::new(id, Severity::Error, found, MEANS);
    let silent = |found| {
        finding("containerd-silent", found)
            .advise("look for the reason in containerd's log")
            .run("journalctl -u containerd -n 50")
    };
    let connected = tokio::time::timeout(CONNECT_DEADLINE, UnixStream::connect(socket));
    let why = match connected.await.unwrap_or(Err(ErrorKind::TimedOut.into())) {
        Ok(_) => {
            return silent(format!(
                "containerd at {at} accepts connections and does not answer: {error}"
            ));
        }
        Err(why) => why,
    };
    match why.kind() {
        ErrorKind::WouldBlock | ErrorKind::TimedOut => silent(format!(
            "containerd at {at} takes no more connections: {error}"
        )),
        ErrorKind::NotFound => finding(
            "containerd-socket-missing",
            format!("containerd's socket {at} does not exist"),
        )
        .advise("start containerd, or name its socket with containerd.socket in the configuration or --containerd-socket (k3s and rke2: /run/k3s/containerd/containerd.sock)")
        .run("systemctl start containerd"),
        ErrorKind::PermissionDenied => finding(
            "containerd-permission",
            format!("containerd's socket {at} cannot be opened by this user: {why}"),
        )
        .advise("run as root: the sockets of containerd and NRI belong to root"),
        _ => finding(
            "containerd-down",
            format!("no process listens on containerd's socket {at}: {why}"),
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
    let found = format!("containerd has version {version}");
    let finding = match numbers {
        Some(numbers) if numbers < first => Finding::new(
            "containerd-too-old",
            Severity::Error,
            found,
            "it has no NRI, so the plugin cannot register",
        )
        .advise("use containerd 1.7 or later"),
        _ => Finding::new(
            "containerd-unknown-version",
            Severity::Warning,
            found,
            "the plugin was tested with 1.7 to 2.4; interfaces that it uses may have changed",
        )
        .advise("look for a later nri-unpack, and test a pod of each handler"),
    };
    Some(finding)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixSocket;

    use super::*;

    /// A server that has stopped accepting: a blocking connection to it waits for ever.
    #[tokio::test]
    async fn a_containerd_that_accepts_no_connection_is_silent() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("containerd.sock");
        let socket = UnixSocket::new_stream().unwrap();
        socket.bind(&path).unwrap();
        let _server = socket.listen(0).unwrap();
        let mut waiting = vec![];
        while let Ok(client) = UnixStream::connect(&path).await {
            waiting.push(client);
        }
        let error = containerd::Error::malformed("version", "containerd", "late");
        let found = unreachable(&path, &error).await;
        assert_eq!(found.id, "containerd-silent", "{found:?}");
    }

    #[test]
    fn unsupported_versions_are_found() {
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
