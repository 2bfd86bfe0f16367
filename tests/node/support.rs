//! What the tests share: a node with an image that was pulled for overlayfs only, and the plugin on it.

use std::process::{Command, Output};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Cri, Image, Lab, Log, Options, Plugin, Registry, Store, Tap, Version, images};

/// The program under test.
pub(crate) const PROGRAM: &str = env!("CARGO_BIN_EXE_nri-unpack");

/// An image of five layers, one of which hides a file of another.
pub(crate) const APP: &str = "registry.test/lab/app:1";

/// Long enough for a loaded machine: what takes longer has failed.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// What the plugin logs when it is of use.
pub(crate) const RESOLVED: &str = "handler resolved";

/// What is tested here is what a hook does, on a machine of any speed.
const HOOKS: &str = "[hooks]\nwait = \"8s\"";

/// What the plugin does where nothing else is configured, for measurements.
pub(crate) const DEFAULT_HOOKS: &str = "[hooks]";

/// Everything is ready ahead, everywhere.
pub(crate) const ALL: &str = "[snapshotters.default]\neager = \"all\"\n";

/// For tests of what a hook does about an image that was not made ready before.
pub(crate) const ON_DEMAND: &str = "[snapshotters.nydus]\neager = \"none\"\n";

/// Longer than the hook waits.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);

/// The labels without which a remote snapshotter cannot help itself.
pub(crate) const CRI_LABELS: [&str; 4] = [
    "containerd.io/snapshot/cri.image-ref",
    "containerd.io/snapshot/cri.manifest-digest",
    "containerd.io/snapshot/cri.layer-digest",
    "containerd.io/snapshot/cri.image-layers",
];

/// Who starts the plugin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LaunchedBy {
    /// Itself, as under systemd.
    Itself,
    /// containerd, from its plugin directory.
    Containerd,
}

/// A containerd, a registry, an image that was pulled for the default snapshotter, and the plugin.
pub(crate) struct Node {
    pub(crate) plugin: Option<Plugin>,
    /// The plugin's, however it was launched.
    pub(crate) log: Log,
    pub(crate) cri: Cri,
    pub(crate) store: Store,
    pub(crate) image: Image,
    pub(crate) registry: Registry,
    /// The plugin's table `hooks`, up to what a test adds to it.
    pub(crate) hooks: &'static str,
    /// The plugin and the commands speak to containerd through it, if there is one.
    pub(crate) tap: Option<Tap>,
    pub(crate) lab: Lab,
}

/// The handler with a snapshotter of its own, and that snapshotter, which have the same name.
pub(crate) fn handler(version: Version) -> &'static str {
    match version {
        Version::V1_7 => "native",
        Version::V2_1 => "erofs",
    }
}

impl Node {
    /// Without the plugin.
    pub(crate) async fn start(version: Version) -> Result<Self> {
        Self::start_with(version, Options::new(version)).await
    }

    /// Without the plugin, on a containerd with these options.
    pub(crate) async fn start_with(version: Version, mut options: Options) -> Result<Self> {
        let registry = Registry::start().await?;
        let image = images::app(APP)?;
        options.request_timeout = REQUEST_TIMEOUT;
        Self::start_on(version, options, registry, image).await
    }

    /// Without the plugin, with an image in this registry.
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

    /// Without the plugin, on a containerd that labels what it unpacks in a pull, and from 2.1 on pulls by itself
    /// instead of by its transfer service for that. It does neither by default.
    pub(crate) async fn start_annotated(version: Version) -> Result<Self> {
        let mut options = Options::new(version);
        options.snapshot_annotations = true;
        Self::start_with(version, options).await
    }

    /// With the plugin, serving.
    pub(crate) async fn serving(version: Version, by: LaunchedBy) -> Result<Self> {
        let mut node = Self::start(version).await?;
        match by {
            LaunchedBy::Itself => node.serve("").await?,
            LaunchedBy::Containerd => node.launch().await?,
        }
        Ok(node)
    }

    /// Starts the plugin by itself and waits until it is of use; `more` is added to its
    /// configuration.
    pub(crate) async fn serve(&mut self, more: &str) -> Result<()> {
        self.serve_config(&self.config(more)).await
    }

    /// The same with this configuration.
    pub(crate) async fn serve_config(&mut self, config: &str) -> Result<()> {
        let plugin = Plugin::start(&self.lab, PROGRAM, config)?;
        self.log = plugin.log().clone();
        self.plugin = Some(plugin);
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        Ok(())
    }

    /// Puts the plugin into containerd's plugin directory and starts containerd again.
    pub(crate) async fn launch(&mut self) -> Result<()> {
        let link = self.lab.path("nri/plugins/10-nri-unpack");
        std::os::unix::fs::symlink(PROGRAM, link)?;
        let config = self.config("") + &format!("file = {:?}\n", self.log.path());
        std::fs::write(self.lab.path("nri/conf.d/10-nri-unpack.conf"), config)?;
        self.restart_containerd().await?;
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        Ok(())
    }

    /// containerd ends as in an orderly restart of its service, and comes up again.
    pub(crate) async fn restart_containerd(&mut self) -> Result<()> {
        self.lab.stop().await?;
        self.lab.restart().await?;
        self.cri = self.lab.cri().await?;
        self.store = self.lab.store().await?;
        Ok(())
    }

    /// The plugin's configuration for this lab.
    pub(crate) fn config(&self, more: &str) -> String {
        // How full the tests' own disk is must not matter.
        let room = if more.contains("[unpack]") {
            ""
        } else {
            "[unpack]\nmin_free = \"0%\"\n"
        };
        let containerd = self.tap.as_ref().map_or(self.lab.socket(), Tap::socket);
        format!(
            "[nri]\nsocket = {:?}\n[containerd]\nsocket = {:?}\nconfig = {:?}\n{room}{}\n{more}[log]\nlevel = \"debug\"\n",
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

    /// The same, yet to be run.
    pub(crate) fn command_of(&self, arguments: &[&str]) -> Result<Command> {
        // One of its own: several may run at the same time.
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let config = self.lab.path(&format!("command-{count}.toml"));
        std::fs::write(&config, self.config(""))?;
        let mut command = Command::new(PROGRAM);
        command.args(arguments).arg("--config").arg(config);
        Ok(command)
    }

    /// Every layer is in the snapshotter, with all `cri.*` labels and the right value in each.
    pub(crate) async fn assert_labelled(&self, snapshotter: &str) -> Result<()> {
        let chain = self.store.chain(snapshotter, &self.image).await?;
        let digests: Vec<_> = self
            .image
            .layers
            .iter()
            .map(|l| l.digest.as_str())
            .collect();
        ensure!(
            chain.len() == digests.len(),
            "{} of {} layers",
            chain.len(),
            digests.len()
        );
        for (i, snapshot) in chain.iter().enumerate() {
            let rest = digests[i..].join(",");
            let values = [
                self.image.name(),
                &self.image.manifest.digest,
                digests[i],
                &rest,
            ];
            for (label, value) in CRI_LABELS.into_iter().zip(values) {
                let found = snapshot.labels.get(label).map(String::as_str);
                ensure!(
                    found == Some(value),
                    "layer {i}: {label} is {found:?}, not {value}"
                );
            }
        }
        Ok(())
    }

    /// The same, when the work that the hook has begun is done: it does not wait for it on a machine
    /// that is too slow.
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

    /// No lease and no extraction snapshot of ours, as soon as nothing is under way any more.
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
    /// Shown where the test fails.
    fn drop(&mut self) {
        println!("the plugin's log:\n{}", self.log.text());
    }
}

impl Node {
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
    /// What `check` calls the image's state in a snapshotter.
    pub(crate) async fn state_of(&self, image: &Image, snapshotter: &str) -> Result<String> {
        let row = self.row(&["check", image.name(), "--snapshotter", snapshotter])?;
        Ok(row["state"].as_str().unwrap_or_default().to_owned())
    }

    /// Has `ensure` make it ready; answers what it did for that.
    pub(crate) fn ensure_ready(&self, image: &Image, snapshotter: &str) -> Result<String> {
        let row = self.row(&["ensure", image.name(), "--snapshotter", snapshotter])?;
        ensure!(row["state"] == "ready", "{row:#}");
        Ok(row["action"].as_str().unwrap_or_default().to_owned())
    }

    /// The only row of a command's report.
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
