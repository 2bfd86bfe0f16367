//! The plugin, containerd and nydus-snapshotter are killed with -9 at random moments, one of them or all, while images
//! arrive and leave, and pods come and go. No pod fails because of the plugin's death. After each round the node has
//! everything that it should have, and nothing else (`at_rest`).
//!
//! The tests are short. `make kills` makes 500 kills, and goes on where it was stopped. `NRI_UNPACK_SEED` with the number
//! that was printed repeats the same moments.

mod at_rest;
mod killer;
mod names;
mod progress;
mod restart;
mod seen;
mod tries;

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use lab::{Cri, Image, Version};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::guest_pull::{NYDUS, start};
use crate::pods::{Pods, image_for};
use crate::random::Random;
use crate::resources::Resources;
use crate::support::{ALL, Node, PATIENCE};

use at_rest::InUse;
use progress::Progress;

pub(crate) use killer::Kills;

/// The environment variable with the number of kills.
const COUNT: &str = "NRI_UNPACK_KILLS";
const MANY: usize = 500;

/// The moments at which something is killed in a round.
const MOMENTS: usize = 5;

/// The longest time between two of them.
const BETWEEN: Duration = Duration::from_millis(900);

/// The images that arrive in a round for the pods of each handler.
const IMAGES: usize = 2;

/// A round takes some ten seconds. One that takes so long hangs.
const LONGEST_ROUND: Duration = Duration::from_secs(300);

/// After so many faults the many kills end.
const MOST_FAULTS: usize = 5;

/// Returns the number of kills from the environment, or this default.
pub(crate) fn count(default: usize) -> Result<usize> {
    match std::env::var(COUNT) {
        Ok(many) => many.parse().with_context(|| format!("{COUNT}={many}")),
        Err(_) => Ok(default),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
enum Victim {
    Plugin,
    Containerd,
    Snapshotter,
}

impl Victim {
    const ALL: [Self; 3] = [Self::Plugin, Self::Containerd, Self::Snapshotter];

    /// Returns one of them, or rarely all.
    fn some(random: &mut Random) -> &'static [Self] {
        match random.below(8) {
            0 => &Self::ALL,
            n => &Self::ALL[n % 3..=n % 3],
        }
    }
}

/// What happened in some rounds.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(crate) struct Counts {
    rounds: usize,
    kills: BTreeMap<Victim, usize>,
    /// Pods with a container that has the files of its image.
    pub(crate) made: usize,
    /// Tries that failed, by what was killed.
    failed: BTreeMap<Victim, usize>,
    /// Leases of containerd's own, of calls that a kill ended.
    leases_of_containerd: usize,
    /// The longest time until a node was at rest after its round, and the time of all rounds.
    longest_rest: Duration,
    took: Duration,
}

impl Counts {
    fn add(&mut self, more: &Self) {
        self.rounds += more.rounds;
        self.made += more.made;
        self.leases_of_containerd += more.leases_of_containerd;
        self.longest_rest = self.longest_rest.max(more.longest_rest);
        self.took += more.took;
        for (sums, more) in [
            (&mut self.kills, &more.kills),
            (&mut self.failed, &more.failed),
        ] {
            for (victim, count) in more {
                *sums.entry(*victim).or_default() += count;
            }
        }
    }
}

/// A node whose daemons are killed, with a container of each handler that runs all the time.
struct Bench {
    node: Node,
    /// The handlers of the pods; the last one is the default handler.
    handlers: Vec<&'static str>,
    in_use: Vec<InUse>,
    /// The images of the last round, which the next one removes.
    last: Vec<Image>,
    /// What the plugin and the node hold when nothing happens.
    held: Resources,
    mounts: Vec<String>,
}

impl Bench {
    async fn start(version: Version) -> Result<Self> {
        let mut node = start(version).await?;
        node.serve(ALL).await?;
        let handlers: &[_] = match version {
            Version::V1_7 => &["native", NYDUS, ""],
            Version::V2_1 => &["erofs", "native", NYDUS, ""],
        };
        let mut in_use = Vec::new();
        for handler in handlers {
            in_use.push(InUse::start(&mut node, handler).await?);
        }
        let mut bench = Self {
            held: Resources::by(&node)?,
            node,
            handlers: handlers.to_vec(),
            in_use,
            last: Vec::new(),
            mounts: Vec::new(),
        };
        bench.mounts = bench.mounts()?;
        bench.wait_at_rest(&mut Counts::default(), PATIENCE).await?;
        bench.held = Resources::by(&bench.node)?;
        Ok(bench)
    }

    /// Kills while images arrive and leave and pods come and go, and then looks at the node.
    async fn round(&mut self, number: usize, mut random: Random) -> Result<Counts> {
        let began = Instant::now();
        let count = self.handlers.len() * IMAGES;
        let images = (0..count).map(|n| image_for(self.handlers[n / IMAGES], number * count + n));
        let images = images.collect::<Result<Vec<_>>>()?;
        for image in &images {
            self.node.registry.push(image).await?;
        }
        let leaving = std::mem::replace(&mut self.last, images.clone());
        let kills = Kills::new(&self.node.log);
        let mut streams = Vec::new();
        for (handler, images) in self.handlers.iter().zip(images.chunks(IMAGES)) {
            let pods = Pods {
                store: self.node.lab.store().await?,
                cri: self.node.lab.cri().await?,
                handler,
            };
            streams.push(come_and_go(pods, images, &kills));
        }
        let cri = self.node.cri.clone();
        let plugin = self.node.plugin.as_mut().context("serving")?;
        let killing = kills.make(plugin, &self.node.lab, &mut random);
        let (pods, (), ()) =
            tokio::try_join!(try_join_all(streams), remove_images(cri, &leaving), killing)?;
        let mut counts = kills.count();
        pods.iter().for_each(|pods| counts.add(pods));
        let over = Instant::now();
        self.wait_at_rest(&mut counts, at_rest::LONGEST).await?;
        counts.rounds = 1;
        (counts.longest_rest, counts.took) = (over.elapsed(), began.elapsed());
        Ok(counts)
    }
}

/// Pods of these images, one after the other, until the kills are over.
async fn come_and_go(mut pods: Pods, images: &[Image], kills: &Kills) -> Result<Counts> {
    let mut counts = Counts::default();
    for (n, image) in images.iter().cycle().enumerate() {
        if n >= images.len() && kills.are_over() {
            break;
        }
        pods.create(image, kills, &mut counts).await?;
    }
    Ok(counts)
}

/// Removes images by their IDs, as the kubelet does when the disk is full. It tries again later.
async fn remove_images(mut cri: Cri, images: &[Image]) -> Result<()> {
    for image in images {
        let (id, deadline) = (&image.config.digest, Instant::now() + PATIENCE);
        loop {
            let removed = cri.remove_image(id).await;
            match (removed, cri.image_status(id).await) {
                (Ok(()), Ok(None)) => break,
                (removed, _) if Instant::now() > deadline => {
                    anyhow::bail!("{} is not removed: {removed:?}", image.name())
                }
                _ => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    }
    Ok(())
}

async fn a_round(version: Version) -> Result<()> {
    let mut random = Random::new()?;
    let mut bench = Bench::start(version).await?;
    let seed = random.below(usize::MAX) as u64;
    let round = bench.round(0, Random::of_round(seed, 0));
    let counts = tokio::time::timeout(LONGEST_ROUND, round).await??;
    println!("{version:?}: {counts:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_on_2_1() -> Result<()> {
    a_round(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_round_on_1_7() -> Result<()> {
    a_round(Version::V1_7).await
}

/// Plays rounds on one node until its share is done, there are enough kills, or there is a fault.
async fn share(progress: &mut Progress, enough: usize) -> Result<()> {
    let mut bench = Bench::start(progress.version()).await?;
    loop {
        let (number, random) = progress.next_round();
        let round = tokio::time::timeout(LONGEST_ROUND, bench.round(number, random));
        let counts = round.await.context("the round hangs")??;
        let is_last = progress.add(&counts)?;
        if is_last || progress.kills() >= enough {
            return Ok(());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "takes half an hour: `make kills`"]
async fn many() -> Result<()> {
    let enough = count(MANY)?;
    let mut progress = Progress::load()?;
    while progress.kills() < enough && progress.faults() < MOST_FAULTS {
        if let Err(fault) = share(&mut progress, enough).await {
            progress.add_fault(&fault)?;
        }
    }
    eprintln!("{}", progress.table());
    anyhow::ensure!(progress.faults() == 0, "{} faults", progress.faults());
    Ok(())
}
