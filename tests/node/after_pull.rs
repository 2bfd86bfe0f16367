//! A creation right after the pull, before anything could be prepared: containerd unpacks the image on
//! the host, and the container's first attempt still gets the guest pull.
//!
//! The tests make a few for each number of layers. How it goes in the long run, what the hook costs,
//! with the plugin's own default of `hooks.wait`, is shown by
//! `NRI_UNPACK_SWAPS=100 cargo test --test node after_pull -- --nocapture --test-threads 1`.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::images::Builder;
use lab::{Image, Layer, Version};

use crate::guest_pull::{NYDUS, start};
use crate::support::DEFAULT_HOOKS;

/// How many creations for each number of layers.
const COUNT: &str = "NRI_UNPACK_SWAPS";
const FEW: usize = 3;

/// What a hook may take by default.
const DEFAULT_WAIT: Duration = Duration::from_millis(500);

/// Shares no layer with any other.
pub(crate) fn image(layers: usize, n: usize) -> Image {
    layered(&format!("registry.test/pulled/{layers}-layers:{n}"), layers)
}

/// The same by this name.
pub(crate) fn layered(name: &str, layers: usize) -> Image {
    let layer = |i: usize| Layer::new().file(&format!("f{i}"), 0o644, format!("{i} of {name}\n"));
    let image = Image::builder(name).command(&["/none"]);
    (0..layers).map(layer).fold(image, Builder::layer).build()
}

async fn first_attempts(version: Version) -> Result<()> {
    let count = match std::env::var(COUNT) {
        Ok(many) => many.parse().with_context(|| format!("{COUNT}={many}"))?,
        Err(_) => FEW,
    };
    let mut node = start(version).await?;
    if count != FEW {
        node.hooks = DEFAULT_HOOKS;
    }
    node.serve(crate::support::ON_DEMAND).await?;
    for layers in [1, 10, 40] {
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        let log = node.log.from_now();
        let mut right = 0;
        for n in 0..count {
            node.image = image(layers, n);
            node.registry.push(&node.image).await?;
            let name = node.image.name().to_owned();
            node.cri.pull_image(&name).await?;
            match node.cri.create_container(&pod, &name, &[], &[]).await {
                Ok(container) => {
                    node.assert_guest_pulls(&container).await?;
                    right += 1;
                }
                Err(error) => println!("{layers} layers, attempt {n}: {error}"),
            }
        }
        let moved = log.lines_with("container moved");
        let costs = costs(&moved)?;
        println!("{version:?}, {layers} layers: {right} of {count}, hook {costs}");
        ensure!(right == count, "{layers} layers: {right} of {count}");
        ensure!(moved.len() == count, "{layers} layers: {moved:#?}");
        node.cri.remove_pod(&pod).await?;
        for n in 0..count {
            node.cri.remove_image(image(layers, n).name()).await?;
        }
    }
    node.assert_nothing_left(NYDUS).await
}

/// What the hooks took that moved a container.
fn costs(moved: &[String]) -> Result<String> {
    let took = moved.iter().map(|line| took(line));
    percentiles(took.collect::<Result<_>>()?)
}

/// The median, all but one in a hundred, the longest.
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

/// The field `took` of a line in the plugin's log.
pub(crate) fn took(line: &str) -> Result<Duration> {
    let mut words = line.split_whitespace();
    let took = words.find_map(|word| word.strip_prefix("took_ms="));
    let took = took.with_context(|| line.to_owned())?;
    let milliseconds: f64 = took.parse().with_context(|| line.to_owned())?;
    Ok(Duration::from_secs_f64(milliseconds / 1e3))
}

#[tokio::test(flavor = "multi_thread")]
async fn first_attempts_on_2_1() -> Result<()> {
    first_attempts(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn first_attempts_on_1_7() -> Result<()> {
    first_attempts(Version::V1_7).await
}
