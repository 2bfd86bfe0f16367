//! The directories of one run: they are created, locked and removed, and found by the next run if the owner was
//! killed.
//!
//! The owner of a run holds a lock on its directory. If the next run gets the lock, the owner has ended, and
//! the next run removes what is left. [`crate::traces`] knows what there is to remove.

use std::fs::{self, File};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock, statfs};

use crate::dir::lab_dir;
use crate::images::digest;
use crate::log::Log;
use crate::traces::Traces;

/// `f_type` of overlayfs, which cannot hold the upper directories of another overlayfs.
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// The maximum length of a unix socket's path: `sockaddr_un` has 108 bytes with the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// The number of logs of past runs that are kept: enough for a whole test run and a few repetitions of a
/// failing test.
const LOGS_KEPT: usize = 100;

/// The prefix of the name of every run's directory.
const PREFIX: &str = "run-";

/// containerd's root and state in a run's directory, or links to them.
const ROOT: &str = "root";
pub(crate) const STATE: &str = "state";

/// The link in a run's directory to the directory of root and state, if it is elsewhere.
pub(crate) const ELSEWHERE: &str = "elsewhere";

/// The link in a run's directory to the directory of its sockets.
const SOCKETS: &str = "sockets";

/// Directories, a cgroup and mounts for one daemon and its child processes. Dropping it removes them. A struct
/// that holds it together with a process declares the process first, so that the process is dropped first.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// The owner's name in the names of kept logs.
    name: String,
    /// Unique on this machine: names the directories and the cgroup, and marks the processes.
    id: String,
    /// Everything but sockets, on the disk of the checkout.
    dir: PathBuf,
    /// Sockets only, below the system's temporary directory: the path of a checkout may be too long for
    /// sockets.
    sockets: PathBuf,
    /// Held while this scratch is in use; the kernel releases it when the process ends for any reason.
    _lock: File,
}

impl Scratch {
    /// Creates new directories, after removing those of owners that have ended.
    pub(crate) fn create(name: String) -> Result<Self> {
        let lab = lab_dir()?;
        ensure!(
            statfs(&lab)?.f_type != OVERLAYFS_MAGIC,
            "{} is on overlayfs, where containerd's overlayfs snapshotter cannot work: set NRI_UNPACK_LAB to a \
             directory on a disk",
            lab.display()
        );
        let _turn = lock_all_runs(&lab)?;
        sweep_in(&lab)?;
        let id = unique_id(&lab);
        let dir = lab.join(format!("{PREFIX}{id}"));
        fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let lock = lock(&dir)?.context("the directory of a new run is locked already")?;
        let sockets = std::env::temp_dir().join(format!("nri-lab-{id}"));
        symlink(&sockets, dir.join(SOCKETS))?;
        fs::create_dir(&sockets).with_context(|| format!("creating {}", sockets.display()))?;
        Ok(Self {
            name,
            id,
            dir,
            sockets,
            _lock: lock,
        })
    }

    /// Returns the ID that marks the run's processes.
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns a path for a file or a directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Returns a path for a socket.
    pub(crate) fn socket(&self, name: &str) -> Result<PathBuf> {
        let path = self.sockets.join(name);
        ensure!(
            path.as_os_str().len() <= SOCKET_PATH_MAX,
            "{} is too long for a unix socket: set TMPDIR to a shorter directory",
            path.display()
        );
        Ok(path)
    }

    /// Creates the directories for containerd's root and state, and returns the path under which containerd
    /// knows its root.
    pub(crate) fn make_root(
        &self,
        below: Option<&Path>,
        seen_by_services: bool,
    ) -> Result<PathBuf> {
        let mut root = self.dir.join(ROOT);
        if let Some(below) = below {
            let elsewhere = below.join(format!("nri-lab-root-{}", self.id));
            symlink(&elsewhere, self.dir.join(ELSEWHERE))?;
            // The users of a pod's namespace need access to the files below it.
            fs::create_dir(&elsewhere)
                .with_context(|| format!("creating {}", elsewhere.display()))?;
            for name in [ROOT, STATE] {
                let there = elsewhere.join(name);
                fs::create_dir(&there)?;
                symlink(&there, self.dir.join(name))?;
            }
            root = elsewhere.join(ROOT);
        } else {
            fs::create_dir(&root).with_context(|| format!("creating {}", root.display()))?;
        }
        if !seen_by_services {
            return Ok(root);
        }
        let seen = root_for_services(&self.id);
        symlink(&root, &seen).with_context(|| format!("creating {}", seen.display()))?;
        Ok(seen)
    }

    /// Returns what this run can leave on the machine.
    pub(crate) fn traces(&self) -> Traces<'_> {
        Traces {
            id: &self.id,
            dir: &self.dir,
            sockets: &self.sockets,
        }
    }

    /// Moves the run's logs from its directory to `logs` beside it, and returns their new paths. Removes the
    /// oldest logs there.
    fn keep_logs(&self) -> Result<Vec<Log>> {
        let logs = self.dir.with_file_name("logs");
        fs::create_dir_all(&logs)?;
        let mut kept = Vec::new();
        for log in files(&self.dir)?
            .into_iter()
            .filter(|f| f.extension().is_some_and(|e| e == "log"))
        {
            let file = log
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            let place = logs.join(format!("{}-{}-{file}", self.name, self.id));
            fs::rename(&log, &place)?;
            kept.push(Log::new(place));
        }
        let mut by_age: Vec<_> = files(&logs)?
            .into_iter()
            .filter_map(|f| Some((f.metadata().ok()?.modified().ok()?, f)))
            .collect();
        by_age.sort();
        for (_, old) in by_age.iter().rev().skip(LOGS_KEPT) {
            let _ = fs::remove_file(old); // Another process may be at the same.
        }
        Ok(kept)
    }
}

impl Drop for Scratch {
    /// Ends the run: keeps its logs, prints them if its test is failing, and removes everything else.
    ///
    /// # Panics
    /// If something remains and the test is not failing: a user would have to remove it.
    fn drop(&mut self) {
        let failing = std::thread::panicking();
        match self.keep_logs() {
            Ok(logs) if failing => logs.iter().for_each(|log| eprintln!("lab: {}", log.show())),
            Ok(_) => {}
            Err(error) => eprintln!("lab: the logs are lost: {error:#}"),
        }
        match self.traces().clear() {
            Err(error) if failing => eprintln!("lab: {error:#}"),
            cleared => cleared.expect("a run that leaves nothing behind"),
        }
    }
}

/// Removes what killed runs have left. Every new run does this; this function is for a cleanup without another
/// run.
///
/// # Errors
/// If something cannot be removed; the message names it.
pub fn sweep() -> Result<()> {
    let lab = lab_dir()?;
    let _turn = lock_all_runs(&lab)?;
    sweep_in(&lab)
}

fn sweep_in(lab: &Path) -> Result<()> {
    for dir in files(lab)? {
        let name = dir
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let Some(id) = name.strip_prefix(PREFIX) else {
            continue;
        };
        // The owner removes its directory while it holds its own lock, but not the lock of [`lock_all_runs`]: the
        // directory may be missing.
        let Ok(Some(_lock)) = lock(&dir) else {
            continue;
        };
        eprintln!(
            "lab: clearing {}, left by a run that was killed",
            dir.display()
        );
        let sockets = fs::read_link(dir.join(SOCKETS)).unwrap_or_else(|_| dir.join(SOCKETS));
        Traces {
            id,
            dir: &dir,
            sockets: &sockets,
        }
        .clear()?;
    }
    Ok(())
}

/// Returns a lock that keeps other processes from creating or removing run directories. Without it, a new
/// directory could be removed before its owner has locked it.
fn lock_all_runs(lab: &Path) -> Result<File> {
    let file = File::create(lab.join("runs.lock"))?;
    flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Takes the lock of a run's directory; returns `None` if its owner is alive. The lock is on the directory
/// itself: a lock file would be removed, and its lock released, while the owner still removes the rest.
fn lock(dir: &Path) -> Result<Option<File>> {
    let file = File::open(dir)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Returns a link to a run's root that no unit's sandbox hides.
pub(crate) fn root_for_services(id: &str) -> PathBuf {
    PathBuf::from(format!("/run/nri-lab-{id}"))
}

/// Returns eight hexadecimal digits: short because of the sockets, and unique for each process, checkout and
/// call.
fn unique_id(lab: &Path) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let source = format!(
        "{} {} {count} {:?}",
        lab.display(),
        std::process::id(),
        SystemTime::now()
    );
    digest(source.as_bytes())["sha256:".len()..][..8].to_owned()
}

fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("reading {}", dir.display()))?;
    Ok(entries.flatten().map(|e| e.path()).collect())
}
