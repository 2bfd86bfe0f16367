//! Slow unpacks in one snapshotter do not delay another snapshotter.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Held, Tap, Version};
use tokio::time::{Instant, timeout};

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, PATIENCE, handler};

/// More permits than places, so that the engine does not limit the unpacks.
const MANY: &str = "[unpack]\nmin_free = \"0%\"\nparallel_images = 64\nparallel_layers = 64\n[snapshotters.default]\neager = \"all\"\n";

/// More images than one worker looks at at the same time.
const SLOW_IMAGES: usize = 20;

/// More layers than the test unpacks.
const HELD: usize = 64;

/// The race after a pull takes some milliseconds.
const SOON: Duration = Duration::from_secs(5);

/// Starts the plugin while no layer is applied, and adds images. Returns when all of them are being unpacked.
async fn with_slow_unpacks(version: Version) -> Result<(Node, Vec<Held>)> {
    let mut node = start(version).await?;
    node.tap = Some(Tap::start(&node.lab)?);
    node.serve(MANY).await?;
    node.wait_reconciled(handler(version)).await?;
    let tap = node.tap.as_ref().context("no tap")?;
    let is_apply = |call: &lab::Call| call.path.ends_with("Diff/Apply");
    let mut held: Vec<_> = (0..HELD).map(|_| tap.hold(is_apply)).collect();
    for n in 0..SLOW_IMAGES {
        node.store.put_image(&image(1, n)).await?;
    }
    for (n, held) in held[..SLOW_IMAGES].iter_mut().enumerate() {
        let came = timeout(PATIENCE, held.came()).await;
        came.with_context(|| format!("{n} of {SLOW_IMAGES} images are being unpacked"))??;
    }
    Ok((node, held))
}

async fn slow_unpacks_delay_no_other_work(version: Version) -> Result<()> {
    let (mut node, held) = with_slow_unpacks(version).await?;
    let handler = handler(version);
    let pulled = image(5, 0);
    node.registry.push(&pulled).await?;
    node.cri.pull_image(pulled.name()).await?;
    let began = Instant::now();
    node.wait_image(&pulled, NYDUS).await?;
    ensure!(began.elapsed() < SOON, "{:?}", began.elapsed());
    ensure!(node.state_of(&image(1, 0), handler).await? == "missing");
    held.into_iter().for_each(Held::release);
    for n in 0..SLOW_IMAGES {
        node.wait_image(&image(1, n), handler).await?;
    }
    node.assert_nothing_left(handler).await?;
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_unpacks_delay_no_other_snapshotter_on_1_7() -> Result<()> {
    slow_unpacks_delay_no_other_work(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_unpacks_delay_no_other_snapshotter_on_2_1() -> Result<()> {
    slow_unpacks_delay_no_other_work(Version::V2_1).await
}

/// The hook would wait for 8 s.
async fn a_pod_does_not_wait_for_images_on_their_way(version: Version) -> Result<()> {
    let (mut node, held) = with_slow_unpacks(version).await?;
    let began = Instant::now();
    let pod = node.cri.run_pod(handler(version), &[]).await?;
    let took = began.elapsed();
    println!("{version:?}: a pod with {SLOW_IMAGES} images on their way took {took:?}");
    ensure!(took < SOON, "{took:?}");
    held.into_iter().for_each(Held::release);
    node.cri.remove_pod(&pod).await?;
    node.assert_nothing_left(handler(version)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_does_not_wait_for_images_on_their_way_on_1_7() -> Result<()> {
    a_pod_does_not_wait_for_images_on_their_way(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_does_not_wait_for_images_on_their_way_on_2_1() -> Result<()> {
    a_pod_does_not_wait_for_images_on_their_way(Version::V2_1).await
}
