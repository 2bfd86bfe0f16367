//! An image that is removed while it is made ready ahead, as a kubelet's image collection does: nothing of it
//! stays, the log says so once, and when it is pulled again it is met like a new one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Image, Tap, Version, images};
use tokio::time::Instant;

use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, PATIENCE, handler};

/// containerd's own collection of what an image leaves takes some milliseconds. This is for a loaded machine,
/// and far less than the 24 hours after which a lease expires.
const SOON: Duration = Duration::from_secs(10);

const WAS_REMOVED: &str = "image was removed before it was ready ahead: the work on it has ended";

/// Before the image has a record.
const MET: &str = "found the image of a layer that is being pulled image=registry.test/lab/again@";

const APPLY: &str = "/containerd.services.diff.v1.Diff/Apply";

/// Layers of busybox, which all images share.
const BASE: usize = 2;

/// More than the plugin looks at in a moment.
const MANY: usize = 21;

impl Node {
    /// The image's own layers, which no other image has, are not in the snapshotter, and neither are its blobs.
    async fn gone(&self, snapshotter: &str, image: &Image) -> Result<()> {
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

    async fn soon_gone(&self, snapshotter: &str, image: &Image) -> Result<()> {
        let deadline = Instant::now() + SOON;
        while let Err(e) = self.gone(snapshotter, image).await {
            ensure!(Instant::now() < deadline, "{e:#}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// The plugin speaks of the image's removal once, and warns of nothing.
    async fn assert_said_once(&self, image: &Image) -> Result<()> {
        let said = format!("{WAS_REMOVED} image={}", image.name());
        self.log.wait_for(&said, PATIENCE).await?;
        let lines = self.log.lines_with(image.name());
        let said: Vec<_> = lines.iter().filter(|l| l.contains(WAS_REMOVED)).collect();
        ensure!(said.len() == 1, "{said:#?}");
        let loud = lines
            .iter()
            .filter(|l| l.contains(" WARN ") || l.contains(" ERROR "));
        let loud: Vec<_> = loud.collect();
        ensure!(loud.is_empty(), "{loud:#?}");
        Ok(())
    }
}

/// The second of its own layers is being applied. Then many images wait for their turn.
async fn unpacked_ahead(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let eager = format!("[snapshotters.{handler}]\neager = \"all\"\n");
    node.tap = Some(Tap::start(&node.lab)?);
    node.serve(&eager).await?;
    node.wait_image(&node.image, handler).await?;

    let large = images::large("registry.test/lab/large:1", 4, 1 << 20)?;
    node.registry.push(&large).await?;
    let tap = node.tap.as_ref().context("tapped")?;
    // The lowest layers are there: they are another image's as well.
    let first = tap.hold(|call| call.path == APPLY);
    let mut second = tap.hold(|call| call.path == APPLY);
    first.release();
    node.cri.pull_image(large.name()).await?;
    second.came().await?;
    ensure!(node.store.chain(handler, &large).await?.len() == BASE + 1);
    node.cri.remove_image(large.name()).await?;
    node.soon_gone(handler, &large).await?;
    drop(second);
    node.assert_said_once(&large).await?;

    // It is met like a new one.
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
        node.assert_said_once(image).await?;
        node.soon_gone(handler, image).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_while_it_is_unpacked_ahead_on_1_7() -> Result<()> {
    unpacked_ahead(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_removed_while_it_is_unpacked_ahead_on_2_1() -> Result<()> {
    unpacked_ahead(Version::V2_1).await
}

/// The work begins with a layer of the pull, each time.
async fn pulled_again(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve("").await?;
    let image = images::own_layers("registry.test/lab/again:1", 12)?;
    node.registry.push(&image).await?;
    for n in 1..4 {
        node.cri.pull_image(image.name()).await?;
        node.wait_image(&image, NYDUS).await?;
        node.wait_for_lines(MET, n).await?;
        node.cri.remove_image(image.name()).await?;
        node.soon_gone(NYDUS, &image).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_pulled_again_is_met_again_on_1_7() -> Result<()> {
    pulled_again(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_that_is_pulled_again_is_met_again_on_2_1() -> Result<()> {
    pulled_again(Version::V2_1).await
}
