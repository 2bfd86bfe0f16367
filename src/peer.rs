//! The process behind containerd's socket, as far as this one sees it.

use std::path::Path;

use tokio::net::UnixStream;

/// The process that listens on this socket; 0 where it is in another process namespace.
pub(crate) async fn pid(socket: &Path) -> Option<u32> {
    let stream = UnixStream::connect(socket).await;
    stream.ok()?.peer_cred().ok()?.pid()?.try_into().ok()
}

/// Whether it has other mounts than this process, so that a file may be there for the one alone. What cannot be told
/// is not so.
pub(crate) fn has_other_mounts(pid: Option<u32>) -> bool {
    let of = |pid: &str| std::fs::read_link(format!("/proc/{pid}/ns/mnt")).ok();
    match pid {
        Some(0) => true,
        Some(pid) => of(&pid.to_string()).is_some_and(|its| Some(its) != of("self")),
        None => false,
    }
}
