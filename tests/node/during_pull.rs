//! Layers that are unpacked while their image is being pulled (`unpack.during_pull`), where a pull does not go its usual
//! way: two snapshotters want the image, the plugin is killed amid it, the pull deletes the blobs after its own unpack.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, Options, Version};

use crate::ahead_cost::noise;
use crate::foreknowledge::{DURING_PULL, tag};
use crate::support::{DEFAULT_HOOKS, Node, PATIENCE, handler};

const USED: &str = "registry.test/slow/app";

/// The bytes of the second layer: more than the buffers between a registry that is stopped and containerd hold.
const BYTES: usize = 96 << 20;

/// Returns an image with a small layer below a large one.
fn small_below_large(n: usize) -> Image {
    let layer = |name: &str, bytes| {
        let seed = (n * 2 + name.len()) as u64;
        Layer::new().file(name, 0o644, noise(seed, bytes))
    };
    Image::builder(format!("{USED}:{n}"))
        .command(&["/none"])
        .layer(layer("small", 1 << 10))
        .layer(layer("large", BYTES))
        .build()
}

impl Node {
    async fn serving_during_pulls(version: Version, options: Options) -> Result<Self> {
        let mut node = Self::start_with(version, options).await?;
        node.hooks = DEFAULT_HOOKS;
        node.serve(DURING_PULL).await?;
        Ok(node)
    }

    /// Waits until the lowest layer of an image is in a snapshotter.
    async fn wait_begun(&self, snapshotter: &str, image: &Image) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while self.store.chain(snapshotter, image).await?.is_empty() {
            ensure!(
                tokio::time::Instant::now() < deadline,
                "no layer of {}",
                image.name()
            );
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }
}

/// A used repository in two local snapshotters: each follows the pull by itself.
#[tokio::test(flavor = "multi_thread")]
async fn two_snapshotters_follow_one_pull() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::serving_during_pulls(version, Options::new(version)).await?;
    let snapshotters = ["erofs", "native"];
    for snapshotter in snapshotters {
        node.uses_and_waits(snapshotter, &tag("used", 1)).await?;
    }
    let image = tag("used", 2);
    node.pull(&image).await?;
    for snapshotter in snapshotters {
        node.wait_image(&image, snapshotter).await?;
        node.assert_nothing_left(snapshotter).await?;
        let ready = format!(
            "image is ready ahead image=registry.test/used@{} snapshotter={snapshotter} ",
            image.manifest.digest
        );
        node.log.wait_for(&ready, PATIENCE).await?;
    }
    Ok(())
}

/// The plugin is killed while the lowest layer is unpacked and the next one arrives. The pull goes on without it.
async fn a_kill_amid_a_pull_leaves_nothing(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::serving_during_pulls(version, Options::new(version)).await?;
    node.uses_and_waits(handler, &small_below_large(1)).await?;
    let image = small_below_large(2);
    node.registry.push(&image).await?;
    let (mut cri, name) = (node.cri.clone(), image.name().to_owned());
    let pull = tokio::spawn(async move { cri.pull_image(&name).await });
    node.wait_begun(handler, &image).await?;
    node.registry.pause()?;
    let committed = node.store.chain(handler, &image).await?.len();
    let plugin = node.plugin.as_mut().context("serving")?;
    plugin.kill();
    ensure!(
        committed == 1 && !pull.is_finished(),
        "the pull was too quick: {committed} layers"
    );
    plugin.restart()?;
    node.registry.go_on()?;
    pull.await??;
    node.wait_image(&image, handler).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_amid_a_pull_leaves_nothing_on_2_1() -> Result<()> {
    a_kill_amid_a_pull_leaves_nothing(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_amid_a_pull_leaves_nothing_on_1_7() -> Result<()> {
    a_kill_amid_a_pull_leaves_nothing(Version::V1_7).await
}

/// containerd deletes each blob when its own unpack of the layer is over.
async fn blobs_that_a_pull_deletes_are_unpacked_before(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut options = Options::new(version);
    options.discard_unpacked_layers = true;
    let mut node = Node::serving_during_pulls(version, options).await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    let image = tag("never-seen", 1);
    node.pull(&image).await?;
    node.wait_image(&image, handler).await?;
    node.assert_nothing_left(handler).await?;
    let log = node.log.from_now();
    let created = node.cri.create_container(&pod, image.name(), &[], &[]);
    created.await?;
    ensure!(log.lines_with("rebuil").is_empty(), "{}", log.text());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_a_pull_deletes_are_unpacked_before_on_2_1() -> Result<()> {
    blobs_that_a_pull_deletes_are_unpacked_before(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_that_a_pull_deletes_are_unpacked_before_on_1_7() -> Result<()> {
    blobs_that_a_pull_deletes_are_unpacked_before(Version::V1_7).await
}
