//! Measures what a labelled `Prepare` costs in nydus-snapshotter, by the number of snapshots that it holds.
//! This cost is the reason for the limit on unpacking ahead.
//!
//! Run `cargo test --test node ahead_fill -- --ignored --nocapture`.

use std::time::Instant;

use anyhow::{Result, ensure};
use lab::Version;

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};

const SNAPSHOTS: usize = 5000;
const STEP: usize = 1000;
const LAYERS: usize = 40;

async fn fill(version: Version) -> Result<()> {
    let node = start(version).await?;
    for step in 0..SNAPSHOTS / STEP {
        let images = STEP / LAYERS;
        let images: Vec<_> = (0..images)
            .map(|n| image(LAYERS, step * images + n))
            .collect();
        for image in &images {
            node.store.put_image(image).await?;
        }
        let mut words = vec!["ensure", "--snapshotter", NYDUS];
        words.extend(images.iter().map(lab::Image::name));
        let began = Instant::now();
        let output = node.command(&words)?;
        let took = began.elapsed();
        ensure!(output.status.success(), "{output:?}");
        let began = Instant::now();
        let held = node.store.snapshots(NYDUS).await?.len();
        println!(
            "{version:?}: {held} snapshots; each of the last {STEP} took {:.1} ms; a list takes {:?}",
            took.as_secs_f64() * 1000.0 / STEP as f64,
            began.elapsed()
        );
    }
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn nydus_on_2_1() -> Result<()> {
    fill(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn nydus_on_1_7() -> Result<()> {
    fill(Version::V1_7).await
}
