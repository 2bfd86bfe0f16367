//! A snapshotter that has lost its state: its directory was deleted while it was down. containerd's metadata still has
//! all records, and every pod of the handler fails before a hook is called.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use lab::images::Layer;
use lab::{Image, PAUSE, Pod, Remote, Version, images};
use tokio::time::Instant;

use crate::guest_pull::{NYDUS, start};
use crate::support::{Node, PATIENCE, handler};

/// The pause between the tries of a pod. The kubelet makes longer ones.
const BETWEEN_TRIES: Duration = Duration::from_secs(1);

/// The time within which a pod starts after a loss.
const HEALED: Duration = Duration::from_secs(20);

/// The base of two images: `many_layers` of another name has the same layers.
const LAYERS: usize = 40;

/// Returns the images of the test: two that share their lower layers, and one with 40 layers.
fn all_images(node: &Node) -> Result<Vec<Image>> {
    Ok(vec![
        node.image.clone(),
        images::many_layers("registry.test/lost/many:1", LAYERS)?,
        images::many_layers("registry.test/lost/some:1", LAYERS / 2)?,
        images::own_layers("registry.test/lost/own:1", 3)?,
    ])
}

impl Node {
    /// Pulls the images and waits until they are ready in nydus.
    async fn pull_all(&mut self, images: &[Image]) -> Result<()> {
        for image in images {
            self.registry.push(image).await?;
            self.cri.pull_image(image.name()).await?;
        }
        self.wait_all(images).await
    }

    async fn wait_all(&self, images: &[Image]) -> Result<()> {
        for image in images {
            self.wait_image(image, NYDUS).await?;
        }
        Ok(())
    }

    /// nydus-snapshotter is killed and starts with an empty directory.
    pub(crate) async fn lose_nydus(&self) -> Result<()> {
        let nydus = self.lab.remote(Remote::Nydus);
        nydus.kill();
        std::fs::remove_dir_all(self.lab.path("nydus"))?;
        nydus.restart().await?;
        // containerd reconnects by itself, one second after the first failed call.
        let began = Instant::now();
        while let Err(e) = self.store.snapshots(NYDUS).await {
            ensure!(began.elapsed() < PATIENCE, "{e}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        Ok(())
    }

    /// Runs a pod as the kubelet does: with further tries. Returns how long it took.
    async fn run_pod_at_last(&mut self, handler: &str) -> Result<(Pod, Duration)> {
        let began = Instant::now();
        loop {
            match self.cri.run_pod(handler, &[]).await {
                Ok(pod) => return Ok((pod, began.elapsed())),
                Err(e) => ensure!(began.elapsed() < PATIENCE, "{e}"),
            }
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
    }
}

/// The plugin has its default configuration, and no operator acts.
async fn a_node_heals(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve("").await?;
    let images = all_images(&node)?;
    node.pull_all(&images).await?;
    node.lose_nydus().await?;
    ensure!(node.cri.run_pod(NYDUS, &[]).await.is_err(), "nothing lost");
    let (pod, took) = node.run_pod_at_last(NYDUS).await?;
    println!("{version:?}: a pod started {took:?} after the loss");
    ensure!(took < HEALED, "a pod started only after {took:?}");
    node.wait_all(&images).await?;
    for image in &images {
        let container = node.cri.create_container(&pod, image.name(), &[], &[]);
        let container = container.await?;
        node.assert_guest_pulls_image(&container, image).await?;
    }
    node.assert_nothing_left(NYDUS).await?;
    node.store.collect_garbage().await?;
    node.wait_all(&images).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_heals_on_2_1() -> Result<()> {
    a_node_heals(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_heals_on_1_7() -> Result<()> {
    a_node_heals(Version::V1_7).await
}

/// A container of one image is there: that image, and those on the same base, stay lost until its pod is deleted. All
/// others are healed.
async fn what_no_container_holds_is_healed(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve("").await?;
    let other = Image::builder("registry.test/lost/other:1");
    let other = other
        .layer(Layer::new().file("file", 0o644, "other"))
        .build();
    let images = [node.image.clone(), other];
    node.pull_all(&images).await?;
    // The work ahead is over, or nearly: the regular look notices the loss, or a reconcile that the pull has caused.
    node.wait_reconciled(NYDUS).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let held = images[0].name();
    node.cri.create_container(&pod, held, &[], &[]).await?;
    node.lose_nydus().await?;
    node.wait_for_lines("in nydus is lost", 1).await?;
    node.wait_all(&images[1..]).await?;
    ensure!(node.state_of(&images[0], NYDUS).await? == "lost");
    let row = node.row(&["ensure", held, "--snapshotter", NYDUS])?;
    ensure!(row["state"] == "lost", "{row:#}");
    let (_, found) = node.examine()?;
    let lost = &found["snapshots-lost"];
    let say = lost["remedy"]["say"].as_str().unwrap_or_default();
    let metadata = pod.config.metadata.clone().unwrap_or_default();
    let name = format!("{}/{}", metadata.namespace, metadata.name);
    ensure!(say.contains(&name), "{lost:#}");
    // The pause image is held by the same pod: it is lost for all pods of the handler.
    ensure!(
        lost["found"]
            .as_str()
            .is_some_and(|found| found.contains(PAUSE))
    );

    node.cri.remove_pod(&pod).await?;
    let (pod, took) = node.run_pod_at_last(NYDUS).await?;
    println!("{version:?}: a pod started {took:?} after the last one was gone");
    node.wait_all(&images).await?;
    let container = node.cri.create_container(&pod, held, &[], &[]).await?;
    node.assert_guest_pulls_image(&container, &images[0])
        .await?;
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_container_holds_is_healed_on_2_1() -> Result<()> {
    what_no_container_holds_is_healed(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_no_container_holds_is_healed_on_1_7() -> Result<()> {
    what_no_container_holds_is_healed(Version::V1_7).await
}

/// Unmounts what containerd 2.1 leaves mounted in the directory of erofs.
fn unmount_below(directory: &Path) -> Result<()> {
    let mounts = std::fs::read_to_string("/proc/self/mounts")?;
    let targets = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for target in targets.filter(|target| Path::new(target).starts_with(directory)) {
        let status = Command::new("umount").arg(target).status()?;
        ensure!(status.success(), "umount {target}: {status}");
    }
    Ok(())
}

/// The directory of a snapshotter that is a part of containerd was deleted while containerd was down. Its images are
/// not in the eager set, but for the pause image.
async fn a_local_snapshotter_heals(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let snapshotter = handler(version);
    node.serve("").await?;
    let pod = node.cri.run_pod(snapshotter, &[]).await?;
    let image = node.image.name().to_owned();
    node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.wait_labelled(snapshotter).await?;
    node.cri.remove_pod(&pod).await?;
    node.wait_reconciled(snapshotter).await?;
    node.lab.stop().await?;
    let directory = format!("io.containerd.snapshotter.v1.{snapshotter}");
    let directory = node.lab.root().join(directory);
    unmount_below(&directory)?;
    std::fs::remove_dir_all(directory)?;
    node.lab.restart().await?;
    node.cri = node.lab.cri().await?;
    node.store = node.lab.store().await?;
    let (pod, took) = node.run_pod_at_last(snapshotter).await?;
    println!("{version:?}: a pod started {took:?} after the loss");
    node.wait_labelled(snapshotter).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    node.assert_nothing_left(snapshotter).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_snapshotter_heals_on_2_1() -> Result<()> {
    a_local_snapshotter_heals(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_snapshotter_heals_on_1_7() -> Result<()> {
    a_local_snapshotter_heals(Version::V1_7).await
}

/// Without the plugin: the commands know the state, and `doctor --fix` heals.
async fn doctor_heals(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let images = all_images(&node)?;
    for image in &images {
        node.registry.push(image).await?;
        node.cri.pull_image(image.name()).await?;
        node.ensure_ready(image, NYDUS)?;
    }
    node.ensure_ready(&images::pause(&[PAUSE])?, NYDUS)?;
    node.lose_nydus().await?;
    for image in &images {
        ensure!(node.state_of(image, NYDUS).await? == "lost");
    }
    let (code, found) = node.examine_with(&node.config(""), &["--fix"])?;
    let fixed = found["snapshots-lost"]["fixed"].as_str();
    ensure!(
        fixed.is_some_and(|fixed| fixed.contains("ready")),
        "{code:?} {found:#?}"
    );
    for image in &images {
        ensure!(node.state_of(image, NYDUS).await? == "ready");
    }
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, images[1].name(), &[], &[]);
    let container = container.await?;
    node.assert_guest_pulls_image(&container, &images[1])
        .await?;
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_heals_on_2_1() -> Result<()> {
    doctor_heals(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_heals_on_1_7() -> Result<()> {
    doctor_heals(Version::V1_7).await
}
