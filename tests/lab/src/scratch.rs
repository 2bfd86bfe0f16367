//! The directories of one containerd, and the promise that nothing outlives them: no process, no mount, no cgroup.
//!
//! A scratch is found again by a lock that its owner holds: one whose owner was killed is swept by the next start.
//! Knows where shims and containers leave traces; does not know how a containerd is configured or started.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::{FlockOperation, flock, statfs};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::images::digest;

/// `f_type` of overlayfs, on which another overlayfs cannot keep its upper directories.
const OVERLAYFS_MAGIC: i64 = 0x794c_7630;

/// The longest path of a unix socket, from `sockaddr_un`: 108 bytes with the final zero.
const SOCKET_PATH_MAX: usize = 107;

/// How long killed processes may take to go, and their mounts with them.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(10);

/// The name of containerd's socket in a scratch.
pub(crate) const CONTAINERD_SOCKET: &str = "containerd.sock";

/// Where every containerd's shims listen; not configurable.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// How many logs of past runs are kept.
const LOGS_KEPT: usize = 50;

/// A containerd's own corner of the machine.
#[derive(Debug)]
pub(crate) struct Scratch {
    /// Unique on this machine: names the directories and the cgroup.
    id: String,
    /// Everything but sockets; on the disk of the checkout.
    dir: PathBuf,
    /// Sockets only, below the system's temporary directory: a checkout's path may be too long for them.
    sockets: PathBuf,
    /// Held as long as this scratch is in use; the kernel lets go of it however the process ends.
    _lock: File,
}

impl Scratch {
    /// Makes fresh directories below `lab`, after sweeping those whose owners are gone.
    pub(crate) fn create(lab: &Path) -> Result<Self> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        sweep(lab)?;
        let id = format!(
            "{}-{}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let dir = lab.join(format!("run-{id}"));
        fs::create_dir_all(&dir).with_context(|| format!("creating {}", dir.display()))?;
        ensure!(
            statfs(&dir)?.f_type != OVERLAYFS_MAGIC,
            "{} is on overlayfs, where containerd's overlayfs snapshotter cannot work: set NRI_UNPACK_LAB to a \
             directory on a disk",
            lab.display()
        );
        let lock = lock(&dir)?.context("the directory of a new run is locked already")?;
        let sockets = sockets_dir(&id);
        fs::create_dir_all(&sockets)?;
        Ok(Self {
            id,
            dir,
            sockets,
            _lock: lock,
        })
    }

    /// A path for a file or a directory.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A path for a socket.
    pub(crate) fn socket(&self, name: &str) -> Result<PathBuf> {
        let path = self.sockets.join(name);
        ensure!(
            path.as_os_str().len() <= SOCKET_PATH_MAX,
            "{} is too long for a unix socket: set TMPDIR to a shorter directory",
            path.display()
        );
        Ok(path)
    }

    /// The cgroup that pods are put below, as CRI wants it.
    pub(crate) fn cgroup(&self) -> String {
        cgroup(&self.id)
    }

    /// Takes everything away. What cannot go is an error, and stays to be seen.
    pub(crate) fn clear(&self) -> Result<()> {
        clear(&self.id, &self.dir)
    }

    /// Moves a log out of the scratch, into `logs` beside it, where the last ones are kept.
    pub(crate) fn keep_log(&self, log: &Path, name: &str) -> Result<PathBuf> {
        let logs = self.dir.with_file_name("logs");
        fs::create_dir_all(&logs)?;
        let kept = logs.join(format!("{name}-{}.log", self.id));
        fs::rename(log, &kept)?;
        let mut old: Vec<_> = fs::read_dir(&logs)?
            .flatten()
            .filter_map(|e| Some((e.metadata().ok()?.modified().ok()?, e.path())))
            .collect();
        old.sort();
        for (_, path) in old.iter().rev().skip(LOGS_KEPT) {
            let _ = fs::remove_file(path);
        }
        Ok(kept)
    }
}

fn sockets_dir(id: &str) -> PathBuf {
    std::env::temp_dir().join(format!("nri-lab-{id}"))
}

fn cgroup(id: &str) -> String {
    format!("/nri-lab-{id}")
}

/// Takes the lock of a run's directory; `None` if its owner is alive.
fn lock(dir: &Path) -> Result<Option<File>> {
    let file = File::create(dir.join("lock"))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Clears the runs whose owners were killed before they could.
fn sweep(lab: &Path) -> Result<()> {
    let Ok(entries) = fs::read_dir(lab) else {
        return Ok(());
    };
    for dir in entries.flatten().map(|e| e.path()) {
        let Some(id) = dir
            .file_name()
            .and_then(|n| n.to_str())
            .and_then(|n| n.strip_prefix("run-"))
        else {
            continue;
        };
        // Another process may sweep it first, then it is gone.
        if let Ok(Some(_lock)) = lock(&dir) {
            eprintln!(
                "lab: clearing {}, left by a run that was killed",
                dir.display()
            );
            clear(id, &dir)?;
        }
    }
    Ok(())
}

fn clear(id: &str, dir: &Path) -> Result<()> {
    let shim_sockets = shim_sockets(&dir.join("state"), &sockets_dir(id).join(CONTAINERD_SOCKET));
    let deadline = Instant::now() + CLEAR_TIMEOUT;
    loop {
        let processes = processes_of(id, dir);
        if processes.is_empty() {
            break;
        }
        ensure!(
            Instant::now() < deadline,
            "processes {processes:?} of {} do not die",
            dir.display()
        );
        for pid in processes {
            let _ = kill_process(pid, Signal::KILL);
        }
        std::thread::sleep(crate::process::POLL);
    }
    // The latest mount first: it may lie on an earlier one.
    for mount in mounts_below(dir)?.iter().rev() {
        unmount(mount, UnmountFlags::DETACH)
            .with_context(|| format!("unmounting {}", mount.display()))?;
    }
    for directory in cgroup_dirs(id) {
        remove_cgroup(&directory, deadline)
            .with_context(|| format!("removing {}", directory.display()))?;
    }
    for path in shim_sockets {
        let _ = fs::remove_file(path);
    }
    remove_all(&sockets_dir(id))?;
    remove_all(dir)
}

fn remove_all(dir: &Path) -> Result<()> {
    match fs::remove_dir_all(dir) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", dir.display()))
        }
        _ => Ok(()),
    }
}

/// Whatever belongs to a run: the processes in its pods' cgroups, those that run from its directory (plugins that
/// containerd launched), and those of the lab's packages that were told a path of its directories (the daemon, its
/// shims, what they execute). Nobody else's `tail -f` of a log here is among them.
fn processes_of(id: &str, dir: &Path) -> Vec<Pid> {
    let sockets = sockets_dir(id);
    let packages = dir.with_file_name("packages");
    let belongs = |arg: &[u8]| {
        let path = Path::new(OsStr::from_bytes(arg));
        path.starts_with(dir) || path.starts_with(&sockets)
    };
    let mut found: Vec<Pid> = cgroup_dirs(id)
        .iter()
        .flat_map(|d| cgroup_processes(d))
        .collect();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(number) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else {
            continue;
        };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        let mut arguments = command.split(|&byte| byte == 0);
        let from_here = arguments.next().is_some_and(belongs);
        let ours =
            fs::read_link(entry.path().join("exe")).is_ok_and(|exe| exe.starts_with(&packages));
        if from_here || (ours && arguments.any(belongs)) {
            found.extend(Pid::from_raw(number));
        }
    }
    found
}

/// The run's cgroup in every hierarchy: one on a machine with cgroup v2, one for each controller before that.
fn cgroup_dirs(id: &str) -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let name = cgroup(id);
    let name = name.trim_start_matches('/');
    let hierarchies = fs::read_dir(root)
        .into_iter()
        .flatten()
        .flatten()
        .map(|e| e.path());
    std::iter::once(root.to_owned())
        .chain(hierarchies)
        .map(|h| h.join(name))
        .filter(|d| d.is_dir())
        .collect()
}

fn cgroup_processes(dir: &Path) -> Vec<Pid> {
    let own = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let own = own
        .lines()
        .filter_map(|l| Pid::from_raw(l.parse().ok()?))
        .collect::<Vec<_>>();
    let below = subdirectories(dir)
        .into_iter()
        .flat_map(|d| cgroup_processes(&d));
    own.into_iter().chain(below).collect()
}

/// Removes a cgroup from its leaves up. One whose last process has just been killed stays busy for a moment.
fn remove_cgroup(dir: &Path, deadline: Instant) -> io::Result<()> {
    for below in subdirectories(dir) {
        remove_cgroup(&below, deadline)?;
    }
    loop {
        match fs::remove_dir(dir) {
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(crate::process::POLL);
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            done => return done,
        }
    }
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// Mount points below a directory, in the order in which they were made.
pub(crate) fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table =
        fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    // The lab's own paths hold nothing that the kernel would escape here.
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

/// Where the shims of a containerd listen: in a directory that all containerds of a machine share, whatever their own
/// state directory is, under the digest of the task's path: containerd's socket, namespace, id. A shim told to debug
/// has a second one.
fn shim_sockets(state: &Path, containerd: &Path) -> Vec<PathBuf> {
    let namespaces = subdirectories(&state.join("io.containerd.runtime.v2.task"));
    let tasks = namespaces
        .iter()
        .flat_map(|namespace| subdirectories(namespace));
    tasks
        .filter_map(|bundle| {
            let mut names = bundle.iter().rev();
            let (id, namespace) = (names.next()?, names.next()?);
            Some(containerd.join(namespace).join(id))
        })
        .flat_map(|task| [task.clone(), task.join("debug")])
        .map(|path| {
            let digest = digest(path.as_os_str().as_bytes());
            Path::new(SHIM_SOCKETS).join(digest.trim_start_matches("sha256:"))
        })
        .collect()
}
