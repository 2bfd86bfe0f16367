//! One unpack of a layer at a time on a node: the lock that the processes of this program share.
//!
//! It is an abstract unix socket. The kernel frees it when its holder ends, however that ends; it needs no
//! writable file system, which neither the unit nor the DaemonSet has; and both are in the node's network
//! namespace, as commands are. A process that is not there unpacks beside the others, as containerd itself
//! does: that costs time and nothing else.

use std::os::linux::net::SocketAddrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{SocketAddr, UnixListener};
use std::time::Duration;

use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;

use crate::containerd::Containerd;

/// What the names of the sockets begin with; a digest follows.
const PREFIX: &str = "nri-unpack/";

/// A holder that is still at a layer after this long no longer keeps others from it. An unpack of a layer
/// takes less, and to unpack it twice does no harm.
const LONGEST: Duration = Duration::from_secs(10 * 60);

/// Between tries, where the holder takes no more connections.
const PAUSE: Duration = Duration::from_millis(50);

/// A layer that no other process unpacks, until it is dropped.
#[derive(Debug)]
pub(crate) struct ProcessLock {
    _held: Option<UnixListener>,
}

/// What became of a try.
enum Tried {
    Held(UnixListener),
    /// By another process.
    Taken,
    Impossible(std::io::Error),
}

/// Waits until no other process is at this layer. Cancel safe.
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
        log::warn!(snapshotter, chain_id; "another process has unpacked this layer for {LONGEST:?}: it is unpacked here as well");
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
    loop {
        match try_hold(name) {
            Tried::Held(listener) => return Some(listener),
            Tried::Impossible(e) => {
                log::debug!(error:% = e; "other processes not kept from a layer");
                return None;
            }
            Tried::Taken if !released(name).await => return None,
            Tried::Taken => {}
        }
    }
}

fn try_hold(name: &str) -> Tried {
    let address = SocketAddr::from_abstract_name(name);
    match address.and_then(|address| UnixListener::bind_addr(&address)) {
        Ok(listener) => Tried::Held(listener),
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => Tried::Taken,
        Err(e) => Tried::Impossible(e),
    }
}

/// Waits for the holder: a connection that is never accepted ends with it. `false` where the holder is another
/// user's process, which nothing here waits for: the names can be told by anyone.
async fn released(name: &str) -> bool {
    match UnixStream::connect(format!("\0{name}")).await {
        Ok(mut holder) => {
            let is_ours = holder
                .peer_cred()
                .is_ok_and(|holder| is_trusted(holder.uid()));
            if is_ours {
                // Nothing is ever sent: this is its end.
                let _ = holder.read(&mut [0]).await;
            }
            is_ours
        }
        // It has just ended.
        Err(e) if e.kind() == std::io::ErrorKind::ConnectionRefused => true,
        Err(_) => {
            tokio::time::sleep(PAUSE).await;
            true
        }
    }
}

/// Root's, or this process' own user's.
fn is_trusted(user: u32) -> bool {
    let me = std::fs::metadata("/proc/self").map(|me| me.uid());
    user == 0 || me.is_ok_and(|me| me == user)
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn is_free(name: &str) -> bool {
        let held = tokio::time::timeout(Duration::from_millis(100), hold(name)).await;
        held.is_ok_and(|held| held.is_some())
    }

    #[tokio::test]
    async fn a_layer_is_held_by_one_until_it_lets_go() {
        // Another run of the tests has other locks.
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

    #[test]
    fn another_user_holds_up_no_unpack() {
        let me = std::fs::metadata("/proc/self").unwrap().uid();
        assert!(is_trusted(0) && is_trusted(me));
        assert!(!is_trusted(me + 65534));
    }
}
