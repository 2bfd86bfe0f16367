//! Measures the first container right after a pull, with the default configuration: of a new tag of a used repository,
//! and of a repository that was never seen, for which a pod waits. The same pulls and creations run in turn on two labs,
//! with and without the plugin. Also measures pods of the default handler beside such a pull.
//!
//! Run `cargo test --test node first_after_pull -- --ignored --nocapture --test-threads 1`. On a machine of two cores the
//! registry, containerd's own unpack for the default snapshotter, and the plugin's share the cores.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::images::Builder;
use lab::{Image, Layer, Pod, Version};

use crate::after_pull::percentiles;
use crate::ahead_cost::{at, median, noise, pair};
use crate::support::{APP, Node, handler};

/// The environment variable with the text of a configuration for the plugin, instead of the default.
const CONFIG: &str = "NRI_UNPACK_CONFIG";

/// The number of pairs for each kind of image.
const ROUNDS: usize = 5;

/// What the plugin knows of an image before its pull.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Known {
    /// Containers have used an older tag of its repository.
    Repository,
    /// A pod has no container yet.
    PodWaits,
}

/// The layers of an image, and the bytes of each.
#[derive(Clone, Copy, Debug)]
struct Size {
    layers: usize,
    bytes: usize,
}

const LARGE: Size = Size {
    layers: 10,
    bytes: 32 << 20,
};

const TINY: Size = Size {
    layers: 60,
    bytes: 1 << 10,
};

/// The times of one image on one node.
#[derive(Debug, Default)]
struct Times {
    pulls: Vec<Duration>,
    first: Vec<Duration>,
    second: Vec<Duration>,
}

/// Returns a tag of a repository, which shares no layer with another one.
fn tag(repository: &str, n: usize, size: Size) -> Image {
    let layer = |i: usize| {
        let seed = (n * size.layers + i + 1) as u64 ^ ((repository.len() as u64) << 32);
        Layer::new().file(&format!("f{i}"), 0o644, noise(seed, size.bytes))
    };
    let name = format!("registry.test/{repository}:{n}");
    let image = Image::builder(&name).command(&["/none"]);
    (0..size.layers)
        .map(layer)
        .fold(image, Builder::layer)
        .build()
}

impl Node {
    async fn timed(&mut self, pod: &Pod, image: &Image) -> Result<Duration> {
        let began = Instant::now();
        self.cri
            .create_container(pod, image.name(), &[], &[])
            .await?;
        Ok(began.elapsed())
    }

    /// Runs a pod, pulls the image, and creates two containers of it right afterwards.
    async fn round(
        &mut self,
        handler: &str,
        known: Known,
        image: &Image,
        times: &mut Times,
    ) -> Result<()> {
        // As a kubelet does, which pulls for a sandbox that runs.
        let pod = self.cri.run_pod(handler, &[]).await?;
        if known == Known::Repository {
            self.cri.create_container(&pod, APP, &[], &[]).await?;
        }
        self.registry.push(image).await?;
        let began = Instant::now();
        self.cri.pull_image(image.name()).await?;
        times.pulls.push(began.elapsed());
        times.first.push(self.timed(&pod, image).await?);
        times.second.push(self.timed(&pod, image).await?);
        self.cri.remove_pod(&pod).await?;
        Ok(())
    }

    /// Runs pods of the default handler while an image is pulled and used in this handler.
    async fn beside_pull(
        &mut self,
        handler: &'static str,
        image: &Image,
        times: &mut Vec<Duration>,
    ) -> Result<()> {
        self.registry.push(image).await?;
        let (mut cri, name) = (self.cri.clone(), image.name().to_owned());
        let work = tokio::spawn(async move {
            let pod = cri.run_pod(handler, &[]).await?;
            cri.pull_image(&name).await?;
            cri.create_container(&pod, &name, &[], &[]).await?;
            cri.remove_pod(&pod).await?;
            Ok::<_, anyhow::Error>(())
        });
        while !work.is_finished() {
            let (ran, created) = self.pod("", APP).await?;
            times.push(ran + created);
        }
        work.await?
    }

    async fn forget(&mut self, image: &Image) -> Result<()> {
        self.cri.remove_image(image.name()).await?;
        self.store.collect_garbage().await?;
        Ok(())
    }
}

/// Pods of the default handler, while a pod of another handler waits for an image, pulls it, and gets its container.
async fn bystanders(version: Version) -> Result<()> {
    let config = std::env::var(CONFIG).unwrap_or_default();
    let (mut with, mut without) = pair(version, &config).await?;
    let [mut ours, mut theirs] = [const { Vec::new() }; 2];
    // The first round warms the caches.
    for n in 0..=ROUNDS {
        let image = tag(&format!("never-seen-{n}"), n, LARGE);
        for is_with in [n % 2 == 0, n % 2 != 0] {
            let (node, times) = match is_with {
                true => (&mut with, &mut ours),
                false => (&mut without, &mut theirs),
            };
            node.beside_pull(handler(version), &image, times).await?;
            node.forget(&image).await?;
        }
        if n == 0 {
            ours.clear();
            theirs.clear();
        }
    }
    println!(
        "{version:?}: pods of the default handler, with / without: medians {:.2}, p99 {:.2}; with {}, without {}",
        median(&ours).as_secs_f64() / median(&theirs).as_secs_f64(),
        at(&ours, 99).as_secs_f64() / at(&theirs, 99).as_secs_f64(),
        percentiles(ours)?,
        percentiles(theirs)?,
    );
    Ok(())
}

async fn measure(version: Version, size: Size) -> Result<()> {
    // For example `[unpack]` and `during_pull = "on"`.
    let config = std::env::var(CONFIG).unwrap_or_default();
    let handler = handler(version);
    let (mut with, mut without) = pair(version, &config).await?;
    for known in [Known::Repository, Known::PodWaits] {
        let repository = |n: usize| match known {
            Known::Repository => "used".to_owned(),
            Known::PodWaits => format!("never-seen-{n}"),
        };
        let (mut ours, mut theirs) = (Times::default(), Times::default());
        let mut last = None;
        if known == Known::Repository {
            let first = tag(&repository(0), 0, size);
            for node in [&mut with, &mut without] {
                let mut unused = Times::default();
                node.round(handler, known, &first, &mut unused).await?;
            }
            last = Some(first);
        }
        for n in 1..=ROUNDS {
            let image = tag(&repository(n), n, size);
            for is_with in [n % 2 == 0, n % 2 != 0] {
                let (node, times) = match is_with {
                    true => (&mut with, &mut ours),
                    false => (&mut without, &mut theirs),
                };
                node.round(handler, known, &image, times).await?;
                // The newest used image of the repository stays.
                if let Some(last) = &last {
                    node.forget(last).await?;
                }
            }
            last = Some(image);
        }
        let last = last.context("no round")?;
        with.forget(&last).await?;
        without.forget(&last).await?;
        let ratio =
            |a: &[Duration], b: &[Duration]| median(a).as_secs_f64() / median(b).as_secs_f64();
        println!(
            "{version:?}, {handler}, {size:?}, {known:?}: first / second {:.2} (without the plugin {:.1}), pull with / without {:.2}, first with / without {:.3}",
            ratio(&ours.first, &ours.second),
            ratio(&theirs.first, &theirs.second),
            ratio(&ours.pulls, &theirs.pulls),
            ratio(&ours.first, &theirs.first),
        );
        println!("  with {ours:?}\n  without {theirs:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn bystanders_on_2_1() -> Result<()> {
    bystanders(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn bystanders_on_1_7() -> Result<()> {
    bystanders(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn large_on_2_1() -> Result<()> {
    measure(Version::V2_1, LARGE).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn large_on_1_7() -> Result<()> {
    measure(Version::V1_7, LARGE).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn tiny_on_2_1() -> Result<()> {
    measure(Version::V2_1, TINY).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn tiny_on_1_7() -> Result<()> {
    measure(Version::V1_7, TINY).await
}
