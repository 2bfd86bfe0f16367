//! Measures what a pod gains from unpacking ahead, and what the plugin costs a pod. The same pods run
//! alternately on two labs, with and without the plugin; each lab is idle while the other one is measured.
//!
//! Run `cargo test --test node ahead_cost -- --ignored --nocapture --test-threads 1`, with `--release` for the
//! costs of the plugin itself.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::images::Builder;
use lab::{Image, Layer, Pod, Version};

use crate::after_pull::{percentiles, took};
use crate::support::{ALL, APP, DEFAULT_HOOKS, Node, handler};

/// The number of pairs of first containers.
const FIRST: usize = 50;

/// The number of pods with ready images, for each side.
const READY: usize = 100;

/// The layers of an image, and the bytes of each.
const LAYERS: usize = 10;
const BYTES: usize = 1 << 20;

/// Returns an image whose layers differ from those of all other `n`.
fn image(n: usize) -> Image {
    let name = format!("registry.test/cost/app:{n}");
    let layer = |i: usize| {
        let seed = (n * LAYERS + i) as u64;
        Layer::new().file(&format!("f{i}"), 0o644, noise(seed, BYTES))
    };
    let image = Image::builder(&name).command(&["/none"]);
    (0..LAYERS).map(layer).fold(image, Builder::layer).build()
}

/// Returns bytes that do not compress.
pub(crate) fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut word = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let words = std::iter::repeat_with(|| {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        word.to_le_bytes()
    });
    words.flatten().take(bytes).collect()
}

/// Returns two nodes, the first of which has the plugin.
pub(crate) async fn pair(version: Version, config: &str) -> Result<(Node, Node)> {
    let mut with = Node::start(version).await?;
    with.hooks = DEFAULT_HOOKS;
    with.serve(config).await?;
    let without = Node::start(version).await?;
    Ok((with, without))
}

pub(crate) fn median(times: &[Duration]) -> Duration {
    at(times, 50)
}

pub(crate) fn at(times: &[Duration], percent: usize) -> Duration {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    sorted[(sorted.len() - 1) * percent / 100]
}

impl Node {
    /// Pushes an image to the registry, and pulls it.
    pub(crate) async fn pull(&mut self, image: &Image) -> Result<()> {
        self.registry.push(image).await?;
        self.cri.pull_image(image.name()).await?;
        Ok(())
    }

    /// Returns how long the creation of a container takes; the container is removed again.
    async fn creation(&mut self, pod: &Pod, image: &Image) -> Result<Duration> {
        let began = Instant::now();
        let container = self.cri.create_container(pod, image.name(), &[], &[]);
        let container = container.await?;
        let took = began.elapsed();
        self.cri.remove_container(&container).await?;
        Ok(took)
    }

    /// Returns a pod of the handler, and one of the default handler.
    async fn pods(&mut self, handler: &str) -> Result<[Pod; 2]> {
        Ok([
            self.cri.run_pod(handler, &[]).await?,
            self.cri.run_pod("", &[]).await?,
        ])
    }

    /// Returns how long a creation in each pod takes. The first of the two warms the caches that both read.
    async fn creations(
        &mut self,
        pods: &[Pod; 2],
        image: &Image,
        in_order: bool,
    ) -> Result<[Duration; 2]> {
        let mut took = [Duration::ZERO; 2];
        for i in if in_order { [0, 1] } else { [1, 0] } {
            took[i] = self.creation(&pods[i], image).await?;
        }
        Ok(took)
    }

    /// Returns how long the creation of a pod and of its container take.
    pub(crate) async fn pod(&mut self, handler: &str, image: &str) -> Result<(Duration, Duration)> {
        let began = Instant::now();
        let pod = self.cri.run_pod(handler, &[]).await?;
        let ran = began.elapsed();
        let began = Instant::now();
        self.cri.create_container(&pod, image, &[], &[]).await?;
        let created = began.elapsed();
        self.cri.remove_pod(&pod).await?;
        Ok((ran, created))
    }
}

/// Measures the first container of an image that was pulled some time before. Also measures what the
/// snapshotter itself needs, on a node without the plugin where a command has made the image ready.
async fn first_containers(version: Version) -> Result<()> {
    let handler = handler(version);
    let (mut with, mut without) = pair(version, ALL).await?;
    let pods = [with.pods(handler).await?, without.pods(handler).await?];
    let [
        mut ahead,
        mut default,
        mut alone,
        mut default_alone,
        mut on_demand,
    ] = [const { Vec::new() }; 5];
    for n in 0..FIRST {
        with.image = image(n);
        let image = with.image.clone();
        with.pull(&image).await?;
        with.wait_labelled(handler).await?;
        with.assert_nothing_left(handler).await?;
        let [ours, theirs] = with.creations(&pods[0], &image, n % 2 == 0).await?;
        ahead.push(ours);
        default.push(theirs);

        without.pull(&image).await?;
        without.ensure_ready(&image, handler)?;
        let [ours, theirs] = without.creations(&pods[1], &image, n % 2 == 0).await?;
        alone.push(ours);
        default_alone.push(theirs);

        let image = self::image(FIRST + n);
        without.pull(&image).await?;
        on_demand.push(without.creation(&pods[1][0], &image).await?);
    }
    let on_default = "the default";
    for (what, times) in [
        (handler.to_owned(), &ahead),
        (on_default.to_owned(), &default),
        (format!("without the plugin, {handler}"), &alone),
        (format!("without the plugin, {on_default}"), &default_alone),
        (
            format!("without the plugin, {handler} on demand"),
            &on_demand,
        ),
    ] {
        println!("{version:?}, {what}: {}", percentiles(times.clone())?);
    }
    for (what, percent) in [("medians", 50), ("p99", 99)] {
        let ratio = |a: &[Duration], b| at(a, percent).as_secs_f64() / at(b, percent).as_secs_f64();
        println!(
            "{version:?}, {what}: {handler} / default {:.2}, without the plugin {:.2}; \
             with / without {:.2}; on demand / {handler} {:.1}",
            ratio(&ahead, &default),
            ratio(&alone, &default_alone),
            ratio(&ahead, &alone),
            ratio(&on_demand, &ahead)
        );
    }
    let known = with
        .log
        .lines_with(" verdict=ready hook=CreateContainer ")
        .len();
    ensure!(known == FIRST, "{known} of {FIRST} were ready");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn first_containers_on_2_1() -> Result<()> {
    first_containers(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn first_containers_on_1_7() -> Result<()> {
    first_containers(Version::V1_7).await
}

/// Measures pods whose images are ready.
async fn ready(version: Version) -> Result<()> {
    let handler = handler(version);
    let (mut with, mut without) = pair(version, ALL).await?;
    with.wait_labelled(handler).await?;
    with.assert_nothing_left(handler).await?;
    for node in [&mut with, &mut without] {
        node.pod(handler, APP).await?;
    }
    let log = with.log.from_now();
    let [mut ran_with, mut ran_without] = [const { Vec::new() }; 2];
    let [mut made_with, mut made_without] = [const { Vec::new() }; 2];
    for n in 0..READY {
        for is_with in [n % 2 == 0, n % 2 != 0] {
            let node = if is_with { &mut with } else { &mut without };
            let (ran, made) = node.pod(handler, APP).await?;
            let (all_ran, all_made) = if is_with {
                (&mut ran_with, &mut made_with)
            } else {
                (&mut ran_without, &mut made_without)
            };
            all_ran.push(ran);
            all_made.push(made);
        }
    }
    for (what, with, without) in [
        ("RunPodSandbox", &ran_with, &ran_without),
        ("CreateContainer", &made_with, &made_without),
    ] {
        let added = |percent| {
            let [with, without] = [with, without].map(|all| at(all, percent).as_secs_f64());
            (with - without) * 1e3
        };
        println!(
            "{version:?}, {what}: the plugin adds {:+.1} ms to the median, {:+.1} ms to p99",
            added(50),
            added(99)
        );
        println!("{version:?}, {what} with: {}", percentiles(with.clone())?);
        println!(
            "{version:?}, {what} without: {}",
            percentiles(without.clone())?
        );
    }
    let known = log.lines_with(" verdict=ready hook=CreateContainer ");
    ensure!(known.len() == READY, "{} of {READY}", known.len());
    let known = known.iter().map(|line| took(line));
    let known = known.collect::<Result<Vec<_>>>().context("took")?;
    println!("{version:?}, in the plugin: {}", percentiles(known)?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn ready_on_2_1() -> Result<()> {
    ready(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn ready_on_1_7() -> Result<()> {
    ready(Version::V1_7).await
}
