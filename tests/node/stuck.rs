//! Images that containerd cannot unpack because a blob is missing. The unpack inside `CreateContainer` fails
//! before any hook is called. With the plugin in its default configuration a later try of the kubelet succeeds.

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use lab::images::Compression;
use lab::{Flaw, Image, Layer, Options, Version, images};

use crate::support::{APP, DEFAULT_HOOKS, Node, handler};

/// The tries of the kubelet, and the pause between two tries.
const TRIES: usize = 3;
const PAUSE: Duration = Duration::from_secs(4);

/// Returns the log line of an image that was made ready before a container asked for it.
fn ready_line(image: &Image) -> String {
    format!("image is ready ahead image={} ", image.name())
}

const READY_FOR_NEXT_TRY: &str = "it is ready for the next try";

/// Starts a node with the plugin in its default configuration. The node pulled its image before the plugin
/// started.
async fn node(options: Options, version: Version) -> Result<Node> {
    let mut node = Node::start_with(version, options).await?;
    node.hooks = DEFAULT_HOOKS;
    node.serve("").await?;
    Ok(node)
}

impl Node {
    /// Creates a container with retries, as the kubelet does. Returns its ID and the number of tries.
    pub(crate) async fn created(&mut self, handler: &str, image: &str) -> Result<(String, usize)> {
        let pod = self.cri.run_pod(handler, &[]).await?;
        for tried in 1..=TRIES {
            let lines = self.log.lines_with(READY_FOR_NEXT_TRY).len();
            match self.cri.create_container(&pod, image, &[], &[]).await {
                Ok(container) => return Ok((container, tried)),
                Err(e) => println!("{image}: {e}"),
            }
            // The kubelet waits longer; after this line the plugin does nothing more.
            let _ = tokio::time::timeout(PAUSE, self.wait_for_lines(READY_FOR_NEXT_TRY, lines + 1))
                .await;
        }
        bail!("{image} was not created with {TRIES} tries")
    }

    async fn assert_no_blobs(&self, image: &Image) -> Result<()> {
        for layer in &image.layers {
            let blob = self.store.content_labels(&layer.digest).await;
            ensure!(blob.is_err(), "{} was not deleted", layer.digest);
        }
        Ok(())
    }
}

/// `discard_unpacked_layers`: no pulled image keeps its blobs.
async fn a_retry_succeeds_with_discarded_blobs(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.discard_unpacked_layers = true;
    let (mut node, handler) = (node(options, version).await?, handler(version));
    node.store.collect_garbage().await?;
    node.assert_no_blobs(&node.image).await?;
    let (container, tries) = node.created(handler, APP).await?;
    ensure!((2..=TRIES).contains(&tries), "{tries} tries");
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;
    ensure!(node.ensure_ready(&node.image, handler)? == "none");

    // An image that arrives while a pod waits for its first container is made ready at once.
    let pod = node.cri.run_pod(handler, &[]).await?;
    let awaited = images::service("registry.test/lab/awaited:1")?;
    node.pull(&awaited).await?;
    node.wait_for_lines(&ready_line(&awaited), 1).await?;
    let name = awaited.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    // An image in a repository that containers of the snapshotter use is made ready too.
    let update = Image::builder("registry.test/lab/awaited:2")
        .layer(Layer::new().file("f", 0o644, "update"))
        .command(&["/none"])
        .build();
    node.pull(&update).await?;
    node.wait_for_lines(&ready_line(&update), 1).await?;
    ensure!(node.state_of(&update, handler).await? == "ready");
    // An image of another repository is not.
    let other = images::own_layers("registry.test/lab/other:1", 2)?;
    node.pull(&other).await?;
    node.created(handler, other.name()).await?;
    ensure!(node.log.lines_with(&ready_line(&other)).is_empty());
    node.assert_nothing_left(handler).await
}

/// A blob that was never fetched, blobs that were deleted, and a blob that the plugin cannot restore.
async fn a_retry_succeeds_with_missing_blobs(version: Version) -> Result<()> {
    let (mut node, handler) = (
        node(Options::new(version), version).await?,
        handler(version),
    );
    let twin = |name: &str, compression| {
        let layer = Layer::new().file("twin", 0o644, "of both\n");
        let image = Image::builder(name).command(&[name]);
        image.layer(layer.compressed(compression)).build()
    };
    let first = twin("registry.test/lab/first:1", Compression::Gzip);
    let second = twin("registry.test/lab/second:1", Compression::Zstd);
    node.pull(&first).await?;
    node.pull(&second).await?;
    node.assert_no_blobs(&second).await?;
    let (_, tries) = node.created(handler, second.name()).await?;
    ensure!((2..=TRIES).contains(&tries), "{tries} tries");

    for layer in &node.image.layers {
        node.store.delete_content(&layer.digest).await?;
    }
    let (_, tries) = node.created(handler, APP).await?;
    ensure!((2..=TRIES).contains(&tries), "{tries} tries");
    node.assert_labelled(handler).await?;

    let lost = Image::builder("registry.test/lab/lost:1").layer(Layer::new().file("l", 0o644, "l"));
    let lost = lost.command(&["/none"]).flaw(Flaw::LayerMissing(0)).build();
    node.store.put_image(&lost).await?;
    ensure!(node.created(handler, lost.name()).await.is_err());
    let failure_lines = node.log.lines_with("containers of it fail");
    ensure!(
        failure_lines.len() == 1,
        "the failure was not logged exactly once: {failure_lines:#?}"
    );
    ensure!(
        failure_lines[0].contains("ctr -n k8s.io content fetch"),
        "{failure_lines:#?}"
    );
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_succeeds_with_discarded_blobs_on_2_1() -> Result<()> {
    a_retry_succeeds_with_discarded_blobs(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_succeeds_with_discarded_blobs_on_1_7() -> Result<()> {
    a_retry_succeeds_with_discarded_blobs(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_succeeds_with_missing_blobs_on_2_1() -> Result<()> {
    a_retry_succeeds_with_missing_blobs(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_succeeds_with_missing_blobs_on_1_7() -> Result<()> {
    a_retry_succeeds_with_missing_blobs(Version::V1_7).await
}
