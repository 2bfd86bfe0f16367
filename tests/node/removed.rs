//! An image is removed while the plugin unpacks it ahead, as by the kubelet's image garbage collection. Nothing
//! of it remains, the log says so once, and a new pull of it is handled like that of a new image.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Image, Tap, Version, images};
use tokio::time::Instant;

use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, PATIENCE, handler};

/// containerd's garbage collection of an image takes some milliseconds. This limit suits a loaded machine, and
/// is far less than the 24 hours after which a lease expires.
const COLLECTION_LIMIT: Duration = Duration::from_secs(10);

const REMOVED: &str = "image was removed before it was ready ahead: the work on it has ended";

/// This is logged before the image has a record.
const FOUND_EARLY: &str =
    "found the image of a layer that is being pulled image=registry.test/lab/again@";

const APPLY: &str = "/containerd.services.diff.v1.Diff/Apply";

/// The layers of busybox, which all images share.
const BASE: usize = 2;

/// More images than the plugin inspects at once.
const MANY: usize = 21;

impl Node {
    /// Checks that the layers that only this image has are not in the snapshotter, and that their blobs are
    /// gone.
    async fn assert_removed(&self, snapshotter: &str, image: &Image) -> Result<()> {
        self.nothing_left(snapshotter).await?;
        let snapshots = self.store.snapshots(snapshotter).await?;
        let own = &image.chain_ids()[BASE..];
        let left = snapshots.iter().filter(|s| own.contains(&s.key)).count();
        ensure!(left == 0, "{left} layers of {} are left", image.name());
        for layer in &image.layers[BASE..] {
            let blob = self.store.content_labels(&layer.digest).await;
            ensure!(blob.is_err(), "blob {} is left", layer.digest);
        }
        Ok(())
    }

    async fn wait_removed(&self, snapshotter: &str, image: &Image) -> Result<()> {
        let deadline = Instant::now() + COLLECTION_LIMIT;
        while let Err(e) = self.assert_removed(snapshotter, image).await {
            ensure!(Instant::now() < deadline, "{e:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Checks that the plugin logs the removal of the image once, and no warning.
    async fn assert_logged_once(&self, image: &Image) -> Result<()> {
        let message = format!("{REMOVED} image={}", image.name());
        self.log.wait_for(&message, PATIENCE).await?;
        let lines = self.log.lines_with(image.name());
        let removals: Vec<_> = lines.iter().filter(|l| l.contains(REMOVED)).collect();
        ensure!(removals.len() == 1, "{removals:#?}");
        let loud = lines
            .iter()
            .filter(|l| l.contains(" WARN ") || l.contains(" ERROR "));
        let loud: Vec<_> = loud.collect();
        ensure!(loud.is_empty(), "{loud:#?}");
        Ok(())
    }
}

/// The image is removed while its second own layer is being applied. Then many images are queued.
async fn removed_during_unpack(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let eager = format!("[snapshotters.{handler}]\neager = \"all\"\n");
    node.tap = Some(Tap::start(&node.lab)?);
    node.serve(&eager).await?;
    node.wait_image(&node.image, handler).await?;

    let large = images::large("registry.test/lab/large:1", 4, 1 << 20)?;
    node.registry.push(&large).await?;
    let tap = node.tap.as_ref().context("tapped")?;
    // The lowest layers remain, because another image has them too.
    let first = tap.hold(|call| call.path == APPLY);
    let mut second = tap.hold(|call| call.path == APPLY);
    first.release();
    node.cri.pull_image(large.name()).await?;
    second.came().await?;
    ensure!(node.store.chain(handler, &large).await?.len() == BASE + 1);
    node.cri.remove_image(large.name()).await?;
    node.wait_removed(handler, &large).await?;
    drop(second);
    node.assert_logged_once(&large).await?;

    // It is handled like a new image.
    node.cri.pull_image(large.name()).await?;
    node.wait_image(&large, handler).await?;

    node.plugin.take().context("serving")?.stop().await?;
    let mut many = Vec::new();
    for n in 0..MANY {
        let image = images::own_layers(&format!("registry.test/lab/many:{}", 100 + n), 2)?;
        node.registry.push(&image).await?;
        node.cri.pull_image(image.name()).await?;
        many.push(image);
    }
    let tap = node.tap.as_ref().context("tapped")?;
    let mut first = tap.hold(|call| call.path == APPLY);
    node.serve(&eager).await?;
    first.came().await?;
    for image in &many {
        node.cri.remove_image(image.name()).await?;
    }
    first.release();
    for image in &many {
        node.assert_logged_once(image).await?;
        node.wait_removed(handler, image).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_removed_during_its_unpack_leaves_nothing_on_1_7() -> Result<()> {
    removed_during_unpack(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_removed_during_its_unpack_leaves_nothing_on_2_1() -> Result<()> {
    removed_during_unpack(Version::V2_1).await
}

/// Each time the unpack begins with a layer of the pull.
async fn pulled_again(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve("").await?;
    let image = images::own_layers("registry.test/lab/again:1", 12)?;
    node.registry.push(&image).await?;
    for n in 1..4 {
        node.cri.pull_image(image.name()).await?;
        node.wait_image(&image, NYDUS).await?;
        node.wait_for_lines(FOUND_EARLY, n).await?;
        node.cri.remove_image(image.name()).await?;
        node.wait_removed(NYDUS, &image).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_pulled_again_is_unpacked_again_on_1_7() -> Result<()> {
    pulled_again(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_pulled_again_is_unpacked_again_on_2_1() -> Result<()> {
    pulled_again(Version::V2_1).await
}
