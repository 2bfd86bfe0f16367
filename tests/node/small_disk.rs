//! A file system that fills: work ahead stops before the thresholds of the kubelet, which removes images at 85 % of its
//! disk and evicts pods at 85 to 90 %. The containerd of these tests has its root on a file system of its own.

use std::fs::File;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, Options, Version};
use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

use crate::ahead_cost::noise;
use crate::support::{DEFAULT_HOOKS, Node, PATIENCE, handler};

/// The size of the file system in MiB, and the bytes of the one layer of each image: their blobs take 40 % of it, and
/// their layers would take as much again.
const DISK: u64 = 500;
const BYTES: usize = 25 << 20;
const IMAGES: usize = 8;

/// The default of `unpack.min_free`, in percent.
const MIN_FREE: u64 = 20;

/// The plugin measures a file system that is nearly full every ten seconds.
const RECOVERED: Duration = Duration::from_secs(60);

fn image(n: usize) -> Image {
    let layer = Layer::new().file("file", 0o644, noise(n as u64 + 1, BYTES));
    let name = format!("registry.test/disk/app:{n}");
    Image::builder(&name)
        .command(&["/none"])
        .layer(layer)
        .build()
}

impl Node {
    /// Returns what is free on the file system of containerd's root, in percent, as the kubelet counts it.
    fn free_percent(&self) -> Result<u64> {
        let disk = statvfs(self.lab.root())?;
        Ok(disk.f_bavail * 100 / (disk.f_blocks - disk.f_bfree + disk.f_bavail))
    }

    /// Returns the images that the snapshotter has.
    async fn unpacked<'a>(&self, handler: &str, images: &'a [Image]) -> Result<Vec<&'a Image>> {
        let mut unpacked = vec![];
        for image in images {
            if !self.store.chain(handler, image).await?.is_empty() {
                unpacked.push(image);
            }
        }
        Ok(unpacked)
    }
}

async fn work_ahead_stops_before_the_disk_is_full(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.root_size = Some(DISK);
    let mut node = Node::start_with(version, options).await?;
    let handler = handler(version);
    let images: Vec<_> = (0..IMAGES).map(image).collect();
    for image in &images {
        node.store.put_image(image).await?;
    }
    let before = node.free_percent()?;
    ensure!(
        before > MIN_FREE + 10,
        "only {before} % are free at the start"
    );

    node.hooks = DEFAULT_HOOKS;
    // Of the snapshotters on this disk only one. The tests' own configuration has another limit.
    let eager = format!("[snapshotters.{handler}]\neager = \"all\"\n");
    let config = node.config(&eager).replace("min_free = \"0%\"\n", "");
    node.serve_config(&config).await?;
    let rest = format!(
        "images rest until there is enough free space: they are unpacked when a pod needs them snapshotter={handler} "
    );
    node.log.wait_for(&rest, PATIENCE).await?;
    node.assert_nothing_left(handler).await?;
    let unpacked = node.unpacked(handler, &images).await?;
    ensure!(!unpacked.is_empty(), "nothing was unpacked");
    ensure!(unpacked.len() < IMAGES, "all images were unpacked");
    let after = node.free_percent()?;
    println!(
        "{version:?}: {} of {IMAGES} images were unpacked; {before} % were free before, {after} % after",
        unpacked.len()
    );
    ensure!(after >= MIN_FREE, "only {after} % are free");

    // What is asked for is unpacked nevertheless.
    let is_unpacked = |image: &Image| unpacked.iter().any(|it| it.name() == image.name());
    let resting = images.iter().find(|image| !is_unpacked(image));
    let resting = resting.context("an image that rests")?;
    ensure!(node.ensure_ready(resting, handler)? == "unpacked");

    // The kubelet removes images that no container uses.
    let (removed, kept) = images.split_at(IMAGES / 2);
    for image in removed {
        node.cri.remove_image(image.name()).await?;
    }
    node.store.collect_garbage().await?;
    let deadline = tokio::time::Instant::now() + RECOVERED;
    while node.unpacked(handler, kept).await?.len() < kept.len() {
        ensure!(
            tokio::time::Instant::now() < deadline,
            "images rest, and {} % are free",
            node.free_percent()?
        );
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn work_ahead_stops_before_the_disk_is_full_on_2_1() -> Result<()> {
    work_ahead_stops_before_the_disk_is_full(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn work_ahead_stops_before_the_disk_is_full_on_1_7() -> Result<()> {
    work_ahead_stops_before_the_disk_is_full(Version::V1_7).await
}

/// The file system is full, or nearly: an unpack fails, and nothing of it stays. What was there before stays, and when
/// there is space again, the next try succeeds.
async fn a_full_disk_loses_nothing(version: Version, left: u64) -> Result<()> {
    let mut options = Options::new(version);
    options.root_size = Some(DISK);
    let mut node = Node::start_with(version, options).await?;
    let handler = handler(version);
    let [ready, image] = [image(0), image(1)];
    for image in [&ready, &image] {
        node.store.put_image(image).await?;
    }
    node.ensure_ready(&ready, handler)?;
    node.serve("").await?;
    let pod = node.cri.run_pod(handler, &[]).await?;
    let filler = node.lab.root().join("filler");
    fill(&filler, left)?;
    let output = node.command(&["ensure", image.name(), "--snapshotter", handler])?;
    let error = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.code() == Some(1), "{output:?}");
    // The error of containerd, which names no reason where `mkfs.erofs` fails.
    ensure!(error.contains(&image.layers[0].digest), "{error}");
    let created = node
        .cri
        .create_container(&pod, image.name(), &[], &[])
        .await;
    ensure!(created.is_err(), "a container without space");
    std::fs::remove_file(&filler)?;

    node.assert_nothing_left(handler).await?;
    ensure!(node.state_of(&ready, handler).await? == "ready");
    ensure!(node.ensure_ready(&image, handler)? == "unpacked");
    for image in [&ready, &image] {
        node.cri
            .create_container(&pod, image.name(), &[], &[])
            .await?;
    }
    node.assert_nothing_left(handler).await
}

/// Takes all space of a file system but so many bytes.
fn fill(filler: &Path, left: u64) -> Result<()> {
    let file = File::create(filler)?;
    let mut size = 0;
    // What is free includes blocks that ext4 keeps for itself.
    loop {
        match fallocate(&file, FallocateFlags::empty(), size, STEP) {
            Ok(()) => size += STEP,
            Err(Errno::NOSPC) => break,
            Err(e) => return Err(e.into()),
        }
    }
    file.set_len(size.saturating_sub(left))?;
    Ok(())
}

/// The bytes that a file grows by.
const STEP: u64 = 1 << 20;

/// The metadata of containerd fits, a layer does not.
const FOR_METADATA: u64 = 4 << 20;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_on_2_1() -> Result<()> {
    a_full_disk_loses_nothing(Version::V2_1, FOR_METADATA).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_loses_nothing_on_1_7() -> Result<()> {
    a_full_disk_loses_nothing(Version::V1_7, FOR_METADATA).await
}
