//! Shared helpers: a node with an image that was pulled for overlayfs only, and the plugin on it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cri, Image, Lab, Log, Options, Plugin, Registry, Snapshot, Store, Tap, Version, images};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_nri-unpack");

/// The environment variable with the program that measurements run instead.
const OTHER_PROGRAM: &str = "NRI_UNPACK_PROGRAM";

/// Returns the program that a node runs: the one that the environment names, or the one under test.
pub(crate) fn program() -> PathBuf {
    std::env::var_os(OTHER_PROGRAM).map_or_else(|| PROGRAM.into(), PathBuf::from)
}

/// The name of an image of five layers, one of which hides a file of another layer.
pub(crate) const APP: &str = "registry.test/lab/app:1";

/// The timeout of each wait: long enough for a loaded machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// The log message that says that the plugin is ready for events.
pub(crate) const RESOLVED: &str = "handler resolved";

/// The tests check what a hook does, also on a slow machine: the hook waits long.
const HOOKS: &str = "[hooks]\nwait = \"8s\"";

/// The default configuration of the hooks, for measurements.
pub(crate) const DEFAULT_HOOKS: &str = "[hooks]";

/// Every snapshotter unpacks every image ahead.
pub(crate) const ALL: &str = "[snapshotters.default]\neager = \"all\"\n";

/// For tests of what a hook does with an image that was not unpacked ahead.
pub(crate) const ON_DEMAND: &str = "[snapshotters.nydus]\neager = \"none\"\n";

/// Longer than `wait` of [`HOOKS`].
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The labels that a remote snapshotter needs.
pub(crate) const CRI_LABELS: [&str; 4] = [
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/cri.manifest-digest",
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/cri.image-layers",
];

/// Which process starts the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaunchedBy {
    /// The test, as systemd does.
    Itself,
    /// containerd, from its plugin directory.
    Containerd,
}

/// A containerd, a registry, an image that was pulled for the default snapshotter, and the plugin.
pub(crate) struct Node {
    pub(crate) plugin: Option<Plugin>,
    /// The program of the plugin and of the commands.
    pub(crate) program: PathBuf,
    /// The plugin's log, for each [`LaunchedBy`].
    pub(crate) log: Log,
    pub(crate) cri: Cri,
    pub(crate) store: Store,
    pub(crate) image: Image,
    pub(crate) registry: Registry,
    /// The beginning of the plugin's table `hooks`; a test may append keys.
    pub(crate) hooks: &'static str,
    /// The proxy between containerd and the plugin with its commands, if there is one.
    pub(crate) tap: Option<Tap>,
    pub(crate) lab: Lab,
}

/// Returns the name of the handler that has its own snapshotter, which has the same name.
pub(crate) fn handler(version: Version) -> &'static str {
    match version {
        Version::V1_7 => "native",
        Version::V2_1 => "erofs",
    }
}

/// Writes a program.
pub(crate) fn write_script(path: &Path, text: &str) -> Result<()> {
    std::fs::write(path, text)?;
    Ok(std::fs::set_permissions(
        path,
        Permissions::from_mode(0o755),
    )?)
}

impl Node {
    /// Starts a node without the plugin.
    pub(crate) async fn start(version: Version) -> Result<Self> {
        Self::start_with(version, Options::new(version)).await
    }

    /// Like [`Self::start`], with these options of containerd.
    pub(crate) async fn start_with(version: Version, mut options: Options) -> Result<Self> {
        let registry = Registry::start().await?;
        let image = images::app(APP)?;
        options.request_timeout = REQUEST_TIMEOUT;
        Self::start_on(version, options, registry, image).await
    }

    /// Starts a node without the plugin, with an image in this registry.
    pub(crate) async fn start_on(
        version: Version,
        options: Options,
        registry: Registry,
        image: Image,
    ) -> Result<Self> {
        registry.push(&image).await?;
        let lab = Lab::start_with(version, options).await?;
        lab.use_registry(&registry)?;
        let mut cri = lab.cri().await?;
        cri.pull_image(image.name()).await?;
        Ok(Self {
            plugin: None,
            program: program(),
            log: Log::new(lab.path("launched.log")),
            cri,
            store: lab.store().await?,
            image,
            registry,
            hooks: HOOKS,
            tap: None,
            lab,
        })
    }

    /// Starts a node without the plugin, whose containerd labels the snapshots of a pull. containerd 2.1 then
    /// pulls without its transfer service. Both are off by default.
    pub(crate) async fn start_annotated(version: Version) -> Result<Self> {
        let mut options = Options::new(version);
        options.snapshot_annotations = true;
        Self::start_with(version, options).await
    }

    /// Starts a node with the plugin.
    pub(crate) async fn serving(version: Version, by: LaunchedBy) -> Result<Self> {
        let mut node = Self::start(version).await?;
        match by {
            LaunchedBy::Itself => node.serve("").await?,
            LaunchedBy::Containerd => node.launch().await?,
        }
        Ok(node)
    }

    /// Starts the plugin and waits until it is ready for events; `more` is appended to its configuration.
    pub(crate) async fn serve(&mut self, more: &str) -> Result<()> {
        self.serve_config(&self.config(more)).await
    }

    /// Like [`Self::serve`], with this whole configuration.
    pub(crate) async fn serve_config(&mut self, config: &str) -> Result<()> {
        let plugin = Plugin::start(&self.lab, &self.program, config)?;
        self.log = plugin.log().clone();
        self.plugin = Some(plugin);
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        Ok(())
    }

    /// Puts the plugin into containerd's plugin directory and restarts containerd.
    pub(crate) async fn launch(&mut self) -> Result<()> {
        self.launch_with("").await
    }

    /// Like [`Self::launch`]; `more` is appended to its configuration.
    pub(crate) async fn launch_with(&mut self, more: &str) -> Result<()> {
        let link = self.lab.path("nri/plugins/10-nri-unpack");
        std::os::unix::fs::symlink(&self.program, link)?;
        let config = self.config(more) + &format!("file = {:?}\n", self.log.path());
        std::fs::write(self.lab.path("nri/conf.d/10-nri-unpack.conf"), config)?;
        self.restart_containerd().await?;
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        Ok(())
    }

    /// Stops containerd as its service would, and starts it again.
    pub(crate) async fn restart_containerd(&mut self) -> Result<()> {
        self.lab.stop().await?;
        self.lab.restart().await?;
        self.cri = self.lab.cri().await?;
        self.store = self.lab.store().await?;
        Ok(())
    }

    /// Returns the plugin's configuration for this lab.
    pub(crate) fn config(&self, more: &str) -> String {
        // The free space of the test machine must not matter.
        let unpack_table = if more.contains("[unpack]") {
            ""
        } else {
            "[unpack]\nmin_free = \"0%\"\n"
        };
        let containerd = self.tap.as_ref().map_or(self.lab.socket(), Tap::socket);
        format!(
            "[nri]\nsocket = {:?}\n[containerd]\nsocket = {:?}\nconfig = {:?}\n{unpack_table}{}\n{more}[log]\nlevel = \"debug\"\n",
            self.lab.nri_socket(),
            containerd,
            self.lab.config(),
            self.hooks,
        )
    }

    /// Runs a command of the program against this containerd.
    pub(crate) fn command(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = self.command_of(arguments)?;
        command.output().context("running nri-unpack")
    }

    /// Like [`Self::command`], but returns the command without running it.
    pub(crate) fn command_of(&self, arguments: &[&str]) -> Result<Command> {
        // Each command has its own file: several may run at the same time.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let config = self.lab.path(&format!("command-{count}.toml"));
        std::fs::write(&config, self.config(""))?;
        let mut command = Command::new(&self.program);
        command.args(arguments).arg("--config").arg(config);
        Ok(command)
    }

    /// Checks that the snapshotter has every layer, with all `cri.*` labels and their correct values.
    pub(crate) async fn assert_labelled(&self, snapshotter: &str) -> Result<()> {
        let names = [self.image.name()];
        self.assert_labels(snapshotter, &self.image, 0, &names, |_| false)
            .await
    }

    /// Like [`Self::assert_labelled`], for another image and one of its names. Its lowest layers, as many as are shared, may
    /// be labelled for another image, and those below the top that `may_lack` names may have no labels.
    pub(crate) async fn assert_labels(
        &self,
        snapshotter: &str,
        image: &Image,
        shared: usize,
        names: &[&str],
        may_lack: impl Fn(&Snapshot) -> bool,
    ) -> Result<()> {
        let chain = self.store.chain(snapshotter, image).await?;
        let digests: Vec<_> = image.layers.iter().map(|l| l.digest.as_str()).collect();
        ensure!(
            chain.len() == digests.len(),
            "{}: {} of {} layers",
            image.name(),
            chain.len(),
            digests.len()
        );
        for (i, snapshot) in chain.iter().enumerate() {
            if i + 1 < chain.len() && may_lack(snapshot) {
                continue;
            }
            let rest = digests[i..].join(",");
            let (manifest, layer) = ([&*image.manifest.digest], [digests[i]]);
            let values = [names, &manifest, &layer, &[&*rest]];
            for (label, values) in CRI_LABELS.into_iter().zip(values) {
                let found = snapshot.labels.get(label).map(String::as_str);
                let is_of_any = i < shared && label != CRI_LABELS[2];
                ensure!(
                    found.is_some_and(|found| is_of_any || values.contains(&found)),
                    "{}, layer {i}: {label} is {found:?}, not {values:?}",
                    image.name()
                );
            }
        }
        Ok(())
    }

    /// Like [`Self::assert_labelled`], after waiting for the work that the hook began: on a slow machine the
    /// hook does not wait until it is finished.
    pub(crate) async fn wait_labelled(&self, snapshotter: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.assert_labelled(snapshotter).await {
                Err(e) if tokio::time::Instant::now() > deadline => return Err(e),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Checks that no lease and no extraction snapshot of the plugin remains, after waiting for current work to
    /// end.
    pub(crate) async fn assert_nothing_left(&self, snapshotter: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            match self.nothing_left(snapshotter).await {
                Err(e) if tokio::time::Instant::now() > deadline => return Err(e),
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    pub(crate) async fn nothing_left(&self, snapshotter: &str) -> Result<()> {
        let leases = self.store.leases().await?;
        let ours: Vec<_> = leases
            .keys()
            .filter(|id| id.starts_with("nri-unpack"))
            .collect();
        ensure!(ours.is_empty(), "leases left: {ours:?}");
        let snapshots = self.store.snapshots(snapshotter).await?;
        let ours = snapshots
            .iter()
            .filter(|s| s.key.starts_with("extract-nri-unpack"));
        let ours: Vec<_> = ours.map(|s| &s.key).collect();
        ensure!(ours.is_empty(), "extraction snapshots left: {ours:?}");
        Ok(())
    }
}

impl Drop for Node {
    /// Prints the plugin's log, which is shown if the test fails.
    fn drop(&mut self) {
        println!("the plugin's log:\n{}", self.log.text());
    }
}

impl Node {
    /// Waits until the plugin has finished a reconcile in this snapshotter.
    pub(crate) async fn wait_reconciled(&self, snapshotter: &str) -> Result<()> {
        let finished = format!("reconcile finished snapshotter={snapshotter} ");
        self.log.wait_for(&finished, PATIENCE).await?;
        Ok(())
    }

    /// Waits until the plugin has logged that many lines with these words.
    pub(crate) async fn wait_for_lines(&self, words: &str, count: usize) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.log.lines_with(words).len() < count {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "no {count} lines with «{words}»"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }
}

impl Node {
    /// Returns the state of the image that `check` reports.
    pub(crate) async fn state_of(&self, image: &Image, snapshotter: &str) -> Result<String> {
        let row = self.row(&["check", image.name(), "--snapshotter", snapshotter])?;
        Ok(row["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Waits until the image is ready.
    pub(crate) async fn wait_image(&self, image: &Image, snapshotter: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // containerd reconnects to a killed snapshotter only after a pause: until then `check` lists nothing.
            let state = self.state_of(image, snapshotter).await;
            let state = state.unwrap_or_else(|error| error.to_string());
            if state == "ready" {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "{} is {state}",
                image.name()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Runs `ensure` for the image, and returns the action that it reports.
    pub(crate) fn ensure_ready(&self, image: &Image, snapshotter: &str) -> Result<String> {
        let row = self.row(&["ensure", image.name(), "--snapshotter", snapshotter])?;
        ensure!(row["state"] == "ready", "{row:#}");
        Ok(row["action"].as_str().unwrap_or_default().to_owned())
    }

    /// Returns the only row of a command's report.
    pub(crate) fn row(&self, command: &[&str]) -> Result<serde_json::Value> {
        let output = self.command(&[command, &["--output", "json"]].concat())?;
        let report: serde_json::Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("{command:?}: {output:?}"))?;
        let rows = report.get("images").or(report.get("results"));
        match rows.and_then(|rows| rows.as_array()).map(Vec::as_slice) {
            Some([row]) => Ok(row.clone()),
            _ => anyhow::bail!("{command:?}: {report:#}"),
        }
    }
}
