//! Cases that unpacking ahead could miss: a pause image that is not pinned, a snapshotter that is down, an
//! image that arrives while the plugin receives no events, and a handler whose snapshotter was changed.

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

/// No label marks the pause image: only containerd's configuration names it. containerd 2.1 pins its own pause
/// image again as soon as an event names it; on 2.1 the plugin therefore reads a file that names another image.
async fn unpinned_pause_image(version: Version) -> Result<()> {
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
async fn an_unpinned_pause_image_is_ready_ahead_on_1_7() -> Result<()> {
    unpinned_pause_image(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unpinned_pause_image_is_ready_ahead_on_2_1() -> Result<()> {
    unpinned_pause_image(Version::V2_1).await
}

/// The snapshotter is down when the plugin starts and when an image arrives. When it is back, no pod asks for
/// the image.
async fn snapshotter_down(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.lab.remote(Remote::Nydus).kill();
    node.serve("").await?;
    let paused = "snapshotter does not answer: unpacking ahead in it is paused until it does";
    node.log.wait_for(paused, PATIENCE).await?;
    let later = image(3, 0);
    node.registry.push(&later).await?;
    node.cri.pull_image(later.name()).await?;
    node.lab.remote(Remote::Nydus).restart().await?;
    let pause = images::pause(&[PAUSE])?;
    for image in [&pause, &node.image, &later] {
        node.wait_image(image, NYDUS).await?;
    }
    let paused_lines = node.log.lines_with(paused);
    ensure!(
        paused_lines.len() == 1,
        "logged more than once: {paused_lines:#?}"
    );
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_ready_when_a_snapshotter_is_back_on_1_7() -> Result<()> {
    snapshotter_down(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_are_ready_when_a_snapshotter_is_back_on_2_1() -> Result<()> {
    snapshotter_down(Version::V2_1).await
}

impl Node {
    /// Sends this signal to the plugin's process.
    fn signal_plugin(&self, signal: &str) -> Result<()> {
        let pid = self.plugin.as_ref().and_then(lab::Plugin::pid);
        let pid = pid.context("serving")?.to_string();
        let status = Command::new("kill").args([signal, &pid]).status()?;
        ensure!(status.success(), "kill {signal} {pid}: {status}");
        Ok(())
    }
}

/// The plugin is stopped and receives no events. When it continues, it registers with a containerd that was
/// restarted meanwhile.
async fn missed_image(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve(ALL).await?;
    node.wait_image(&node.image, handler).await?;
    node.signal_plugin("-STOP")?;
    node.restart_containerd().await?;
    let missed = images::many_layers("registry.test/lab/missed:1", 4)?;
    node.lab.import(&missed).await?;
    // Another image has the same lowest layer, which may exist already.
    ensure!(node.store.chain(handler, &missed).await?.len() < missed.layers.len());
    let log = node.log.from_now();
    node.signal_plugin("-CONT")?;
    node.wait_image(&missed, handler).await?;
    ensure!(!log.lines_with("registered").is_empty(), "the same session");
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_arrived_without_an_event_is_ready_on_1_7() -> Result<()> {
    missed_image(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_arrived_without_an_event_is_ready_on_2_1() -> Result<()> {
    missed_image(Version::V2_1).await
}

/// For CRI an init container is a container that is created first and exits.
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
async fn init_containers_find_ready_images_on_1_7() -> Result<()> {
    init_container(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn init_containers_find_ready_images_on_2_1() -> Result<()> {
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
            ensure!(Instant::now() < deadline, "still running: {status:?}");
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

/// After SIGHUP the handler uses the default snapshotter: the snapshotter that it used before gets no more
/// images.
async fn changed_snapshotter(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve(ALL).await?;
    node.wait_image(&node.image, handler).await?;
    let log = node.log.from_now();
    // On 2.1 another handler still uses `native`: its images show that unpacking ahead continues.
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
async fn the_former_snapshotter_of_a_handler_gets_no_images_on_1_7() -> Result<()> {
    changed_snapshotter(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_former_snapshotter_of_a_handler_gets_no_images_on_2_1() -> Result<()> {
    changed_snapshotter(Version::V2_1).await
}
