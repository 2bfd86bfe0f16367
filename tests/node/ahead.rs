//! Images that the plugin unpacks before a pod asks for them: at its start, and when an image arrives.

use anyhow::{Result, ensure};
use lab::{Mount, Options, PAUSE, Remote, Version, images};

use crate::support::{ALL, Node, PATIENCE, handler};

const READY: &str = "image is ready ahead";

/// The lab's pause image shares no layer with other images, and no NRI event names it.
async fn pause_image_is_ready_ahead(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(version, options).await?;
    let pause = images::pause(&[PAUSE])?;
    ensure!(node.store.chain("nydus", &pause).await?.is_empty());
    node.serve("").await?;
    let ready = format!("{READY} image={PAUSE} snapshotter=nydus");
    node.log.wait_for(&ready, PATIENCE).await?;
    let pod = node.cri.run_pod("nydus", &[]).await?;
    let mounts = node.store.mounts("nydus", &pod.id).await?;
    let volumes = mounts.iter().map(Mount::kata_volume);
    let volumes = volumes.collect::<Result<Vec<_>>>()?;
    ensure!(volumes.iter().any(Option::is_some), "{mounts:?}");
    node.assert_nothing_left("nydus").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_is_ready_ahead_on_1_7() -> Result<()> {
    pause_image_is_ready_ahead(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_is_ready_ahead_on_2_1() -> Result<()> {
    pause_image_is_ready_ahead(Version::V2_1).await
}

/// The plugin unpacks all images that exist when it starts, and an image that is pulled later.
async fn images_are_ready_ahead(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve(ALL).await?;
    node.wait_labelled(handler).await?;

    let later = images::many_layers("registry.test/lab/later:1", 7)?;
    node.registry.push(&later).await?;
    node.cri.pull_image(later.name()).await?;
    let began = std::time::Instant::now();
    while node.store.chain(handler, &later).await?.len() < later.layers.len() {
        ensure!(
            began.elapsed() < PATIENCE,
            "not unpacked after {PATIENCE:?}"
        );
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_and_new_images_are_ready_ahead_on_1_7() -> Result<()> {
    images_are_ready_ahead(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn existing_and_new_images_are_ready_ahead_on_2_1() -> Result<()> {
    images_are_ready_ahead(Version::V2_1).await
}
