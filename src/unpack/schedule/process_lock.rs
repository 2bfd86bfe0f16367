//! The lock that the processes of this program share, so that a node runs one unpack of a layer at a time.
//!
//! The lock is an abstract unix socket. The kernel frees it however its holder ends. It needs no writable file system,
//! which neither the systemd unit nor the DaemonSet has. Both of these, and the commands, run in the node's network
//! namespace. A process in another network namespace does not see the lock and unpacks at the same time, as containerd
//! itself does: that costs only time.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::containerd::Containerd;

/// The prefix of the sockets' names; a digest follows.
const PREFIX: &str = "nri-unpack/";

/// The longest wait for a holder. An unpack of a layer takes less, and a second unpack of it does no harm.
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// The pause after a connection that failed.
const PAUSE: Duration = Duration::from_millis(50);

/// So many connections in a row fail only at a socket that is no lock: a holder refuses them for microseconds, before it
/// listens and when it ends.
const MOST_FAILURES: usize = 20;

/// The held lock of a layer, until it is dropped.
#[derive(Debug)]
pub(crate) struct ProcessLock {
    _held: Option<UnixListener>,
}

/// The result of one attempt.
enum Tried {
    /// This process holds the lock.
    Held(UnixListener),
    /// Another process holds it.
    Taken,
    /// The socket cannot be made.
    Impossible(std::io::Error),
}

/// Locks a layer, or other work by its name, against the other processes. Cancel safe.
pub(crate) async fn process_lock(
    containerd: &dyn Containerd,
    snapshotter: &str,
    chain_id: &str,
) -> ProcessLock {
    let Some(identity) = containerd.identity() else {
        return ProcessLock { _held: None };
    };
    let name = name(&identity, snapshotter, chain_id);
    let held = tokio::time::timeout(LONGEST, hold(&name)).await;
    let held = held.unwrap_or_else(|_| {
        log::warn!(snapshotter, chain_id; "another process has held this lock for {LONGEST:?}: the work goes on without it");
        None
    });
    ProcessLock { _held: held }
}

fn name(identity: &str, snapshotter: &str, chain_id: &str) -> String {
    let layer = format!("{identity} {snapshotter} {chain_id}");
    let digest = Sha256::digest(layer.as_bytes());
    let digest: String = digest.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{PREFIX}{digest}")
}

async fn hold(name: &str) -> Option<UnixListener> {
    let mut failures = 0;
    while failures < MOST_FAILURES {
        match try_hold(name) {
            Tried::Held(listener) => return Some(listener),
            Tried::Impossible(e) => {
                log::debug!(error:% = e; "layer could not be locked: another process may unpack it at the same time");
                return None;
            }
            Tried::Taken => {}
        }
        match released(name).await {
            Ok(true) => failures = 0,
            Ok(false) => return None,
            Err(_) => {
                failures += 1;
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
    log::warn!(name; "a socket has the name of a layer's lock and takes no connection, so no process of this program holds it: the work goes on without it");
    None
}

fn try_hold(name: &str) -> Tried {
    let address = SocketAddr::from_abstract_name(name);
    match address.and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => Tried::Held(listener),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Tried::Taken,
        Err(e) => Tried::Impossible(e),
    }
}

/// Waits until the holder ends: it never accepts the connection, which the kernel closes then. Returns `false` at
/// once if the holder is a process of another user. Any user can compute the names, and must not block an unpack.
///
/// # Errors
/// If there is no connection: the holder has just ended, or does not listen, or too many wait for it.
async fn released(name: &str) -> std::io::Result<bool> {
    let mut holder = UnixStream::connect(format!("\0{name}")).await?;
    let is_ours = is_trusted(holder.peer_cred()?.uid());
    if is_ours {
        // The holder sends nothing: the read returns when it ends.
        let _ = holder.read(&mut [0]).await;
    }
    Ok(is_ours)
}

/// Whether a process of this user may block an unpack: root, or the user of this process.
fn is_trusted(user: u32) -> bool {
    let own = std::fs::metadata("/proc/self").map(|own| own.uid());
    user == 0 || own.is_ok_and(|own| own == user)
}

#[cfg(test)]
mod tests {
    use tokio::net::UnixSocket;

    use super::*;

    async fn is_free(name: &str) -> bool {
        let held = tokio::time::timeout(Duration::from_millis(100), hold(name)).await;
        held.is_ok_and(|held| held.is_some())
    }

    #[tokio::test]
    async fn a_layer_has_one_holder_until_it_releases_the_lock() {
        // Other runs of the tests use other names.
        let here = format!("test {}", std::process::id());
        let a = name(&here, "erofs", "sha256:a");
        let held = hold(&a).await;
        assert!(held.is_some() && !is_free(&a).await);
        for (identity, snapshotter, chain_id) in [
            (&*here, "native", "sha256:a"),
            (&*here, "erofs", "sha256:b"),
            ("another containerd", "erofs", "sha256:a"),
        ] {
            assert!(is_free(&name(identity, snapshotter, chain_id)).await);
        }
        let waits = tokio::spawn(async move { hold(&a).await });
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert!(!waits.is_finished());
        drop(held);
        assert!(waits.await.unwrap().is_some());
    }

    /// Any user can bind the name, and must not block an unpack. A task that does not wait would block all others, too: so
    /// this one has a thread of its own.
    #[tokio::test]
    async fn a_socket_that_takes_no_connection_is_no_lock() {
        for listens in [false, true] {
            let name = format!("test {} {listens}", std::process::id());
            let socket = || UnixSocket::new_stream().unwrap();
            let (held, address) = (socket(), format!("\0{name}"));
            held.bind(&address).unwrap();
            let mut full = Vec::new();
            let _held = match listens {
                false => (Some(held), None),
                true => (None, Some(held.listen(0).unwrap())),
            };
            while let Ok(connection) = socket().connect(&address).await {
                full.push(connection);
            }
            let (sender, answer) = std::sync::mpsc::channel();
            std::thread::spawn(move || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                let runtime = runtime.enable_all().build().unwrap();
                let held = runtime.block_on(hold(&name));
                let _ = sender.send(held.is_none());
            });
            let gives_up = answer.recv_timeout(Duration::from_secs(10));
            assert_eq!(gives_up, Ok(true), "{listens}");
        }
    }

    #[test]
    fn only_root_and_the_own_user_are_trusted() {
        let own = std::fs::metadata("/proc/self").unwrap().uid();
        assert!(is_trusted(0) && is_trusted(own));
        assert!(!is_trusted(own + 65534));
    }
}
