//! What was found out about snapshotters: whether the guest pulls their images. A finding holds for the process that
//! gave it: a snapshotter that is restarted may run in another mode.
//!
//! The process is recognized by the socket at which it listens, which each process makes anew. Where this program does
//! not see the socket (it may have other mounts than containerd), a finding holds for some seconds only.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

/// How long a finding holds if the socket is not seen.
const UNSEEN: Duration = Duration::from_secs(5);

/// The process that serves a snapshotter.
#[derive(Clone, Debug)]
pub(crate) struct Process {
    socket: Option<Arc<Path>>,
    /// `None` if the socket is not seen.
    made: Option<Made>,
}

/// What no two sockets have in common: an inode number alone is used again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Made {
    device: u64,
    inode: u64,
    seconds: i64,
    nanoseconds: i64,
}

impl Process {
    /// Returns the process that listens at this socket now.
    pub(crate) fn at(socket: Option<Arc<Path>>) -> Self {
        let made = socket.as_deref().and_then(Made::of);
        Self { socket, made }
    }

    /// Returns it as one whose restart does not matter if it cannot be seen.
    pub(crate) fn if_seen(mut self) -> Self {
        self.socket = self.socket.filter(|_| self.made.is_some());
        self
    }

    /// Returns the time at which it began to listen, if the socket is seen.
    pub(crate) fn since(&self) -> Option<SystemTime> {
        let made = self.made?;
        let seconds = Duration::from_secs(made.seconds.try_into().ok()?);
        let after = seconds + Duration::from_nanos(made.nanoseconds.try_into().ok()?);
        SystemTime::UNIX_EPOCH.checked_add(after)
    }
}

impl Made {
    fn of(socket: &Path) -> Option<Self> {
        let metadata = socket.metadata().ok()?;
        Some(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            seconds: metadata.ctime(),
            nanoseconds: metadata.ctime_nsec(),
        })
    }
}

#[derive(Clone, Debug)]
struct Finding {
    guest_pulls: bool,
    process: Process,
    at: Instant,
    /// What the snapshotter did later contradicts it.
    is_doubted: bool,
}

impl Finding {
    fn is_current(&self) -> bool {
        !self.is_doubted
            && match (self.process.made, &self.process.socket) {
                (Some(made), Some(socket)) => Made::of(socket) == Some(made),
                (_, socket) => socket.is_none() || self.at.elapsed() < UNSEEN,
            }
    }
}

/// The findings, by snapshotter.
#[derive(Debug, Default)]
pub(crate) struct Findings(Mutex<HashMap<String, Finding>>);

impl Findings {
    /// Returns whether the guest pulls the images; `None` if that is not known of the process that runs now.
    pub(crate) fn current(&self, snapshotter: &str) -> Option<bool> {
        let finding = self.all().get(snapshotter).cloned()?;
        finding.is_current().then_some(finding.guest_pulls)
    }

    /// Returns the last finding, which an earlier process may have given.
    pub(crate) fn last(&self, snapshotter: &str) -> Option<bool> {
        let finding = self.all().get(snapshotter).cloned();
        finding.map(|finding| finding.guest_pulls)
    }

    /// Records whether the guest pulls the images. `process` ran before that was found out: if it has ended since, the
    /// finding is not current.
    pub(crate) fn record(&self, snapshotter: &str, guest_pulls: bool, process: Process) {
        let finding = Finding {
            guest_pulls,
            process,
            at: Instant::now(),
            is_doubted: false,
        };
        self.all().insert(snapshotter.to_owned(), finding);
    }

    /// Makes a finding outdated, since what the snapshotter did contradicts it.
    pub(crate) fn doubt(&self, snapshotter: &str) {
        if let Some(finding) = self.all().get_mut(snapshotter) {
            finding.is_doubted = true;
        }
    }

    /// Forgets all findings.
    pub(crate) fn forget(&self) {
        self.all().clear();
    }

    fn all(&self) -> MutexGuard<'_, HashMap<String, Finding>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

    /// A process binds its socket when it starts, as the snapshotters do.
    #[tokio::test(start_paused = true)]
    async fn a_finding_holds_for_the_process_that_gave_it() {
        let directory = tempfile::tempdir().unwrap();
        let path: Arc<Path> = directory.path().join("s.sock").into();
        let findings = Findings::default();
        let first = UnixListener::bind(&path).unwrap();
        findings.record("s", true, Process::at(Some(path.clone())));
        assert_eq!(findings.current("s"), Some(true));
        tokio::time::advance(10 * UNSEEN).await;
        assert_eq!(findings.current("s"), Some(true));

        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(findings.current("s"), None);
        let _second = UnixListener::bind(&path).unwrap();
        assert_eq!(findings.current("s"), None);
        assert_eq!(findings.last("s"), Some(true));

        findings.record("s", false, Process::at(Some(path)));
        assert_eq!(findings.current("s"), Some(false));
        findings.doubt("s");
        assert_eq!(findings.current("s"), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_finding_of_a_process_that_is_not_seen_holds_for_seconds() {
        let findings = Findings::default();
        let unseen: Arc<Path> = Path::new("/does/not/exist.sock").into();
        findings.record("s", true, Process::at(Some(unseen)));
        let lazy: Arc<Path> = Path::new("/does/not/exist/either.sock").into();
        findings.record("lazy", false, Process::at(Some(lazy)).if_seen());
        assert_eq!(findings.current("s"), Some(true));
        tokio::time::advance(UNSEEN).await;
        assert_eq!(findings.current("s"), None);
        assert_eq!(findings.current("lazy"), Some(false));
    }
}
