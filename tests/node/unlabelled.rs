//! What containerd unpacked without labels is found, and repaired in place by the hook of the very
//! container that caused it, before it starts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Call, Tap, Version};

use crate::support::{LaunchedBy, Node, PATIENCE, handler};

async fn repaired_in_place(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let (handler, image) = (handler(version), node.image.name().to_owned());

    // Without the plugin: unpacked, no labels at all.
    let pod = node.cri.run_pod(handler, &[]).await?;
    let first = node.cri.create_container(&pod, &image, &[], &[]).await?;
    let chain = node.store.chain(handler, &node.image).await?;
    ensure!(
        chain.len() == 5 && chain.iter().all(|s| s.labels.is_empty()),
        "{chain:#?}"
    );
    let check = node.command(&["check", &image, "--handler", handler, "--output", "json"])?;
    ensure!(check.status.code() == Some(1), "{check:?}");
    let report: serde_json::Value = serde_json::from_slice(&check.stdout)?;
    ensure!(report["images"][0]["state"] == "unlabelled", "{report:#}");

    // What exists when the plugin comes would be repaired without a hook.
    node.cri.remove_container(&first).await?;
    node.serve("").await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.wait_labelled(handler).await?;
    ensure!(
        node.log.lines_with("image made ready").len() == 1,
        "not by the hook"
    );
    let check = node.command(&["check", &image, "--handler", handler])?;
    ensure!(check.status.code() == Some(0), "{check:?}");
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/two").await? == "two\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn on_2_1() -> Result<()> {
    repaired_in_place(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_1_7() -> Result<()> {
    repaired_in_place(Version::V1_7).await
}

/// Containers that exist when the plugin registers are looked after in the background.
#[tokio::test(flavor = "multi_thread")]
async fn existing_containers_are_synchronized() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod("erofs", &[]).await?;
    node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.serve("").await?;
    node.wait_for_lines("image of an existing container is ready", 1)
        .await?;
    node.wait_labelled("erofs").await
}

/// A ready image costs its container one round trip to containerd: the container's snapshot and the chain
/// that its image had are looked at together. Nothing else goes there, from before the creation until
/// after it.
#[tokio::test(flavor = "multi_thread")]
async fn a_ready_image_costs_one_round_trip() -> Result<()> {
    for version in Version::ALL {
        let mut node = Node::start(version).await?;
        node.tap = Some(Tap::start(&node.lab)?);
        node.serve("").await?;
        let (handler, image) = (handler(version), node.image.name().to_owned());
        let pod = node.cri.run_pod(handler, &[]).await?;
        node.cri.create_container(&pod, &image, &[], &[]).await?;
        node.log.wait_for("reconcile finished", PATIENCE).await?;
        node.assert_nothing_left(handler).await?;
        let calls = || node.tap.as_ref().map(Tap::calls).unwrap_or_default();
        // Until what the first has begun is over.
        let mut before = calls();
        loop {
            tokio::time::sleep(Duration::from_secs(1)).await;
            let now = calls();
            if now.len() == before.len() {
                break;
            }
            before = now;
        }
        for _ in 0..3 {
            let before = calls().len();
            let tap = node.tap.as_ref().context("tapped")?;
            let of_container = |call: &Call| !call.message.contains("sha256:");
            let mut held = tap.hold(move |call| is_stat(call) && of_container(call));
            let creation = tokio::spawn({
                let (mut cri, pod, image) = (node.cri.clone(), pod.clone(), image.clone());
                async move { cri.create_container(&pod, &image, &[], &[]).await }
            });
            held.came().await?;
            // The other does not wait for the answer.
            let began = std::time::Instant::now();
            while calls().len() < before + 2 {
                ensure!(began.elapsed() < PATIENCE, "one after another");
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            held.release();
            creation.await??;
            let made = calls().split_off(before);
            ensure!(
                made.len() == 2 && made.iter().all(is_stat),
                "{version:?}: {made:#?}"
            );
        }
        node.wait_for_lines("image is ready pod=", 3).await?;
    }
    Ok(())
}

fn is_stat(call: &Call) -> bool {
    call.path.ends_with("/Stat")
}

/// A pod that wants to be left alone is.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_can_opt_out() -> Result<()> {
    let mut node = Node::serving(Version::V2_1, LaunchedBy::Itself).await?;
    let image = node.image.name().to_owned();
    let pod = node
        .cri
        .run_pod("erofs", &[("nri-unpack/mode", "skip")])
        .await?;
    node.cri.create_container(&pod, &image, &[], &[]).await?;
    let chain = node.store.chain("erofs", &node.image).await?;
    ensure!(
        chain.len() == 5 && chain.iter().all(|s| s.labels.is_empty()),
        "{chain:#?}"
    );
    Ok(())
}
