//! The main purpose of the plugin: an image was pulled for overlayfs, and a pod of another handler finds it
//! labelled in that handler's snapshotter.

use anyhow::{Result, ensure};
use lab::Version;

use crate::support::{LaunchedBy, Node, handler};

async fn main_job(version: Version, by: LaunchedBy) -> Result<()> {
    main_job_on(Node::serving(version, by).await?).await
}

/// The pull labels the layers of the default snapshotter. The labels in the other snapshotter are the same as
/// without that.
async fn main_job_annotated(version: Version) -> Result<()> {
    let mut node = Node::start_annotated(version).await?;
    node.serve("").await?;
    main_job_on(node).await
}

async fn main_job_on(mut node: Node) -> Result<()> {
    let version = node.lab.version();
    let handler = handler(version);
    let image = node.image.name().to_owned();

    let default = node.cri.run_pod("", &[]).await?;
    node.cri
        .create_container(&default, &image, &[], &[])
        .await?;
    let chain = node.store.chain(handler, &node.image).await?;
    ensure!(
        chain.is_empty(),
        "a pod of the default handler is none of our business: {chain:?}"
    );

    let pod = node.cri.run_pod(handler, &[]).await?;
    let status = node.cri.pod_status(&pod).await?;
    ensure!(status.runtime_handler == handler, "{status:?}");
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.wait_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;

    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1_by_itself() -> Result<()> {
    main_job(Version::V2_1, LaunchedBy::Itself).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7_by_itself() -> Result<()> {
    main_job(Version::V1_7, LaunchedBy::Itself).await
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1_launched_by_containerd() -> Result<()> {
    main_job(Version::V2_1, LaunchedBy::Containerd).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7_launched_by_containerd() -> Result<()> {
    main_job(Version::V1_7, LaunchedBy::Containerd).await
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1_with_annotations() -> Result<()> {
    main_job_annotated(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7_with_annotations() -> Result<()> {
    main_job_annotated(Version::V1_7).await
}
