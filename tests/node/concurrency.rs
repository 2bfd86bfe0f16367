//! Many at once who want the same chain: each other, and containerd itself.

use std::process::{Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::images::Builder;
use lab::{Image, Layer, Tap, Version, images};

use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, PATIENCE, handler};

/// Callers of one flight.
const CALLERS: usize = 50;

/// Processes, each with an engine of its own.
const PROCESSES: usize = 6;

const APPLY: &str = "Diff/Apply";

const LARGE: &str = "registry.test/lab/large:1";

impl Node {
    /// Whether containerd has an extraction snapshot of its own.
    async fn is_unpacked_by_containerd(&self, snapshotter: &str) -> Result<bool> {
        let snapshots = self.store.snapshots(snapshotter).await?;
        let mut keys = snapshots.iter().map(|s| s.key.as_str());
        Ok(keys.any(|key| key.starts_with("extract-") && !key.starts_with("extract-nri-unpack")))
    }

    /// How often a method was called through the tap.
    fn called(&self, method: &str) -> usize {
        let calls = self.tap.as_ref().map(Tap::calls).unwrap_or_default();
        calls.iter().filter(|c| c.path.ends_with(method)).count()
    }

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

/// Fifty callers share one flight: each layer is prepared, applied and committed once. Processes share the
/// layers: each is applied once. One that is killed at a layer keeps no other from it.
async fn the_same_image(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.tap = Some(Tap::start(&node.lab)?);
    let handler = handler(version);
    let output = node.command(&ensure_times(&node.image, handler, CALLERS))?;
    ensure!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    let rows = report["results"].as_array().map_or(0, Vec::len);
    ensure!(rows == CALLERS, "{rows} results");
    for method in ["Snapshots/Prepare", APPLY, "Snapshots/Commit"] {
        let count = node.called(method);
        ensure!(count == node.image.layers.len(), "{count} times {method}");
    }
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;

    // It shares no layer with the other.
    node.image = of_its_own("other", 8);
    node.store.put_image(&node.image).await?;
    let before = node.called(APPLY);
    for output in node.ensured_by(PROCESSES, handler)? {
        ensure!(output.status.success(), "{output:?}");
    }
    let applied = node.called(APPLY) - before;
    ensure!(applied == node.image.layers.len(), "{applied} applied");
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;

    node.image = of_its_own("third", 3);
    node.store.put_image(&node.image).await?;
    let tap = node.tap.as_ref().context("tapped")?;
    let mut held = tap.hold(|call| call.path.ends_with(APPLY));
    let words = ensure_times(&node.image, handler, 1);
    let mut killed = node.command_of(&words)?.stdout(Stdio::null()).spawn()?;
    held.came().await?;
    let (before, calls) = (node.called(APPLY), tap.calls().len());
    let waiting = node.command_of(&words)?.stdout(Stdio::null()).spawn();
    let mut waiting = waiting?;
    tap.quiet(calls, Duration::from_millis(500), PATIENCE)
        .await?;
    let applied = node.called(APPLY) - before;
    ensure!(applied == 0, "it did not wait: {applied} applied");
    killed.kill()?;
    killed.wait()?;
    let status = tokio::task::block_in_place(|| waiting.wait())?;
    ensure!(status.success(), "{status}");
    // The next command takes away what the killed one has left.
    node.ensure_ready(&node.image, handler)?;
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await
}

/// An image that shares no layer with another.
pub(crate) fn of_its_own(name: &str, layers: usize) -> Image {
    let file = |n: usize| {
        let content = format!("{n} of {name}\n").repeat(1 << 17);
        Layer::new().file("f", 0o644, content)
    };
    let image = Image::builder(format!("registry.test/lab/{name}:1")).command(&["/none"]);
    (0..layers).map(file).fold(image, Builder::layer).build()
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

/// containerd begins to unpack an image while the plugin unpacks its first layer: the plugin leaves the other layers
/// to containerd.
async fn begun_by_containerd(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.image = images::large(LARGE, 8, 32 << 20)?;
    node.store.put_image(&node.image).await?;
    let tap = Tap::start(&node.lab)?;
    let mut first = tap.hold(|call| call.path.ends_with(APPLY));
    node.tap = Some(tap);
    // The pause image is not made ready ahead, so that the first layer is one of this image.
    node.hooks = "[snapshotters.default]\neager = \"none\"\n[hooks]\nwait = \"300ms\"";
    node.serve("").await?;
    let handler = handler(version);
    let annotation = [("nri-unpack/images", LARGE)];
    let pod = node.cri.run_pod(handler, &annotation).await?;
    tokio::time::timeout(PATIENCE, first.came()).await??;
    let mut cri = node.cri.clone();
    let creation = tokio::spawn(async move { cri.create_container(&pod, LARGE, &[], &[]).await });
    let begun = async {
        while !node.is_unpacked_by_containerd(handler).await? {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, begun).await??;
    first.release();
    creation.await??;
    node.wait_labelled(handler).await?;
    let (ours, layers) = (node.called(APPLY), node.image.layers.len());
    ensure!(ours <= layers / 2, "the plugin unpacked {ours} of {layers}");
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn begun_by_containerd_on_2_1() -> Result<()> {
    begun_by_containerd(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn begun_by_containerd_on_1_7() -> Result<()> {
    begun_by_containerd(Version::V1_7).await
}
