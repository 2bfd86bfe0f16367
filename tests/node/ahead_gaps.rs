//! What the work ahead could miss: a pause image that nothing pins, a snapshotter that is down, an image that
//! comes while the plugin hears nothing, a handler that uses another snapshotter than before.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::ContainerState;
use lab::{Image, PAUSE, Remote, Version, images};
use tokio::time::Instant;

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, Node, PATIENCE, RESOLVED, handler};

const PINNED: &str = "io.cri-containerd.pinned";

/// No label says which one it is, only containerd's configuration. containerd 2.1 pins its own again as
/// soon as it hears of it: there the plugin reads a file that names another image.
async fn unpinned_pause(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let (pause, mut config) = match version {
        Version::V1_7 => (images::pause(&[PAUSE])?, node.config("")),
        Version::V2_1 => (node.image.clone(), node.config("")),
    };
    if version == Version::V1_7 {
        node.store.remove_image_label(PAUSE, PINNED).await?;
    } else {
        let file = node.lab.path("other.toml");
        let text = std::fs::read_to_string(node.lab.config())?.replace(PAUSE, pause.name());
        std::fs::write(&file, text)?;
        let (own, other) = (format!("{:?}", node.lab.config()), format!("{file:?}"));
        config = config.replace(&own, &other);
    }
    node.serve_config(&config).await?;
    let ready = format!(
        "image is ready ahead image={} snapshotter={handler} ",
        pause.name()
    );
    node.log.wait_for(&ready, PATIENCE).await?;
    let labels = node.store.image_labels(pause.name()).await?;
    ensure!(!labels.contains_key(PINNED), "pinned again: {labels:?}");
    ensure!(node.state_of(&pause, handler).await? == "ready");
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_is_not_pinned_on_1_7() -> Result<()> {
    unpinned_pause(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_is_not_pinned_on_2_1() -> Result<()> {
    unpinned_pause(Version::V2_1).await
}

/// It is down when the plugin starts and when an image arrives. No pod asks for the image when it is back.
async fn snapshotter_down(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.lab.remote(Remote::Nydus).kill();
    node.serve("").await?;
    let silent = "snapshotter does not answer: unpacking ahead in it is paused until it does";
    node.log.wait_for(silent, PATIENCE).await?;
    let later = image(3, 0);
    node.registry.push(&later).await?;
    node.cri.pull_image(later.name()).await?;
    node.lab.remote(Remote::Nydus).restart().await?;
    let pause = images::pause(&[PAUSE])?;
    for image in [&pause, &node.image, &later] {
        node.wait_image(image, NYDUS).await?;
    }
    let said = node.log.lines_with(silent);
    ensure!(said.len() == 1, "said more than once: {said:#?}");
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshotter_that_is_down_on_1_7() -> Result<()> {
    snapshotter_down(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshotter_that_is_down_on_2_1() -> Result<()> {
    snapshotter_down(Version::V2_1).await
}

impl Node {
    /// Stops the plugin where it stands, or lets it go on.
    fn signal_plugin(&self, signal: &str) -> Result<()> {
        let pid = self.plugin.as_ref().and_then(lab::Plugin::pid);
        let pid = pid.context("serving")?.to_string();
        let status = Command::new("kill").args([signal, &pid]).status()?;
        ensure!(status.success(), "kill {signal} {pid}: {status}");
        Ok(())
    }
}

/// The plugin hears of no event, and registers again with a containerd that was started meanwhile.
async fn away(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve(ALL).await?;
    node.wait_image(&node.image, handler).await?;
    node.signal_plugin("-STOP")?;
    node.restart_containerd().await?;
    let missed = images::many_layers("registry.test/lab/missed:1", 4)?;
    node.lab.import(&missed).await?;
    // The lowest layer is another image's as well.
    ensure!(node.store.chain(handler, &missed).await?.len() < missed.layers.len());
    let log = node.log.from_now();
    node.signal_plugin("-CONT")?;
    node.wait_image(&missed, handler).await?;
    ensure!(!log.lines_with("registered").is_empty(), "the same session");
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_came_while_the_plugin_was_away_on_1_7() -> Result<()> {
    away(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_came_while_the_plugin_was_away_on_2_1() -> Result<()> {
    away(Version::V2_1).await
}

/// To CRI an init container is one like others that comes first and ends.
async fn init_container(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve(ALL).await?;
    let init = images::large("registry.test/lab/init:1", 1, 1024)?;
    node.registry.push(&init).await?;
    node.cri.pull_image(init.name()).await?;
    let images = [init, node.image.clone()];
    for image in &images {
        node.wait_image(image, handler).await?;
    }
    let pod = node.cri.run_pod(handler, &[]).await?;
    for (image, command) in images.iter().zip([&["sh", "-c", "exit 0"][..], &[]]) {
        let container = node.cri.create_container(&pod, image.name(), &[], command);
        let container = container.await?;
        node.cri.start_container(&container).await?;
        if !command.is_empty() {
            node.wait_exited(&container).await?;
        }
    }
    node.wait_for_lines("image is ready pod=", images.len())
        .await?;
    node.cri.remove_pod(&pod).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_container_on_1_7() -> Result<()> {
    init_container(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_init_container_on_2_1() -> Result<()> {
    init_container(Version::V2_1).await
}

impl Node {
    async fn wait_exited(&mut self, container: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let status = self.cri.container_status(container).await?;
            if status.state() == ContainerState::ContainerExited {
                ensure!(status.exit_code == 0, "{status:?}");
                return Ok(());
            }
            ensure!(Instant::now() < deadline, "goes on: {status:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn pull_new(&mut self, n: usize) -> Result<Image> {
        let image = image(2, n);
        self.registry.push(&image).await?;
        self.cri.pull_image(image.name()).await?;
        Ok(image)
    }
}

/// SIGHUP, and the handler uses the default snapshotter: what it used before gets no more.
async fn lost(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve(ALL).await?;
    node.wait_image(&node.image, handler).await?;
    let log = node.log.from_now();
    // On 2.1 another handler goes on using `native`: its images show that the work ahead goes on.
    let native = match version {
        Version::V1_7 => "",
        Version::V2_1 => "native = \"native\"\n",
    };
    let config = node.config(&format!(
        "{ALL}[handlers]\n{handler} = \"overlayfs\"\n{native}"
    ));
    let plugin = node.plugin.as_ref().context("serving")?;
    plugin.reload(&config)?;
    let resolved = format!("{RESOLVED} handler={handler} snapshotter=overlayfs");
    log.wait_for(&resolved, PATIENCE).await?;
    let log = node.log.from_now();
    let new = node.pull_new(0).await?;
    match version {
        Version::V1_7 => tokio::time::sleep(Duration::from_secs(2)).await,
        Version::V2_1 => node.wait_image(&new, "native").await?,
    }
    ensure!(node.store.chain(handler, &new).await?.is_empty());
    let ahead = log.lines_with(&format!("snapshotter={handler} action="));
    ensure!(ahead.is_empty(), "{ahead:#?}");
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_lost_its_snapshotter_on_1_7() -> Result<()> {
    lost(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handler_that_lost_its_snapshotter_on_2_1() -> Result<()> {
    lost(Version::V2_1).await
}
