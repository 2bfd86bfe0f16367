//! A systemd that is separate from the machine's, on which tests try units, packages and the plugin's service.
//! No change remains.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::containerd::Lab;
use crate::log::Log;
use crate::process::Process;
use crate::traces::CONTAINERD_SOCKET;

/// The script that creates the namespaces and executes systemd.
const BOOT: &str = include_str!("boot");

/// The timeout of the boot, which takes half a second, or longer on a loaded machine.
const BOOT_TIMEOUT: Duration = Duration::from_secs(30);

/// A booted systemd beside a lab, with the lab's containerd at the usual paths. Dropping it kills all its
/// processes.
#[derive(Debug)]
pub struct Systemd {
    /// The first process of its namespaces.
    init: u32,
    _process: Process,
}

impl Systemd {
    /// Boots systemd.
    ///
    /// # Errors
    /// If systemd or a file system for its cgroups is missing on this machine; the log names it.
    pub async fn boot(lab: &Lab) -> Result<Self> {
        let scratch = lab.scratch();
        let boot = scratch.path("boot");
        fs::write(&boot, BOOT)?;
        fs::set_permissions(&boot, fs::Permissions::from_mode(0o755))?;
        let dir = scratch.path("systemd");
        fs::create_dir(&dir)?;
        let mut command = Command::new(boot);
        command
            .arg(cgroup(&scratch.traces().cgroup())?)
            .arg(&dir)
            .arg(lab.root())
            .arg(
                lab.socket()
                    .parent()
                    .context("a socket is in a directory")?,
            );
        let log = Log::new(scratch.path("systemd.log"));
        let mut process = Process::spawn(command, scratch.id(), log)?;
        let unshare = process.pid();
        let up = async |_: &Log| {
            child(unshare).is_some_and(|init| {
                let state = command_inside(init, "systemctl", &["is-system-running"]).output();
                state.is_ok_and(|it| [&b"running\n"[..], b"degraded\n"].contains(&&*it.stdout))
            })
        };
        process.wait_until("booted", BOOT_TIMEOUT, up).await?;
        let systemd = Self {
            init: child(unshare).context("systemd has ended")?,
            _process: process,
        };
        systemd.link_containerd(lab)?;
        Ok(systemd)
    }

    /// Puts containerd at the paths of a node.
    fn link_containerd(&self, lab: &Lab) -> Result<()> {
        for (directory, name, socket) in [
            ("containerd", CONTAINERD_SOCKET, lab.socket()),
            ("nri", "nri.sock", lab.nri_socket()),
        ] {
            let directory = self.path("run").join(directory);
            fs::create_dir_all(&directory)?;
            // A path that services with a private /tmp can see.
            let sockets = self.path("run/lab");
            if !sockets.exists() {
                fs::create_dir(&sockets)?;
                let from = socket.parent().context("a socket is in a directory")?;
                let from = from.display().to_string();
                self.ok("mount", &["--bind", &from, "/run/lab"])?;
            }
            std::os::unix::fs::symlink(Path::new("/run/lab").join(name), directory.join(name))?;
        }
        fs::create_dir_all(self.path("etc/containerd"))?;
        fs::copy(lab.config(), self.path("etc/containerd/config.toml"))?;
        Ok(())
    }

    /// Returns a path of its file system, for use in this process.
    pub fn path(&self, path: &str) -> PathBuf {
        PathBuf::from(format!("/proc/{}/root", self.init)).join(path.trim_start_matches('/'))
    }

    /// Runs a program in its namespaces.
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn run(&self, program: &str, arguments: &[&str]) -> Result<Output> {
        let output = command_inside(self.init, program, arguments).output();
        output.with_context(|| format!("running {program}"))
    }

    /// Runs a program that must succeed, and returns its output.
    ///
    /// # Errors
    /// If the program fails.
    pub fn ok(&self, program: &str, arguments: &[&str]) -> Result<String> {
        let output = self.run(program, arguments)?;
        ensure!(
            output.status.success(),
            "{program} {arguments:?}: {output:?}"
        );
        Ok(String::from_utf8(output.stdout)?)
    }
}

fn command_inside(init: u32, program: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("nsenter");
    command
        .arg(format!("--target={init}"))
        .args([
            "--mount", "--pid", "--uts", "--ipc", "--cgroup", "--root", "--wd", "--",
        ])
        .arg(program)
        .args(arguments)
        .env("PATH", "/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

/// Returns the only child of `unshare`.
fn child(unshare: u32) -> Option<u32> {
    let children = format!("/proc/{unshare}/task/{unshare}/children");
    fs::read_to_string(children).ok()?.trim().parse().ok()
}

/// Creates a cgroup for it, below that of the run, in the version 2 hierarchy, also if hierarchies of version 1
/// exist.
fn cgroup(run: &str) -> Result<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];
    let root = roots
        .iter()
        .find(|root| Path::new(root).join("cgroup.controllers").exists());
    let root =
        root.context("no cgroup2 at /sys/fs/cgroup or /sys/fs/cgroup/unified: mount one there")?;
    Ok(Path::new(root)
        .join(run.trim_start_matches('/'))
        .join("systemd"))
}
