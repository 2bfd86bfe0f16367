//! An image that containerd unpacked without labels is found, and the hook of the container that caused the
//! unpack repairs it in place, before the container starts.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Call, Tap, Version};

use crate::support::{LaunchedBy, Node, PATIENCE, handler};

async fn an_unlabelled_image_is_repaired(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let (handler, image) = (handler(version), node.image.name().to_owned());

    // Without the plugin: unpacked, without labels.
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

    // The plugin would repair an existing container's image without a hook.
    node.cri.remove_container(&first).await?;
    node.serve("").await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.wait_labelled(handler).await?;
    ensure!(
        node.log.lines_with("image made ready").len() == 1,
        "the hook did not make the image ready"
    );
    let check = node.command(&["check", &image, "--handler", handler])?;
    ensure!(check.status.code() == Some(0), "{check:?}");
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/two").await? == "two\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlabelled_image_is_repaired_on_2_1() -> Result<()> {
    an_unlabelled_image_is_repaired(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unlabelled_image_is_repaired_on_1_7() -> Result<()> {
    an_unlabelled_image_is_repaired(Version::V1_7).await
}

/// Images of containers that exist when the plugin registers are made ready in the background.
#[tokio::test(flavor = "multi_thread")]
async fn images_of_existing_containers_become_ready() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod("erofs", &[]).await?;
    node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.serve("").await?;
    node.wait_for_lines("image of an existing container is ready", 1)
        .await?;
    node.wait_labelled("erofs").await
}

/// The hook of a container with a ready image makes one round trip to containerd: it reads the container's
/// snapshot and the known chain of the image concurrently. The plugin sends no other call, before, during and
/// after the creation.
#[tokio::test(flavor = "multi_thread")]
async fn a_hook_with_a_ready_image_makes_one_round_trip() -> Result<()> {
    for version in Version::ALL {
        let mut node = Node::start(version).await?;
        node.tap = Some(Tap::start(&node.lab)?);
        node.serve("").await?;
        let (handler, image) = (handler(version), node.image.name().to_owned());
        let pod = node.cri.run_pod(handler, &[]).await?;
        node.cri.create_container(&pod, &image, &[], &[]).await?;
        node.wait_reconciled(handler).await?;
        node.assert_nothing_left(handler).await?;
        let calls = || node.tap.as_ref().map(Tap::calls).unwrap_or_default();
        // The work for the first container has to end first.
        let tap = node.tap.as_ref().context("tapped")?;
        tap.quiet(0, Duration::from_secs(1), PATIENCE).await?;
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
            // The second call is sent before the answer to the first.
            let began = std::time::Instant::now();
            while calls().len() < before + 2 {
                ensure!(
                    began.elapsed() < PATIENCE,
                    "the calls were sent one after another"
                );
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

/// The plugin ignores a pod with mode `skip`.
#[tokio::test(flavor = "multi_thread")]
async fn a_pod_with_mode_skip_is_ignored() -> Result<()> {
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
