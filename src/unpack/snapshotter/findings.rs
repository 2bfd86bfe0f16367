//! What was found out of a snapshotter: whether the guest pulls its images. A finding holds for the process that gave
//! it: a snapshotter that is restarted may run in another mode.
//!
//! The process is recognized by the socket at which it listens, which each process makes anew. Where this program does
//! not see the socket (it may have other mounts than containerd), a finding holds for some seconds only.

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
struct Answer {
    guest_pulls: bool,
    process: Process,
    at: Instant,
    /// What the snapshotter did later contradicts it.
    is_doubted: bool,
}

impl Answer {
    fn is_current(&self) -> bool {
        !self.is_doubted
            && match (self.process.made, &self.process.socket) {
                (Some(made), Some(socket)) => Made::of(socket) == Some(made),
                (_, socket) => socket.is_none() || self.at.elapsed() < UNSEEN,
            }
    }
}

/// Whether the guest pulls the images of one snapshotter, if that was found out.
#[derive(Debug, Default)]
pub(crate) struct Finding(Mutex<Option<Answer>>);

impl Finding {
    /// Returns whether the guest pulls the images; `None` if that is not known of the process that runs now.
    pub(crate) fn current(&self) -> Option<bool> {
        let answer = self.answer().clone()?;
        answer.is_current().then_some(answer.guest_pulls)
    }

    /// Returns the last answer, which an earlier process may have given.
    pub(crate) fn last(&self) -> Option<bool> {
        self.answer().as_ref().map(|answer| answer.guest_pulls)
    }

    /// Records whether the guest pulls the images. `process` ran before that was found out: if it has ended since, the
    /// finding is not current.
    pub(crate) fn record(&self, guest_pulls: bool, process: Process) {
        *self.answer() = Some(Answer {
            guest_pulls,
            process,
            at: Instant::now(),
            is_doubted: false,
        });
    }

    /// Has it found out again, since what the snapshotter did contradicts the finding.
    pub(crate) fn doubt(&self) {
        if let Some(answer) = &mut *self.answer() {
            answer.is_doubted = true;
        }
    }

    /// Forgets the finding.
    pub(crate) fn forget(&self) {
        *self.answer() = None;
    }

    fn answer(&self) -> MutexGuard<'_, Option<Answer>> {
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
        let finding = Finding::default();
        let first = UnixListener::bind(&path).unwrap();
        finding.record(true, Process::at(Some(path.clone())));
        assert_eq!(finding.current(), Some(true));
        tokio::time::advance(10 * UNSEEN).await;
        assert_eq!(finding.current(), Some(true));

        drop(first);
        std::fs::remove_file(&path).unwrap();
        assert_eq!(finding.current(), None);
        let _second = UnixListener::bind(&path).unwrap();
        assert_eq!(finding.current(), None);
        assert_eq!(finding.last(), Some(true));

        finding.record(false, Process::at(Some(path)));
        assert_eq!(finding.current(), Some(false));
        finding.doubt();
        assert_eq!(finding.current(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_finding_of_a_process_that_is_not_seen_holds_for_seconds() {
        let [finding, lazy] = [(); 2].map(|()| Finding::default());
        let unseen: Arc<Path> = Path::new("/does/not/exist.sock").into();
        finding.record(true, Process::at(Some(unseen.clone())));
        lazy.record(false, Process::at(Some(unseen)).if_seen());
        assert_eq!(finding.current(), Some(true));
        tokio::time::advance(UNSEEN).await;
        assert_eq!(finding.current(), None);
        assert_eq!(lazy.current(), Some(false));
    }
}
