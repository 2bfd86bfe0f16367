//! A container is created right after the pull, before the plugin could unpack the image: containerd unpacks it
//! on the host, and the first creation of the container still gets the guest pull.
//!
//! The tests make a few creations for each number of layers. For a measurement of how long the hook takes, with
//! the default of `hooks.wait`, run
//! `NRI_UNPACK_SWAPS=100 cargo test --test node after_pull -- --nocapture --test-threads 1`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::images::Builder;
use lab::{Image, Layer, Version};

use crate::guest_pull::{NYDUS, start};
use crate::support::DEFAULT_HOOKS;

/// The environment variable with the number of creations for each number of layers.
const COUNT: &str = "NRI_UNPACK_SWAPS";
const DEFAULT_COUNT: usize = 3;

/// The default of `hooks.wait`.
const DEFAULT_WAIT: Duration = Duration::from_millis(500);

/// Returns an image that shares no layer with any other image.
pub(crate) fn image(layers: usize, n: usize) -> Image {
    layered(&format!("registry.test/pulled/{layers}-layers:{n}"), layers)
}

/// Like [`image`], with this name.
pub(crate) fn layered(name: &str, layers: usize) -> Image {
    let layer = |i: usize| Layer::new().file(&format!("f{i}"), 0o644, format!("{i} of {name}\n"));
    let image = Image::builder(name).command(&["/none"]);
    (0..layers).map(layer).fold(image, Builder::layer).build()
}

async fn the_first_creation_gets_the_guest_pull(version: Version) -> Result<()> {
    let count = match std::env::var(COUNT) {
        Ok(many) => many.parse().with_context(|| format!("{COUNT}={many}"))?,
        Err(_) => DEFAULT_COUNT,
    };
    let mut node = start(version).await?;
    if count != DEFAULT_COUNT {
        node.hooks = DEFAULT_HOOKS;
    }
    node.serve(crate::support::ON_DEMAND).await?;
    for layers in [1, 10, 40] {
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        let log = node.log.from_now();
        let mut succeeded = 0;
        for n in 0..count {
            node.image = image(layers, n);
            node.registry.push(&node.image).await?;
            let name = node.image.name().to_owned();
            node.cri.pull_image(&name).await?;
            match node.cri.create_container(&pod, &name, &[], &[]).await {
                Ok(container) => {
                    node.assert_guest_pulls(&container).await?;
                    succeeded += 1;
                }
                Err(error) => println!("{layers} layers, attempt {n}: {error}"),
            }
        }
        let moved = log.lines_with("container moved");
        let costs = hook_percentiles(&moved)?;
        println!("{version:?}, {layers} layers: {succeeded} of {count}, hook {costs}");
        ensure!(
            succeeded == count,
            "{layers} layers: {succeeded} of {count}"
        );
        ensure!(moved.len() == count, "{layers} layers: {moved:#?}");
        node.cri.remove_pod(&pod).await?;
        for n in 0..count {
            node.cri.remove_image(image(layers, n).name()).await?;
        }
    }
    node.assert_nothing_left(NYDUS).await
}

/// Returns the percentiles of the hook durations in these log lines.
fn hook_percentiles(moved: &[String]) -> Result<String> {
    let took = moved.iter().map(|line| took(line));
    percentiles(took.collect::<Result<_>>()?)
}

/// Returns the median, the 99th percentile and the maximum as text.
pub(crate) fn percentiles(mut took: Vec<Duration>) -> Result<String> {
    took.sort_unstable();
    let last = took.len().checked_sub(1).context("nothing was measured")?;
    let at = |percent: usize| took[last * percent / 100];
    let [median, most, longest] = [at(50), at(99), at(100)];
    let over = took.iter().filter(|took| **took > DEFAULT_WAIT).count();
    Ok(format!(
        "p50 {median:?}, p99 {most:?}, max {longest:?}, {over} over {DEFAULT_WAIT:?}"
    ))
}

/// Returns the value of the field `took_ms` of a line in the plugin's log.
pub(crate) fn took(line: &str) -> Result<Duration> {
    let mut words = line.split_whitespace();
    let took = words.find_map(|word| word.strip_prefix("took_ms="));
    let took = took.with_context(|| line.to_owned())?;
    let milliseconds: f64 = took.parse().with_context(|| line.to_owned())?;
    Ok(Duration::from_secs_f64(milliseconds / 1e3))
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_creation_gets_the_guest_pull_on_2_1() -> Result<()> {
    the_first_creation_gets_the_guest_pull(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_creation_gets_the_guest_pull_on_1_7() -> Result<()> {
    the_first_creation_gets_the_guest_pull(Version::V1_7).await
}
