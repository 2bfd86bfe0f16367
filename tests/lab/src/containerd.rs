//! A containerd for one test: it can be started, called, killed, restarted and removed completely.
//!
//! Each [`Lab`] has its own root, state, sockets, NRI directories and handlers, and never touches the system's
//! containerd. A `Lab` holds no connection, so tests with runtimes of their own can share one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use rustix::mount::{MountPropagationFlags, mount_bind_recursive, mount_change};
use rustix::process::Signal;

use crate::blockfile;
use crate::config::{self, PAUSE, Paths};
use crate::cri::Cri;
use crate::disk::{self, Disk};
use crate::images::{self, Image};
use crate::log::Log;
use crate::nydus;
use crate::options::{Launched, Options, Remote, Version};
use crate::packages::Packages;
use crate::process::{GARBAGE_PERCENT, Process};
use crate::proxy::ProxySnapshotter;
use crate::registry::Registry;
use crate::scratch::{STATE, Scratch};
use crate::soci;
use crate::stargz;
use crate::store::Store;
use crate::traces::CONTAINERD_SOCKET;
use crate::tree::{self, Tree};

/// The timeout for containerd's first CRI response. It takes about a second, or longer if several start on two
/// cores.
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// A running containerd. Dropping it removes everything: containers, shims, mounts, directories.
#[derive(Debug)]
pub struct Lab {
    /// The first to end: a containerd whose disk hangs does not end.
    disk: Option<Disk>,
    version: Version,
    programs: PathBuf,
    path: String,
    root: PathBuf,
    socket: PathBuf,
    nri_socket: PathBuf,
    log: Log,
    daemon: Mutex<Option<Process>>,
    remotes: Vec<ProxySnapshotter>,
    tree: Option<Tree>,
    scratch: Scratch,
}

impl Lab {
    /// Starts a containerd with the version's own handlers, and imports its pause image.
    ///
    /// # Errors
    /// If a dependency is missing; the message names the remedy.
    pub async fn start(version: Version) -> Result<Lab> {
        Self::start_with(version, Options::new(version)).await
    }

    /// Starts a containerd with these options, and imports its pause image.
    ///
    /// # Errors
    /// If a dependency is missing; the message names the remedy.
    pub async fn start_with(version: Version, options: Options) -> Result<Lab> {
        let test = std::thread::current()
            .name()
            .unwrap_or("lab")
            .replace("::", ".");
        let name = format!("{test}-{}", version.prefix().trim_end_matches('.'));
        let lab =
            tokio::task::spawn_blocking(move || Self::prepare(version, &options, name)).await??;
        for remote in &lab.remotes {
            remote.restart().await?;
        }
        lab.spawn().await?;
        let pause = lab.tree.as_ref().map_or(PAUSE, |tree| tree.pause);
        lab.import(&images::pause(&[pause])?).await?;
        Ok(lab)
    }

    /// Does everything up to the start of the daemon. There is no timeout, because it may download packages.
    fn prepare(version: Version, options: &Options, name: String) -> Result<Lab> {
        let packages = Packages::fetch()?;
        for name in version.file_systems() {
            load_file_system(name)?;
        }
        let programs = packages.containerd(version.prefix());
        let runc = packages.program("runc", "usr/sbin/runc");
        let scratch = Scratch::create(name)?;
        for dir in ["tmp", "cni", "hosts", "nri/plugins", "nri/conf.d", "opt"] {
            fs::create_dir_all(scratch.path(dir))?;
        }
        let remotes = options.remotes.iter().map(|remote| match remote {
            Remote::Nydus => nydus::prepare(&scratch),
            Remote::Soci => soci::prepare(&scratch),
            Remote::Stargz => stargz::prepare(&scratch),
        });
        let remotes = remotes.collect::<Result<Vec<_>>>()?;
        // The configuration of a tree does not name the path of runc.
        let path = format!(
            "{}:{}:{}:{}:/usr/sbin:/usr/bin:/sbin:/bin",
            nydus::guest_dir(&scratch).display(),
            packages.wrappers().display(),
            programs.display(),
            runc.parent().unwrap_or(&runc).display(),
        );
        let root = match &options.tree {
            Some(tree) => tree::path(&scratch).join(tree.root.trim_start_matches('/')),
            None => {
                scratch.make_root(options.root_below.as_deref(), options.root_seen_by_services)?
            }
        };
        let mut lab = Lab {
            disk: None,
            version,
            programs,
            path,
            root,
            socket: scratch.socket(CONTAINERD_SOCKET)?,
            nri_socket: scratch.socket("nri.sock")?,
            log: Log::new(scratch.path("containerd.log")),
            daemon: Mutex::new(None),
            remotes,
            tree: options.tree.clone(),
            scratch,
        };
        if let Some(tree) = &lab.tree {
            fs::write(lab.config(), tree.make(&lab.scratch)?)?;
            return Ok(lab);
        }
        match options.root_size {
            Some(size) if options.root_can_hang => {
                lab.disk = Some(disk::mount_that_can_hang(&lab.scratch, &lab.root, size)?);
            }
            Some(size) => disk::mount(&lab.scratch, &lab.root, size)?,
            None => {}
        }
        let mut snapshotters: String = lab.remotes.iter().map(ProxySnapshotter::table).collect();
        if options
            .all_handlers()
            .any(|h| h.snapshotter == blockfile::NAME)
        {
            snapshotters += &blockfile::prepare(&lab.scratch)?;
        }
        // Mounts in this directory are made below the real path.
        let state = lab.scratch.path(STATE);
        let state = fs::read_link(&state).unwrap_or(state);
        let paths = Paths {
            scratch: &lab.scratch,
            root: &lab.root,
            state: &state,
            socket: &lab.socket,
            nri_socket: &lab.nri_socket,
            runc: &runc,
            snapshotters,
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
        let ready = async |_: &Log| match Cri::connect(self).await {
            Ok(mut cri) => cri.version().await.is_ok(),
            Err(_) => false,
        };
        self.spawn_until("ready on CRI", ready).await
    }

    async fn spawn_until(&self, what: &str, ready: impl AsyncFn(&Log) -> bool) -> Result<()> {
        self.spawn_with(&self.path, what, ready).await
    }

    /// Like [`Self::spawn_until`], with this PATH.
    async fn spawn_with(
        &self,
        path: &str,
        what: &str,
        ready: impl AsyncFn(&Log) -> bool,
    ) -> Result<()> {
        let containerd = self.programs.join("containerd");
        let mut command = match &self.tree {
            None => Command::new(containerd),
            Some(tree) => {
                let sockets = self.socket.parent().context("a socket is in a directory")?;
                let mut words = tree.enter(&self.scratch, sockets)?.into_iter();
                let mut enter = Command::new(words.next().context("no script")?);
                enter.args(words).arg(containerd).args(tree.arguments);
                enter
            }
        };
        command
            .arg("--config")
            .arg(self.config())
            .env_clear()
            .env("PATH", path)
            .env("GOGC", GARBAGE_PERCENT);
        let mut daemon = Process::spawn(command, self.scratch.id(), self.log.clone())?;
        daemon.wait_until(what, START_TIMEOUT, ready).await?;
        *self.daemon() = Some(daemon);
        Ok(())
    }

    fn daemon(&self) -> MutexGuard<'_, Option<Process>> {
        self.daemon.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Kills containerd with SIGKILL. Its containers and shims keep running.
    pub fn kill(&self) {
        self.daemon().take();
    }

    /// Stops containerd with SIGSTOP: it takes connections and calls, and never answers.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on with SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let daemon = self.daemon();
        daemon
            .as_ref()
            .context("containerd does not run")?
            .signal(signal)
    }

    /// Starts containerd again on the same state, after [`Lab::kill`] or [`Lab::stop`].
    ///
    /// # Errors
    /// If it does not start.
    pub async fn restart(&self) -> Result<()> {
        ensure!(
            self.daemon().is_none(),
            "containerd still runs: kill or stop it first"
        );
        self.spawn().await
    }

    /// Starts containerd again with a configuration that keeps its CRI from starting.
    ///
    /// # Errors
    /// If its other services do not start.
    pub async fn restart_without_cri(&self) -> Result<()> {
        self.spawn_until("ready", self.answers()).await
    }

    /// Like [`Lab::restart_without_cri`], with an empty PATH: it finds no program such as `mkfs.erofs`.
    ///
    /// # Errors
    /// If its other services do not start.
    pub async fn restart_without_programs(&self) -> Result<()> {
        let nothing = self.scratch.path("cni").display().to_string();
        self.spawn_with(&nothing, "ready", self.answers()).await
    }

    /// Whether containerd's own services respond, without CRI.
    fn answers(&self) -> impl AsyncFn(&Log) -> bool {
        async move |_: &Log| match self.store().await {
            Ok(store) => store.leases().await.is_ok(),
            Err(_) => false,
        }
    }

    /// Stops containerd as an orderly restart of its service does.
    ///
    /// # Errors
    /// If it does not end in time; it is then killed.
    pub async fn stop(&self) -> Result<()> {
        let daemon = self.daemon().take();
        if let Some(mut daemon) = daemon {
            daemon.terminate().await?;
        }
        Ok(())
    }

    /// Returns a remote snapshotter of [`Options::remotes`].
    ///
    /// # Panics
    /// If the lab was started without it.
    pub fn remote(&self, remote: Remote) -> &ProxySnapshotter {
        let found = self.remotes.iter().find(|r| r.remote() == remote);
        found.unwrap_or_else(|| panic!("this lab has no {}: see Options::remotes", remote.name()))
    }

    /// Returns the disk of containerd's root.
    ///
    /// # Panics
    /// If the lab was started without [`Options::root_can_hang`].
    pub fn disk(&self) -> &Disk {
        let disk = self.disk.as_ref();
        disk.expect("a root that can hang: see Options::root_can_hang")
    }

    /// Returns the version of this containerd.
    pub fn version(&self) -> Version {
        self.version
    }

    /// Returns the address of its gRPC services and of CRI.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns the socket for NRI plugins.
    pub fn nri_socket(&self) -> &Path {
        &self.nri_socket
    }

    /// Returns the path of its configuration file.
    pub fn config(&self) -> PathBuf {
        self.scratch.path("config.toml")
    }

    /// Returns the root of the distribution's node ([`Options::tree`]) as containerd sees it, for use in this process.
    /// `None` if containerd has the machine's own root, or does not run.
    pub fn node_root(&self) -> Option<PathBuf> {
        self.tree.as_ref()?;
        let pid = self.daemon().as_ref()?.pid();
        Some(format!("/proc/{pid}/root").into())
    }

    /// Returns the bytes of containerd's database. The database counts its transactions, so the bytes also
    /// change if a transaction writes existing values or reverts its own change.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn database(&self) -> Result<Vec<u8>> {
        let file = self.root.join("io.containerd.metadata.v1.bolt/meta.db");
        fs::read(&file).with_context(|| format!("reading {}", file.display()))
    }

    /// Returns its root directory, as containerd knows it.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Lets mounts below its root and its socket directory propagate into containers that ask for it, as on a
    /// machine that systemd has started.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn share_mounts(&self) -> Result<()> {
        for dir in [self.root(), self.socket.parent().unwrap_or(&self.socket)] {
            let shared = mount_bind_recursive(dir, dir)
                .and_then(|()| mount_change(dir, MountPropagationFlags::SHARED));
            shared.with_context(|| format!("sharing the mounts of {}", dir.display()))?;
        }
        Ok(())
    }

    /// Returns a path for a file of the test, which is removed with the lab.
    pub fn path(&self, name: &str) -> PathBuf {
        self.scratch.path(name)
    }

    /// Returns a path for a socket of the test, within the length limit of sockets.
    ///
    /// # Errors
    /// If the path of the system's temporary directory is too long for a socket.
    pub fn socket_path(&self, name: &str) -> Result<PathBuf> {
        self.scratch.socket(name)
    }

    /// Returns the cgroup for pods, which is removed with the lab.
    pub fn cgroup(&self) -> String {
        self.scratch.traces().cgroup()
    }

    /// Returns containerd's log, over all restarts.
    pub fn log(&self) -> &Log {
        &self.log
    }

    /// Returns the directories of this containerd and its helpers.
    pub(crate) fn scratch(&self) -> &Scratch {
        &self.scratch
    }

    /// Returns a new CRI connection for the caller's runtime.
    ///
    /// # Errors
    /// If containerd does not respond.
    pub async fn cri(&self) -> Result<Cri> {
        Cri::connect(self).await
    }

    /// Returns a new connection to containerd's own services, for the caller's runtime.
    ///
    /// # Errors
    /// If containerd does not respond.
    pub async fn store(&self) -> Result<Store> {
        Store::connect(&self.socket).await
    }

    /// Returns the path of the version's `ctr`.
    pub fn ctr_program(&self) -> PathBuf {
        self.programs.join("ctr")
    }

    /// Returns the command line of `ctr`, up to its namespace.
    pub fn ctr_command(&self) -> String {
        let ctr = self.ctr_program();
        format!("{} --address {}", ctr.display(), self.socket.display())
    }

    /// Runs `ctr` in CRI's namespace, and returns its output.
    ///
    /// # Errors
    /// If `ctr` fails; the message has its error.
    pub async fn ctr(&self, args: &[&str]) -> Result<String> {
        let mut command = Command::new(self.ctr_program());
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

    /// Imports an image with `ctr`, which unpacks it for the default snapshotter without labels. Waits until
    /// CRI knows the image.
    ///
    /// # Errors
    /// If containerd rejects the image.
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

    /// Configures CRI to pull this registry's images from it, and SOCI to trust its certificate.
    ///
    /// # Errors
    /// If the files cannot be written.
    pub fn use_registry(&self, registry: &Registry) -> Result<()> {
        let dir = self.scratch.path("hosts").join(registry.host());
        fs::create_dir_all(&dir)?;
        fs::write(dir.join("hosts.toml"), registry.hosts_toml())?;
        let soci = self.remotes.iter().any(|r| r.remote() == Remote::Soci);
        match registry.certificate() {
            Some(certificate) if soci => soci::trust(&self.scratch, &certificate),
            _ => Ok(()),
        }
    }
}

/// Checks that the kernel supports a file system; most kernels load its module on first use.
fn load_file_system(name: &str) -> Result<()> {
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
