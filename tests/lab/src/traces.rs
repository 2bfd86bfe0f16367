//! What a run can leave on a machine, and its removal: processes, mounts, cgroups, sockets, directories.
//!
//! It needs only the run's ID and directories, so it can also clean up after a killed owner.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};

use crate::images::digest;
use crate::process::POLL;
use crate::scratch::{ELSEWHERE, root_for_services};

/// The timeout until killed processes have ended and their cgroups can be removed.
const CLEAR_TIMEOUT: Duration = Duration::from_secs(10);

/// The environment variable that marks the processes of a run with its ID; child processes inherit it.
pub(crate) const MARK: &str = "NRI_UNPACK_LAB_RUN";

/// The name of containerd's socket.
pub(crate) const CONTAINERD_SOCKET: &str = "containerd.sock";

/// The socket directory of the shims of every containerd; it does not depend on containerd's state directory.
const SHIM_SOCKETS: &str = "/run/containerd/s";

/// The places where a run leaves something.
pub(crate) struct Traces<'a> {
    pub(crate) id: &'a str,
    pub(crate) dir: &'a Path,
    pub(crate) sockets: &'a Path,
}

impl Traces<'_> {
    /// Returns the cgroup for the run's pods, in the form of CRI.
    pub(crate) fn cgroup(&self) -> String {
        format!("/nri-lab-{}", self.id)
    }

    /// Removes everything. Returns an error for what cannot be removed.
    pub(crate) fn clear(&self) -> Result<()> {
        let deadline = Instant::now() + CLEAR_TIMEOUT;
        let shim_sockets = self.shim_sockets();
        self.kill_processes(deadline)?;
        let elsewhere = fs::read_link(self.dir.join(ELSEWHERE)).ok();
        let elsewhere = elsewhere.as_deref();
        // The latest mount first: it may be below an earlier one.
        for dir in [self.dir, self.sockets].into_iter().chain(elsewhere) {
            for mount in mounts_below(dir)?.iter().rev() {
                unmount(mount, UnmountFlags::DETACH)
                    .with_context(|| format!("unmounting {}", mount.display()))?;
            }
        }
        for cgroup in self.cgroup_dirs() {
            remove_cgroup(&cgroup, deadline)
                .with_context(|| format!("removing {}", cgroup.display()))?;
        }
        for socket in shim_sockets {
            let _ = fs::remove_file(socket); // Most are gone, or never were.
        }
        let _ = fs::remove_file(root_for_services(self.id)); // Few runs have it.
        if let Some(elsewhere) = elsewhere {
            remove_dir(elsewhere, deadline)?;
        }
        remove_dir(self.sockets, deadline)?;
        remove_dir(self.dir, deadline)
    }

    /// Kills processes until none is left: a process that is just being started is found in a later round.
    fn kill_processes(&self, deadline: Instant) -> Result<()> {
        loop {
            let processes = self.processes();
            if processes.is_empty() {
                return Ok(());
            }
            ensure!(
                Instant::now() < deadline,
                "processes do not die: {processes:?}"
            );
            for pid in processes {
                let _ = kill_process(pid, Signal::KILL); // Gone already is as good.
            }
            std::thread::sleep(POLL);
        }
    }

    /// Returns the processes in the pods' cgroups, the processes with the run's mark (the daemon, its shims and
    /// their children), and those that run from its directory: plugins that containerd launches, with an
    /// environment of their own.
    fn processes(&self) -> Vec<Pid> {
        let mark = format!("{MARK}={}", self.id);
        let is_marked = |variable: &[u8]| variable == mark.as_bytes();
        let is_here = |program: &[u8]| Path::new(OsStr::from_bytes(program)).starts_with(self.dir);
        let mut found: Vec<Pid> = self
            .cgroup_dirs()
            .iter()
            .flat_map(|d| cgroup_processes(d))
            .collect();
        for process in subdirectories(Path::new("/proc")) {
            let number = process.file_name().and_then(|n| n.to_str()?.parse().ok());
            let Some(pid) = number.and_then(Pid::from_raw) else {
                continue;
            };
            let strings = |file: &str| fs::read(process.join(file)).unwrap_or_default();
            let marked = strings("environ").split(|&byte| byte == 0).any(is_marked);
            let from_here = strings("cmdline")
                .split(|&byte| byte == 0)
                .next()
                .is_some_and(is_here);
            if marked || from_here {
                found.push(pid);
            }
        }
        found
    }

    /// Returns the run's cgroup in every hierarchy: one with cgroup v2, one for each controller with v1.
    fn cgroup_dirs(&self) -> Vec<PathBuf> {
        let root = PathBuf::from("/sys/fs/cgroup");
        let name = self.cgroup();
        let hierarchies = fs::read_dir(&root)
            .into_iter()
            .flatten()
            .flatten()
            .map(|e| e.path());
        let hierarchies = hierarchies.chain([root]);
        hierarchies
            .map(|h| h.join(name.trim_start_matches('/')))
            .filter(|d| d.is_dir())
            .collect()
    }

    /// Returns the sockets of the run's shims. Their names are digests of containerd's socket, the namespace
    /// and the task; a shim with debug logs has a second socket.
    fn shim_sockets(&self) -> Vec<PathBuf> {
        let namespaces = subdirectories(&self.dir.join("state/io.containerd.runtime.v2.task"));
        let tasks = namespaces
            .iter()
            .flat_map(|namespace| subdirectories(namespace));
        tasks
            .filter_map(|task| {
                let mut names = task.iter().rev();
                let (id, namespace) = (names.next()?, names.next()?);
                Some(
                    self.sockets
                        .join(CONTAINERD_SOCKET)
                        .join(namespace)
                        .join(id),
                )
            })
            .flat_map(|task| [task.join("debug"), task])
            .map(|path| {
                let digest = digest(path.as_os_str().as_bytes());
                Path::new(SHIM_SOCKETS).join(digest.trim_start_matches("sha256:"))
            })
            .collect()
    }
}

fn cgroup_processes(dir: &Path) -> Vec<Pid> {
    let list = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    let own = list
        .lines()
        .filter_map(|line| Pid::from_raw(line.parse().ok()?));
    own.chain(
        subdirectories(dir)
            .iter()
            .flat_map(|below| cgroup_processes(below)),
    )
    .collect()
}

/// Removes a cgroup and those below it. A cgroup stays busy for a moment after its last process was killed.
fn remove_cgroup(dir: &Path, deadline: Instant) -> io::Result<()> {
    for below in subdirectories(dir) {
        remove_cgroup(&below, deadline)?;
    }
    loop {
        match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline =>
            {
                std::thread::sleep(POLL);
            }
            done => return done,
        }
    }
}

/// Returns the mount points below a directory, in the order of their creation.
fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>> {
    let table =
        fs::read_to_string("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let points = table
        .lines()
        .filter_map(|line| line.split(' ').nth(4))
        .map(PathBuf::from);
    Ok(points.filter(|point| point.starts_with(dir)).collect())
}

fn subdirectories(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| e.path())
        .collect()
}

/// Removes a directory. A killed process is no longer listed while its last threads end, and one of them may
/// just have created a file.
fn remove_dir(dir: &Path, deadline: Instant) -> Result<()> {
    loop {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error)
                if error.kind() == io::ErrorKind::DirectoryNotEmpty
                    && Instant::now() < deadline =>
            {
                std::thread::sleep(POLL);
            }
            done => return done.with_context(|| format!("removing {}", dir.display())),
        }
    }
}
