//! Measures what a pod gains when it is known from the moment at which it is bound: its first container against the second
//! one, with the watch and without it, on two labs in turn, each with the plugin in its default configuration.
//!
//! `cargo test --release --test node bound::cost -- --ignored --nocapture --test-threads 1`.

use std::time::{Duration, Instant};

use anyhow::Result;
use lab::{ApiServer, Image, Version, images};

use super::{CLASS, pod};
use crate::ahead_cost::median;
use crate::support::{DEFAULT_HOOKS, Node, handler};

/// The rounds of each measurement.
const ROUNDS: usize = 5;

/// The time from the binding of a pod to the creation of its first container, on a kubelet without volumes and CNI; and
/// the part of it that is after `RunPodSandbox`.
const SHORT: Duration = Duration::from_millis(600);
const AFTER_SANDBOX: Duration = Duration::from_millis(180);

const NAME: &str = "registry.test/lab/bound:1";

/// How long before its container a pod is bound.
#[derive(Clone, Copy)]
enum Lead {
    /// As long as the unpack takes.
    Unpack,
    Short,
}

impl Node {
    /// Binds a pod and creates two containers in it. Returns how long each creation took, and how long the pod was bound
    /// before the first.
    async fn bound(
        &mut self,
        server: &ApiServer,
        image: &Image,
        lead: Lead,
    ) -> Result<(Duration, Duration, Duration)> {
        let handler = handler(self.lab.version());
        self.store.put_image(image).await?;
        let began = Instant::now();
        server.put_pod(pod("1", Some(CLASS), &[image.name()]));
        match lead {
            Lead::Unpack => {
                self.wait_unpacked(handler, image).await?;
                self.assert_nothing_left(handler).await?;
            }
            Lead::Short => tokio::time::sleep(SHORT - AFTER_SANDBOX).await,
        }
        let sandbox = self.cri.run_pod(handler, &[]).await?;
        if let Lead::Short = lead {
            tokio::time::sleep(SHORT.saturating_sub(began.elapsed())).await;
        }
        let led = began.elapsed();
        let mut took = [Duration::ZERO; 2];
        for took in &mut took {
            let began = Instant::now();
            self.cri.create_container(&sandbox, NAME, &[], &[]).await?;
            *took = began.elapsed();
        }
        server.delete_pod("1");
        self.assert_nothing_left(handler).await?;
        self.cri.remove_pod(&sandbox).await?;
        self.cri.remove_image(NAME).await?;
        self.store.collect_garbage().await?;
        Ok((took[0], took[1], led))
    }
}

async fn measure(version: Version, what: &str, image: &Image) -> Result<()> {
    let mut with = Node::start(version).await?;
    with.hooks = DEFAULT_HOOKS;
    let server = with.serve_watching(version, "").await?;
    let mut without = Node::start(version).await?;
    without.hooks = DEFAULT_HOOKS;
    without.serve("").await?;
    // Nothing watches it.
    let unwatched = ApiServer::start().await?;
    let [mut first, mut second, mut led] = [const { Vec::new() }; 3];
    for _ in 0..ROUNDS {
        let round = with.bound(&server, image, Lead::Unpack).await?;
        first.push(round.0);
        second.push(round.1);
        led.push(round.2);
    }
    println!(
        "{version:?}, {what}, bound {:?} before (the unpack): first / second {:.2} ({:?} / {:?})",
        median(&led),
        median(&first).as_secs_f64() / median(&second).as_secs_f64(),
        median(&first),
        median(&second),
    );
    let [mut ours, mut theirs, mut second, mut led] = [const { Vec::new() }; 4];
    for round in 0..ROUNDS {
        for is_with in [round % 2 == 0, round % 2 != 0] {
            if is_with {
                let round = with.bound(&server, image, Lead::Short).await?;
                ours.push(round.0);
                second.push(round.1);
                led.push(round.2);
            } else {
                let round = without.bound(&unwatched, image, Lead::Short).await?;
                theirs.push(round.0);
            }
        }
    }
    let [with, without, lead] = [&ours, &theirs, &led].map(|times| median(times).as_secs_f64());
    println!(
        "{version:?}, {what}, bound {lead:.2} s before: first {with:.3} s, without the watch {without:.3} s, \
         with / without {:.2}; gained {:.3} s ({:.2} of the lead); first / second {:.1} \
         (all: {ours:?}, without {theirs:?})",
        with / without,
        without - with,
        (without - with) / lead,
        with / median(&second).as_secs_f64(),
    );
    Ok(())
}

async fn large(version: Version) -> Result<()> {
    let image = images::large(NAME, 10, 32 << 20)?;
    measure(version, "10 layers, 336 MB", &image).await
}

async fn tiny(version: Version) -> Result<()> {
    let image = images::many_layers(NAME, 60)?;
    measure(version, "60 tiny layers", &image).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn large_on_2_1() -> Result<()> {
    large(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of minutes"]
async fn large_on_1_7() -> Result<()> {
    large(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn tiny_on_2_1() -> Result<()> {
    tiny(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement of a minute"]
async fn tiny_on_1_7() -> Result<()> {
    tiny(Version::V1_7).await
}
