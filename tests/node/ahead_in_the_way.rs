//! Never in the way: pods of the default handler, while an image of a gigabyte is unpacked for another
//! snapshotter. On two labs in turn: in one the plugin unpacks it for a pod, in the other containerd
//! itself, for a container, without the plugin.
//!
//! `cargo test --test node ahead_in_the_way -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Image, Options, Registry, Version, images};

use crate::after_pull::{percentiles, took};
use crate::ahead_cost::{at, median};
use crate::support::{APP, DEFAULT_HOOKS, Node, handler};

pub(crate) const BIG: &str = "registry.test/lab/big:1";
/// Few: `native` copies all that lies below into each.
const LAYERS: usize = 4;
const BYTES: usize = 256 << 20;

/// Pods of each side, at least.
const PODS: usize = 100;

/// Creations of each side.
const CREATIONS: usize = 5;

/// What a hook waits by default, unless the timeout leaves it less: this much is kept of that.
const DEFAULT_WAIT: Duration = Duration::from_millis(500);
const MARGIN: Duration = Duration::from_millis(100);
const TOLERANCE: Duration = Duration::from_millis(50);

async fn start(version: Version, request_timeout: Duration) -> Result<Node> {
    let mut options = Options::new(version);
    options.request_timeout = request_timeout;
    let mut node = Node::start_on(
        version,
        options,
        Registry::start().await?,
        images::app(APP)?,
    )
    .await?;
    node.hooks = DEFAULT_HOOKS;
    Ok(node)
}

impl Node {
    /// Pods of the default handler while the image is unpacked for another: how long each took, and
    /// their median.
    pub(crate) async fn beside(
        &mut self,
        big: &Image,
        times: &mut Vec<Duration>,
    ) -> Result<Duration> {
        let handler = handler(self.lab.version());
        self.store.put_image(big).await?;
        let (mut cri, is_served) = (self.cri.clone(), self.plugin.is_some());
        let store = self.lab.store().await?;
        let image = big.clone();
        let unpack = tokio::spawn(async move {
            let annotation = [("nri-unpack/images", BIG)];
            let pod = cri.run_pod(handler, &annotation).await?;
            if !is_served {
                cri.create_container(&pod, BIG, &[], &[]).await?;
            }
            while store.chain(handler, &image).await?.len() < image.layers.len() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            cri.remove_pod(&pod).await?;
            Ok::<_, anyhow::Error>(())
        });
        let before = times.len();
        while !unpack.is_finished() {
            let (ran, created) = self.pod("", APP).await?;
            times.push(ran + created);
        }
        unpack.await??;
        // The last steps of a flight hold its lease.
        self.assert_nothing_left(handler).await?;
        self.cri.remove_image(BIG).await?;
        self.store.collect_garbage().await?;
        ensure!(self.store.chain(handler, big).await?.is_empty());
        Ok(median(&times[before..]))
    }
}

async fn never(version: Version, request_timeout: Duration) -> Result<()> {
    let big = images::large(BIG, LAYERS, BYTES)?;
    let mut with = start(version, request_timeout).await?;
    // Every hook is timed, also those for pods of the default handler.
    let config = with
        .config("")
        .replace("level = \"debug\"", "level = \"trace\"");
    with.serve_config(&config).await?;
    let mut without = start(version, request_timeout).await?;
    let [mut ours, mut theirs] = [const { Vec::new() }; 2];
    let mut rounds = Vec::new();
    while ours.len().min(theirs.len()) < PODS {
        // The first of the two warms the caches that both read.
        let ratio = if rounds.len() % 2 == 0 {
            let ours = with.beside(&big, &mut ours).await?;
            ours.as_secs_f64() / without.beside(&big, &mut theirs).await?.as_secs_f64()
        } else {
            let theirs = without.beside(&big, &mut theirs).await?;
            with.beside(&big, &mut ours).await?.as_secs_f64() / theirs.as_secs_f64()
        };
        rounds.push(ratio);
    }
    rounds.sort_by(f64::total_cmp);
    println!(
        "{version:?}, {request_timeout:?}, with: {}",
        percentiles(ours.clone())?
    );
    println!(
        "{version:?}, {request_timeout:?}, without: {}",
        percentiles(theirs.clone())?
    );
    println!(
        "{} and {} pods, with / without: medians {:.2} (of {} rounds: {:.2} to {:.2}, {:.2} in the middle), p99 {:.2}",
        ours.len(),
        theirs.len(),
        median(&ours).as_secs_f64() / median(&theirs).as_secs_f64(),
        rounds.len(),
        rounds[0],
        rounds[rounds.len() - 1],
        rounds[rounds.len() / 2],
        at(&ours, 99).as_secs_f64() / at(&theirs, 99).as_secs_f64(),
    );
    let hooks = with.log.lines_with("nri_unpack::hooks] answers hook=");
    // Two for each pod.
    ensure!(hooks.len() >= 2 * ours.len(), "{} hooks", hooks.len());
    let hooks = hooks.iter().map(|line| took(line));
    let hooks = hooks.collect::<Result<Vec<_>>>()?;
    println!("{} hooks: {}", hooks.len(), percentiles(hooks.clone())?);
    let longest = hooks.into_iter().max().context("no hook")?;
    let wait = DEFAULT_WAIT.min(request_timeout - MARGIN);
    ensure!(longest <= wait + TOLERANCE, "{longest:?}");
    let closed = with.lab.log().lines_with("closing plugin");
    ensure!(closed.is_empty(), "{closed:#?}");
    Ok(())
}

/// The creation of a container whose pod names its image in the annotation, and whose image is not ready when the
/// hook answers: containerd unpacks it as well.
async fn asked_for(version: Version) -> Result<()> {
    let image = images::large(BIG, 10, 32 << 20)?;
    let mut with = start(version, USUAL).await?;
    with.serve("").await?;
    let mut without = start(version, USUAL).await?;
    let [mut ours, mut theirs] = [const { Vec::new() }; 2];
    for round in 0..CREATIONS {
        // The first of the two warms the caches that both read.
        if round % 2 == 0 {
            ours.push(with.asked_for(&image).await?);
            theirs.push(without.asked_for(&image).await?);
        } else {
            theirs.push(without.asked_for(&image).await?);
            ours.push(with.asked_for(&image).await?);
        }
    }
    println!(
        "{version:?}: creation with the plugin / without: {:.2} ({:?} / {:?}; all: {ours:?}, {theirs:?})",
        median(&ours).as_secs_f64() / median(&theirs).as_secs_f64(),
        median(&ours),
        median(&theirs),
    );
    Ok(())
}

impl Node {
    async fn asked_for(&mut self, image: &Image) -> Result<Duration> {
        let handler = handler(self.lab.version());
        self.store.put_image(image).await?;
        let began = Instant::now();
        let annotation = [("nri-unpack/images", BIG)];
        let pod = self.cri.run_pod(handler, &annotation).await?;
        self.cri.create_container(&pod, BIG, &[], &[]).await?;
        let took = began.elapsed();
        if self.plugin.is_some() {
            self.assert_nothing_left(handler).await?;
        }
        self.cri.remove_pod(&pod).await?;
        self.cri.remove_image(BIG).await?;
        self.store.collect_garbage().await?;
        Ok(took)
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn asked_for_on_2_1() -> Result<()> {
    asked_for(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn asked_for_on_1_7() -> Result<()> {
    asked_for(Version::V1_7).await
}

const USUAL: Duration = Duration::from_secs(2);
const SHORT: Duration = Duration::from_millis(500);

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn usual_on_2_1() -> Result<()> {
    never(Version::V2_1, USUAL).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn short_timeout_on_2_1() -> Result<()> {
    never(Version::V2_1, SHORT).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn usual_on_1_7() -> Result<()> {
    never(Version::V1_7, USUAL).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn short_timeout_on_1_7() -> Result<()> {
    never(Version::V1_7, SHORT).await
}
