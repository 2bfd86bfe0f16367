//! A containerd of the test's own: started, spoken to, killed, started again, and taken down without a trace.
//!
//! Each [`Lab`] has its own root, state, sockets, NRI directories and handlers; the system's containerd, if there is
//! one, is never touched. A `Lab` holds no connection, so tests with runtimes of their own can share one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::config::{self, PAUSE, Paths};
use crate::cri::Cri;
use crate::images::{self, Image};
use crate::packages::{Packages, lab_dir};
use crate::process::{Log, Process};
use crate::registry::Registry;
use crate::scratch::{CONTAINERD_SOCKET, Scratch};
use crate::store::Store;

/// How long a containerd may take to answer on CRI: it takes about a second, several at once on two cores more.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// The containerds that the tests run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Version {
    /// Debian 13's 1.7.24, with NRI 0.6.
    V1_7,
    /// Debian forky's 2.1, with NRI 0.8.
    V2_1,
}

impl Version {
    /// Both, for tests that hold on either.
    pub const ALL: [Version; 2] = [Version::V1_7, Version::V2_1];

    fn prefix(self) -> &'static str {
        match self {
            Version::V1_7 => "1.7.",
            Version::V2_1 => "2.1.",
        }
    }
}

/// A runtime handler: runc under another name, with a snapshotter of its own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Handler {
    /// What pods ask for.
    pub name: String,
    /// Its snapshotter; empty for the default one.
    pub snapshotter: String,
}

impl Handler {
    /// A handler `name` on `snapshotter`.
    pub fn new(name: &str, snapshotter: &str) -> Self {
        Self {
            name: name.to_owned(),
            snapshotter: snapshotter.to_owned(),
        }
    }
}

/// What of a containerd's configuration tests choose. Beside the handlers here there is always `runc`, the default,
/// on overlayfs.
#[derive(Debug, Clone)]
pub struct Options {
    /// The further handlers.
    pub handlers: Vec<Handler>,
    /// Whether containerd labels the snapshots that it unpacks in a pull. Its own default is that it does not.
    pub snapshot_annotations: bool,
    /// Lets `PullImage` unpack into the snapshotter of the handler that its sandbox names. 1.7 always does.
    pub pull_by_handler: bool,
    /// How long a plugin may take to answer an event; containerd's default is 2 s.
    pub request_timeout: Duration,
    /// How long a plugin may take to register; containerd's default is 5 s.
    pub registration_timeout: Duration,
    /// Plugins that containerd starts itself.
    pub launched: Vec<Launched>,
    /// TOML tables to append to the configuration.
    pub extra_config: String,
}

/// A plugin that containerd launches from its plugin directory.
#[derive(Debug, Clone)]
pub struct Launched {
    /// The executable.
    pub program: PathBuf,
    /// Two digits and a name: `10-nri-unpack`.
    pub name: String,
    /// What containerd hands to the plugin as its configuration.
    pub config: String,
}

impl Options {
    /// The handlers that the version's own snapshotters allow: `native`, and on 2.1 `erofs` as well.
    pub fn new(version: Version) -> Self {
        let mut handlers = vec![Handler::new("native", "native")];
        if version == Version::V2_1 {
            handlers.push(Handler::new("erofs", "erofs"));
        }
        Self {
            handlers,
            snapshot_annotations: false,
            pull_by_handler: false,
            request_timeout: Duration::from_secs(2),
            registration_timeout: Duration::from_secs(5),
            launched: Vec::new(),
            extra_config: String::new(),
        }
    }
}

/// A running containerd. Dropped, it takes everything with it: containers, shims, mounts, directories.
#[derive(Debug)]
pub struct Lab {
    version: Version,
    programs: PathBuf,
    path: String,
    socket: PathBuf,
    nri_socket: PathBuf,
    log: Log,
    name: String,
    daemon: Mutex<Option<Process>>,
    scratch: Scratch,
}

impl Lab {
    /// Starts a containerd with the version's own handlers, and imports its pause image.
    ///
    /// # Errors
    /// If anything that it needs is missing; the message names the remedy.
    pub async fn start(version: Version) -> Result<Lab> {
        Self::start_with(version, Options::new(version)).await
    }

    /// Starts a containerd as the options say, and imports its pause image.
    ///
    /// # Errors
    /// If anything that it needs is missing; the message names the remedy.
    pub async fn start_with(version: Version, options: Options) -> Result<Lab> {
        let name = std::thread::current()
            .name()
            .unwrap_or("lab")
            .replace("::", ".");
        let lab =
            tokio::task::spawn_blocking(move || Self::prepare(version, &options, name)).await??;
        lab.spawn().await?;
        lab.import(&images::pause(&[PAUSE])?).await?;
        Ok(lab)
    }

    /// Everything up to the daemon itself. It may download packages, so it takes what time it takes.
    fn prepare(version: Version, options: &Options, name: String) -> Result<Lab> {
        let packages = Packages::fetch()?;
        for filesystem in ["overlay", "erofs"] {
            load_filesystem(filesystem)?;
        }
        let programs = packages.containerd(version.prefix());
        let runc = packages.program("runc", "usr/sbin/runc");
        let scratch = Scratch::create(&lab_dir()?)?;
        for dir in ["tmp", "cni", "hosts", "nri/plugins", "nri/conf.d", "opt"] {
            fs::create_dir_all(scratch.path(dir))?;
        }
        let path = format!(
            "{}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
            packages.wrappers().display(),
            programs.display()
        );
        let lab = Lab {
            version,
            programs,
            path,
            socket: scratch.socket(CONTAINERD_SOCKET)?,
            nri_socket: scratch.socket("nri.sock")?,
            log: Log::new(scratch.path("containerd.log")),
            name,
            daemon: Mutex::new(None),
            scratch,
        };
        let paths = Paths {
            scratch: &lab.scratch,
            socket: &lab.socket,
            nri_socket: &lab.nri_socket,
            runc: &runc,
        };
        fs::write(
            lab.scratch.path("config.toml"),
            config::render(version, options, &paths),
        )?;
        for plugin in &options.launched {
            lab.install(plugin)?;
        }
        Ok(lab)
    }

    fn install(&self, plugin: &Launched) -> Result<()> {
        std::os::unix::fs::symlink(
            &plugin.program,
            self.scratch.path("nri/plugins").join(&plugin.name),
        )?;
        let config = self
            .scratch
            .path("nri/conf.d")
            .join(format!("{}.conf", plugin.name));
        fs::write(config, &plugin.config)?;
        Ok(())
    }

    async fn spawn(&self) -> Result<()> {
        let mut command = Command::new(self.programs.join("containerd"));
        command
            .arg("--config")
            .arg(self.scratch.path("config.toml"))
            .env_clear()
            .env("PATH", &self.path);
        let mut daemon = Process::spawn(command, self.log.clone())?;
        let ready = async |_: &Log| match Cri::connect(self).await {
            Ok(mut cri) => cri.version().await.is_ok(),
            Err(_) => false,
        };
        daemon
            .wait_until("ready on CRI", START_TIMEOUT, ready)
            .await?;
        *self.daemon() = Some(daemon);
        Ok(())
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Process>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills containerd with -9. Its containers and shims run on.
    pub fn kill(&self) {
        self.daemon().take();
    }

    /// Starts containerd again on the same state, after [`Lab::kill`] or [`Lab::stop`].
    ///
    /// # Errors
    /// If it does not come up.
    pub async fn restart(&self) -> Result<()> {
        ensure!(
            self.daemon().is_none(),
            "containerd still runs: kill or stop it first"
        );
        self.spawn().await
    }

    /// Lets containerd end by itself, as an orderly restart of its service does.
    ///
    /// # Errors
    /// If it does not end in time; it is killed then.
    pub async fn stop(&self) -> Result<()> {
        let daemon = self.daemon().take();
        if let Some(mut daemon) = daemon {
            daemon.terminate().await?;
        }
        Ok(())
    }

    /// Which containerd this is.
    pub fn version(&self) -> Version {
        self.version
    }

    /// The address of its gRPC services and of CRI.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where NRI plugins connect to.
    pub fn nri_socket(&self) -> &Path {
        &self.nri_socket
    }

    /// Its configuration file.
    pub fn config(&self) -> PathBuf {
        self.scratch.path("config.toml")
    }

    /// A path for a file of the test's own, gone with the lab.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// A path for a socket of the test's own, short enough for one.
    ///
    /// # Errors
    /// If the system's temporary directory is too deep for a socket.
    pub fn socket_path(&self, name: &str) -> Result<PathBuf> {
        self.scratch.socket(name)
    }

    /// What containerd has logged, over all restarts.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// The cgroup that pods are put below.
    pub(crate) fn cgroup(&self) -> String {
        self.scratch.cgroup()
    }

    /// A fresh CRI connection, for the caller's runtime.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub async fn cri(&self) -> Result<Cri> {
        Cri::connect(self).await
    }

    /// A fresh connection to containerd's own services, for the caller's runtime.
    ///
    /// # Errors
    /// If containerd does not answer.
    pub async fn store(&self) -> Result<Store> {
        Store::connect(&self.socket).await
    }

    /// Runs `ctr` in CRI's namespace and returns what it prints.
    ///
    /// # Errors
    /// If it fails; the message is its own.
    pub async fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.programs.join("ctr"));
        command
            .env("PATH", &self.path)
            .arg("--address")
            .arg(&self.socket)
            .args(["--namespace", "k8s.io"])
            .args(args);
        let output = tokio::task::spawn_blocking(move || command.output())
            .await?
            .context("running ctr")?;
        if !output.status.success() {
            bail!(
                "ctr {}: {}",
                args.join(" "),
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    }

    /// Imports an image with `ctr`, which unpacks it for the default snapshotter, without labels, and waits until CRI
    /// knows it.
    ///
    /// # Errors
    /// If containerd refuses the image.
    pub async fn import(&self, image: &Image) -> Result<()> {
        let archive = self.scratch.path(&format!("{}.tar", image.target.digest));
        image.write_archive(&archive)?;
        let imported = self
            .ctr(&["images", "import", &archive.display().to_string()])
            .await;
        fs::remove_file(&archive)?;
        imported?;
        let mut cri = self.cri().await?;
        for name in &image.names {
            cri.wait_for_image(name).await?;
        }
        Ok(())
    }

    /// Lets CRI pull `registry.test/…` from this registry.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn use_registry(&self, registry: &Registry) -> Result<()> {
        let dir = self.scratch.path("hosts").join(crate::registry::HOST);
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("hosts.toml"), registry.hosts_toml())?;
        Ok(())
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.kill();
        let version = self.version.prefix().trim_end_matches('.');
        let kept = self
            .scratch
            .keep_log(self.log.path(), &format!("{}-{version}", self.name));
        if std::thread::panicking() {
            match &kept {
                Ok(path) => eprintln!(
                    "lab: the end of {}:\n{}",
                    path.display(),
                    Log::new(path.clone()).tail()
                ),
                Err(error) => eprintln!("lab: containerd's log is lost: {error:#}"),
            }
        }
        if let Err(error) = self.scratch.clear() {
            eprintln!("lab: {error:#}");
        }
    }
}

/// Makes sure that the kernel has a file system; a module is loaded on first need on most machines.
fn load_filesystem(name: &str) -> Result<()> {
    let known = || {
        let list = fs::read_to_string("/proc/filesystems").unwrap_or_default();
        list.lines()
            .any(|line| line.split_whitespace().last() == Some(name))
    };
    if known() {
        return Ok(());
    }
    let _ = Command::new("modprobe").arg(name).output();
    ensure!(
        known(),
        "this kernel has no {name} file system, and `modprobe {name}` does not bring it"
    );
    Ok(())
}
