//! The limits of the work ahead: what takes no space goes on when a file system is nearly full, and what has failed is
//! tried again.

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, PAUSE, Version, images};

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, PATIENCE, handler};

const ALL: &str = "[snapshotters.default]\neager = \"all\"\n";

/// More than a file system has.
const NO_SPACE: &str = "[unpack]\nmin_free = \"99%\"\n";

async fn only_layers_need_free_space(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let handler = handler(version);
    // containerd unpacks it without labels.
    let unlabelled = image(3, 0);
    node.registry.push(&unlabelled).await?;
    node.cri.pull_image(unlabelled.name()).await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    let created = node.cri.create_container(&pod, unlabelled.name(), &[], &[]);
    created.await?;
    ensure!(node.state_of(&unlabelled, handler).await? == "unlabelled");
    let plain = image(2, 0);
    node.store.put_image(&plain).await?;

    node.serve(&format!("{NO_SPACE}{ALL}")).await?;
    node.wait_image(&images::pause(&[PAUSE])?, handler).await?;
    node.wait_image(&unlabelled, handler).await?;
    node.wait_image(&plain, NYDUS).await?;
    let rests = format!(
        "images rest until there is enough free space: they are unpacked when a pod needs them snapshotter={handler} "
    );
    node.log.wait_for(&rests, PATIENCE).await?;
    let pulled = image(5, 0);
    node.registry.push(&pulled).await?;
    node.cri.pull_image(pulled.name()).await?;
    node.wait_image(&pulled, NYDUS).await?;
    for image in [&plain, &pulled] {
        ensure!(node.state_of(image, handler).await? == "missing");
    }

    let plugin = node.plugin.as_ref().context("serving")?;
    plugin.reload(&node.config(ALL))?;
    for image in [&plain, &pulled] {
        node.wait_image(image, handler).await?;
    }
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_layers_need_free_space_on_1_7() -> Result<()> {
    only_layers_need_free_space(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn only_layers_need_free_space_on_2_1() -> Result<()> {
    only_layers_need_free_space(Version::V2_1).await
}

/// A blob is gone, and comes back without an event of its image.
async fn a_failed_image_is_tried_again(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let with_layer = |name: &str| {
        let layer = Layer::new().file("f", 0o644, "the same in both\n");
        Image::builder(name).command(&[name]).layer(layer).build()
    };
    let fails = with_layer("registry.test/lab/fails:1");
    let excluded = with_layer("registry.test/lab/excluded:1");
    node.store.put_image(&fails).await?;
    node.store.delete_content(&fails.layers[0].digest).await?;
    let config =
        format!("[snapshotters.{handler}]\neager = \"all\"\nexclude = [\"*/excluded:*\"]\n");
    node.serve(&config).await?;
    // The first event triggers a reconcile.
    let other = image(1, 0);
    node.store.put_image(&other).await?;
    node.wait_image(&other, handler).await?;
    node.wait_reconciled(handler).await?;
    ensure!(node.state_of(&fails, handler).await? == "unavailable");
    node.store.put_image(&excluded).await?;
    node.wait_image(&fails, handler).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_image_is_tried_again_on_1_7() -> Result<()> {
    a_failed_image_is_tried_again(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failed_image_is_tried_again_on_2_1() -> Result<()> {
    a_failed_image_is_tried_again(Version::V2_1).await
}
