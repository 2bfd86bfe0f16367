//! Chains that were unpacked on the host, and that containers use: what it costs until they are replaced.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Image, Tap, Version};
use tokio::time::Instant;

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, ON_DEMAND};

const IMAGES: usize = 12;

/// How long the plugin is watched.
const WATCHED: Duration = Duration::from_secs(12);

/// The rounds in that time; with one for each image there would be twelve times as many.
const MOST_LISTINGS: usize = 6;

/// A chain is replaced in this time after its container is removed.
const SOON: Duration = Duration::from_secs(5);

/// Starts a node with containers on chains that containerd has unpacked on the host, and then the plugin.
async fn with_used_chains(version: Version) -> Result<(Node, Vec<(Image, String)>)> {
    let mut node = start(version).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let mut used = Vec::new();
    for n in 0..IMAGES {
        let image = image(1, n);
        node.registry.push(&image).await?;
        node.cri.pull_image(image.name()).await?;
        let created = node.cri.create_container(&pod, image.name(), &[], &[]);
        let container = created.await?;
        used.push((image, container));
    }
    node.tap = Some(Tap::start(&node.lab)?);
    node.serve(ON_DEMAND).await?;
    Ok((node, used))
}

async fn one_listing_for_all_chains_in_use(version: Version) -> Result<()> {
    let (mut node, used) = with_used_chains(version).await?;
    // The existing containers have been checked, and the first rounds have run.
    tokio::time::sleep(SOON).await;
    let tap = node.tap.as_ref().context("no tap")?;
    let before = tap.calls().len();
    tokio::time::sleep(WATCHED).await;
    let calls = tap.calls().split_off(before);
    let of = |method: &str| calls.iter().filter(|c| c.path.ends_with(method)).count();
    let (listings, prepared) = (of("Snapshots/List"), of("Snapshots/Prepare"));
    println!(
        "{version:?}: {listings} listings and {prepared} prepared snapshots for {IMAGES} images in {WATCHED:?}"
    );
    ensure!((1..=MOST_LISTINGS).contains(&listings), "{listings}");
    ensure!(prepared == 0, "{prepared} snapshots for no container");
    let snapshots = node.store.snapshots(NYDUS).await?;
    let mut keys = snapshots.iter().map(|snapshot| &snapshot.key);
    let private = keys.find(|key| key.starts_with("nri-unpack-private-"));
    ensure!(private.is_none(), "{private:?} for no container");

    let (image, container) = &used[0];
    node.cri.remove_container(container).await?;
    let began = Instant::now();
    let replaced = "chain that was unpacked on the host and was in use is replaced";
    node.log.wait_for(replaced, SOON).await?;
    println!("{version:?}: replaced after {:?}", began.elapsed());
    ensure!(node.state_of(image, NYDUS).await? == "ready");
    ensure!(node.state_of(&used[1].0, NYDUS).await? == "unlabelled");
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_listing_for_all_chains_in_use_on_1_7() -> Result<()> {
    one_listing_for_all_chains_in_use(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn one_listing_for_all_chains_in_use_on_2_1() -> Result<()> {
    one_listing_for_all_chains_in_use(Version::V2_1).await
}
