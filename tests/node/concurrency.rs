//! Many at once who want the same chain: each other, and containerd itself.

use std::process::Output;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::images::Builder;
use lab::{Image, Layer, Tap, Version, images};

use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, PATIENCE, handler};

/// Callers of one flight.
const CALLERS: usize = 50;

/// Processes, each with an engine of its own.
const PROCESSES: usize = 6;

impl Node {
    /// As many processes that ensure the image at the same time.
    fn ensured_by(&self, processes: usize, handler: &str) -> Result<Vec<Output>> {
        let command = || self.command(&ensure_times(&self.image, handler, 1));
        tokio::task::block_in_place(|| {
            std::thread::scope(|scope| {
                let started: Vec<_> = (0..processes).map(|_| scope.spawn(command)).collect();
                let ended = started.into_iter().map(|it| it.join().expect("no panic"));
                ended.collect()
            })
        })
    }
}

/// `ensure` of one image, named that many times.
fn ensure_times<'a>(image: &'a Image, handler: &'a str, times: usize) -> Vec<&'a str> {
    let mut words = vec!["ensure", "--handler", handler, "--output", "json"];
    words.extend(std::iter::repeat_n(image.name(), times));
    words
}

/// Fifty callers share one flight: each layer is prepared, applied and committed once. Processes
/// cannot share it; they do each other no harm.
async fn the_same_image(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.tap = Some(Tap::start(&node.lab)?);
    let handler = handler(version);
    let output = node.command(&ensure_times(&node.image, handler, CALLERS))?;
    ensure!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let rows = report["results"].as_array().map_or(0, Vec::len);
    ensure!(rows == CALLERS, "{rows} results");
    let calls = node.tap.as_ref().map(Tap::calls).unwrap_or_default();
    for method in ["Snapshots/Prepare", "Diff/Apply", "Snapshots/Commit"] {
        let count = calls.iter().filter(|c| c.path.ends_with(method)).count();
        ensure!(count == node.image.layers.len(), "{count} times {method}");
    }
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;

    // It shares no layer with the other.
    let file = |n: usize| Layer::new().file("f", 0o644, format!("{n}\n").repeat(1 << 18));
    let image = Image::builder("registry.test/lab/other:1").command(&["/none"]);
    node.image = (0..8).map(file).fold(image, Builder::layer).build();
    node.store.put_image(&node.image).await?;
    for output in node.ensured_by(PROCESSES, handler)? {
        ensure!(output.status.success(), "{output:?}");
    }
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_on_2_1() -> Result<()> {
    the_same_image(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_image_on_1_7() -> Result<()> {
    the_same_image(Version::V1_7).await
}

/// containerd unpacks for a container, without labels, what `ensure` unpacks with them: both come to
/// their end.
async fn with_containerd(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.image = images::large("registry.test/lab/large:1", 16, 2 << 20)?;
    node.lab.import(&node.image).await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    let (mut cri, name) = (node.cri.clone(), node.image.name().to_owned());
    let creation = tokio::spawn(async move { cri.create_container(&pod, &name, &[], &[]).await });
    let begun = async {
        while node.store.chain(handler, &node.image).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        anyhow::Ok(node.store.chain(handler, &node.image).await?.len())
    };
    let begun = tokio::time::timeout(PATIENCE, begun).await??;
    ensure!(begun < node.image.layers.len(), "too quick to be met");

    for output in node.ensured_by(2, handler)? {
        ensure!(output.status.success(), "{output:?}");
    }
    let container = creation.await??;
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;
    let snapshots = node.store.snapshots(handler).await?;
    let left = snapshots.iter().find(|s| s.key.starts_with("extract-"));
    ensure!(left.is_none(), "{left:?}");

    let mut cri = node.cri.clone();
    cri.start_container(&container).await?;
    let count = ["sh", "-c", "cat /data/* | wc -c"];
    let count = cri.exec_sync(&container, &count).await?;
    ensure!(
        count.stdout.trim() == (16 * (2 << 20)).to_string(),
        "{count:?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn with_containerd_on_2_1() -> Result<()> {
    with_containerd(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_containerd_on_1_7() -> Result<()> {
    with_containerd(Version::V1_7).await
}

/// The same where the guest pulls: the layers of both interleave, to a chain that nothing can run
/// from. The container gets the guest pull, and so does the next `ensure`.
async fn with_containerd_for_a_guest(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve("").await?;
    node.image = images::many_layers("registry.test/lab/many:1", 20)?;
    node.lab.import(&node.image).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let (mut cri, name) = (node.cri.clone(), node.image.name().to_owned());
    let creation = tokio::spawn(async move { cri.create_container(&pod, &name, &[], &[]).await });
    // They may find it in use, and fail.
    node.ensured_by(2, NYDUS)?;
    let container = creation.await??;
    node.assert_guest_pulls(&container).await?;
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while node.state_of(&node.image, NYDUS).await? != "ready" {
        ensure!(tokio::time::Instant::now() < deadline, "not replaced");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    node.assert_guest_pulls(&container).await?;
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_containerd_for_a_guest_on_2_1() -> Result<()> {
    with_containerd_for_a_guest(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn with_containerd_for_a_guest_on_1_7() -> Result<()> {
    with_containerd_for_a_guest(Version::V1_7).await
}
