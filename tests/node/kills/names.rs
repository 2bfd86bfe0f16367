//! The plugin is killed while it replaces the name from the pull in the labels of the layers. Its next run ends that.

use anyhow::{Context, Result};
use lab::{Call, Tap, Version};

use crate::guest_pull::{NYDUS, start};
use crate::pods::image_for;
use crate::support::PATIENCE;

async fn killed_while_it_names_layers(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let tap = Tap::start(&node.lab)?;
    node.image = image_for(NYDUS, 0)?;
    let name = node.image.name().to_owned();
    let names =
        move |call: &Call| call.path.ends_with("Snapshots/Update") && call.message.contains(&name);
    let mut held = tap.hold(names);
    node.tap = Some(tap);
    node.serve("").await?;
    let image = node.image.clone();
    node.pull(&image).await?;
    tokio::time::timeout(PATIENCE, held.came()).await??;
    let plugin = node.plugin.as_mut().context("serving")?;
    plugin.kill();
    plugin.restart()?;
    drop(held);
    node.wait_image(&image, NYDUS).await?;
    node.wait_named().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_names_layers_on_2_1() -> Result<()> {
    killed_while_it_names_layers(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_names_layers_on_1_7() -> Result<()> {
    killed_while_it_names_layers(Version::V1_7).await
}
