//! The plugin is killed several times while images arrive and pods of them start, both at the same time. Afterwards
//! every image is ready and labelled, and no lease, temporary snapshot, unfinished blob or mount is left.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Call, Image, Log, Tap, Version};
use tokio::sync::mpsc;

use super::{Counts, LAYERS, Pods, Random, TRIES, Victim, count, images_for};
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, CRI_LABELS, Node, PATIENCE, handler};

/// The kills of each round.
const KILLS: usize = 3;

/// The longest time between two kills. A round takes some seconds.
const BETWEEN_KILLS: Duration = Duration::from_millis(900);

/// The log message of a plugin whose hooks are called.
const REGISTERED: &str = "nri_unpack::hooks] registered ";

/// The rounds of a short run; a round has as many images as [`images_for`] returns for two rounds of pods.
const ROUNDS: usize = 1;

/// The kills of a round.
struct Kills {
    count: AtomicUsize,
    /// The plugin's log since the first start of the round.
    log: Log,
    /// The registrations before the round.
    registered: usize,
}

impl Kills {
    fn new(log: &Log) -> Self {
        Self {
            count: AtomicUsize::default(),
            log: log.clone(),
            registered: log.lines_with(REGISTERED).len(),
        }
    }

    /// Returns the number of kills so far; `None` while the plugin is not registered.
    fn now(&self) -> Option<usize> {
        let count = self.count.load(Ordering::Relaxed);
        let registered = self.log.lines_with(REGISTERED).len();
        (registered == self.registered + count).then_some(count)
    }
}

impl Pods {
    /// Creates a pod and a container. A container that is created while the plugin does not run is not checked by it,
    /// and may stand on a host's unpack: it is removed, and created again.
    async fn create_amid(
        &mut self,
        image: &Image,
        kills: &Kills,
        counts: &mut Counts,
    ) -> Result<()> {
        for _ in 0..TRIES {
            let before = kills.now();
            let is_right = match self.try_once(image).await {
                // The plugin was killed between the two calls of a swap.
                Err(e) if is_without_snapshot(&e) && kills.now() != before => false,
                tried => tried.with_context(|| image.name().to_owned())?,
            };
            if is_right {
                counts.made += 1;
                return Ok(());
            }
            let is_disturbed = before.is_none() || kills.now() != before;
            ensure!(
                is_disturbed,
                "{}: files differ from the image",
                image.name()
            );
            counts.failed_tries += 1;
        }
        anyhow::bail!("{}: no right container after {TRIES} tries", image.name())
    }
}

/// Whether a container was created whose snapshot is gone: it does not start, and the kubelet creates another one.
fn is_without_snapshot(error: &tonic::Status) -> bool {
    let message = error.message();
    message.starts_with("snapshot ") && message.contains("does not exist")
}

impl Node {
    /// Pulls the images, creates a pod of each that has arrived, and kills the plugin meanwhile.
    async fn kill_amid_arrivals(
        &mut self,
        handler: &'static str,
        images: &[Image],
        random: &mut Random,
    ) -> Result<Counts> {
        for image in images {
            self.registry.push(image).await?;
        }
        let mut pods = Pods {
            store: self.lab.store().await?,
            cri: self.lab.cri().await?,
            handler,
        };
        let (mut cri, mut counts) = (self.lab.cri().await?, Counts::default());
        let kills = Kills::new(&self.log);
        let (arrived, mut arrivals) = mpsc::unbounded_channel();
        let arrive = async {
            for image in images {
                cri.pull_image(image.name()).await?;
                ensure!(arrived.send(image).is_ok(), "no pods are created");
            }
            drop(arrived);
            anyhow::Ok(())
        };
        let create = async {
            while let Some(image) = arrivals.recv().await {
                pods.create_amid(image, &kills, &mut counts).await?;
            }
            anyhow::Ok(())
        };
        let kill = async {
            for _ in 0..KILLS {
                let pause = random.below(BETWEEN_KILLS.as_micros() as usize);
                tokio::time::sleep(Duration::from_micros(pause as u64)).await;
                kills.count.fetch_add(1, Ordering::Relaxed);
                self.kill(Victim::Plugin).await?;
            }
            anyhow::Ok(())
        };
        tokio::try_join!(arrive, create, kill)?;
        Ok(counts)
    }

    /// Checks that the labels of the image's own layers name it; the lower ones may be labelled for another image.
    async fn assert_own_layers_labelled(&self, image: &Image, snapshotter: &str) -> Result<()> {
        let chain = self.store.chain(snapshotter, image).await?;
        let names = chain.iter().rev().take(LAYERS);
        let names: Vec<_> = names.map(|s| s.labels.get(CRI_LABELS[0])).collect();
        // During the pull only the digest is known, and a plugin that was killed then has not replaced it by the tag.
        let repository = image.name().rsplit_once(':').map_or("", |(name, _)| name);
        let by_digest = format!("{repository}@{}", image.target.digest);
        let is_right = |name: &&String| *name == image.name() || **name == by_digest;
        let right = names.iter().flatten().filter(|name| is_right(name)).count();
        ensure!(right == LAYERS, "{}: {names:?}", image.name());
        Ok(())
    }

    /// Checks that nothing temporary is left, of the plugin or of a call that it did not finish.
    async fn assert_nothing_temporary(&mut self, snapshotter: &str) -> Result<()> {
        self.assert_nothing_rebuilding(snapshotter).await?;
        self.store.collect_garbage().await?;
        self.assert_no_lost_snapshot(snapshotter).await?;
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let of_run = self.lab.root().display().to_string();
        let is_left = |line: &&str| line.contains(&of_run) && line.contains("containerd-mount");
        let left: Vec<_> = mounts.lines().filter(is_left).collect();
        ensure!(left.is_empty(), "mounts left: {left:#?}");
        Ok(())
    }
}

async fn kills_amid_arrivals(version: Version, handler: &'static str, config: &str) -> Result<()> {
    let mut random = Random::new()?;
    let mut node = start(version).await?;
    node.serve(config).await?;
    for round in 0..count(ROUNDS)? {
        let images = [2 * round, 2 * round + 1].map(|round| images_for(handler, round));
        let images: Vec<_> = images.into_iter().collect::<Result<Vec<_>>>()?.concat();
        let made = node.kill_amid_arrivals(handler, &images, &mut random);
        let made = made.await?;
        node.assert_all_ready(&images, handler).await?;
        for image in &images {
            node.assert_own_layers_labelled(image, handler).await?;
        }
        node.assert_nothing_temporary(handler).await?;
        println!("{version:?}, {handler}: killed {KILLS} times: {made:?}; all ready");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_pulls_on_2_1() -> Result<()> {
    kills_amid_arrivals(Version::V2_1, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn guest_pulls_on_1_7() -> Result<()> {
    kills_amid_arrivals(Version::V1_7, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn erofs_on_2_1() -> Result<()> {
    kills_amid_arrivals(Version::V2_1, handler(Version::V2_1), ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7() -> Result<()> {
    kills_amid_arrivals(Version::V1_7, handler(Version::V1_7), ALL).await
}

/// The plugin is killed while it replaces the name from the pull in the labels of the layers. Its next run ends that.
async fn killed_while_it_names_layers(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let tap = Tap::start(&node.lab)?;
    node.image = images_for(NYDUS, 0)?.swap_remove(0);
    let name = node.image.name().to_owned();
    let names =
        move |call: &Call| call.path.ends_with("Snapshots/Update") && call.message.contains(&name);
    let mut held = tap.hold(names);
    node.tap = Some(tap);
    node.serve("").await?;
    let image = node.image.clone();
    node.pull(&image).await?;
    tokio::time::timeout(PATIENCE, held.came()).await??;
    node.kill(Victim::Plugin).await?;
    drop(held);
    node.wait_image(&image, NYDUS).await?;
    node.wait_named().await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_names_layers_on_2_1() -> Result<()> {
    killed_while_it_names_layers(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_while_it_names_layers_on_1_7() -> Result<()> {
    killed_while_it_names_layers(Version::V1_7).await
}
