//! An hour of a node's life in fast motion. In each minute one thing happens, chosen by a seed, and then pods of three
//! handlers come and go. The plugin and the snapshotters hold no more at the end than at the start.
//!
//! A test plays each thing once. `NRI_UNPACK_HOUR=1 cargo test --test node soak::hour -- --nocapture --test-threads 1` plays
//! sixty minutes, and `NRI_UNPACK_SEED` with the number that it prints repeats them.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Flaw, FrameFault, Image, Layer, NriTap, PAUSE, Remote, Version, images};
use tokio::time::Instant;

use crate::guest_pull::{NYDUS, start};
use crate::pods::{LAYERS, Pods, restart_nydus};
use crate::random::Random;
use crate::resources::Resources;
use crate::support::{ALL, Node, PATIENCE, handler};

/// The environment variable for sixty minutes.
const HOUR: &str = "NRI_UNPACK_HOUR";
const MINUTES: usize = 60;

/// The tables `hooks` of two configurations.
const HOOKS: [&str; 2] = ["[hooks]\nwait = \"7s\"", "[hooks]\nwait = \"8s\""];

const BETWEEN_TRIES: Duration = Duration::from_millis(300);

/// What happens in a minute.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    Pull,
    Import,
    WrongImage,
    /// The oldest image is removed, as by the kubelet's collection of images.
    Removal,
    Reload,
    /// The connection to NRI is closed in the middle of an event.
    LostConnection,
    ContainerdRestart,
    SnapshotterRestart,
}

use Event::*;

/// Pulls and removals are the most frequent.
const EVENTS: [Event; 12] = [
    Pull,
    Import,
    WrongImage,
    Removal,
    Reload,
    LostConnection,
    ContainerdRestart,
    SnapshotterRestart,
    Pull,
    Removal,
    Pull,
    Removal,
];

/// Those that happen in a short run.
const EACH: usize = 8;

struct Life {
    node: Node,
    tap: NriTap,
    handlers: [&'static str; 3],
    /// The images of which pods are made, the oldest first.
    images: VecDeque<Image>,
    wrong: Vec<Image>,
    /// The numbers of images, reloads and pods so far, and of tries that failed.
    made: usize,
    reloads: usize,
    pods: usize,
    failed: usize,
    events: BTreeMap<Event, usize>,
}

impl Life {
    async fn begin(version: Version) -> Result<Self> {
        let mut node = start(version).await?;
        let tap = NriTap::start(&node.lab)?;
        node.hooks = HOOKS[0];
        let mut life = Self {
            node,
            tap,
            handlers: [handler(version), NYDUS, ""],
            images: VecDeque::new(),
            wrong: Vec::new(),
            made: 0,
            reloads: 0,
            pods: 0,
            failed: 0,
            events: BTreeMap::new(),
        };
        life.node.serve_config(&life.config()).await?;
        life.make(Pull).await?;
        for turn in 0..life.handlers.len() {
            life.pod(turn, 0).await?;
        }
        Ok(life)
    }

    fn config(&self) -> String {
        let direct = format!("{:?}", self.node.lab.nri_socket());
        let tapped = format!("{:?}", self.tap.socket());
        self.node.config(ALL).replace(&direct, &tapped)
    }

    fn next_image(&mut self) -> Result<Image> {
        self.made += 1;
        images::own_layers(&format!("registry.test/hour/app:{}", self.made), LAYERS)
    }

    async fn make(&mut self, event: Event) -> Result<()> {
        *self.events.entry(event).or_default() += 1;
        match event {
            Pull => {
                let image = self.next_image()?;
                self.node.pull(&image).await?;
                self.images.push_back(image);
            }
            Import => {
                let image = self.next_image()?;
                self.node.registry.push(&image).await?;
                self.node.lab.import(&image).await?;
                self.images.push_back(image);
            }
            WrongImage => {
                let name = format!("registry.test/hour/wrong:{}", self.made);
                self.made += 1;
                let image = wrong(&name);
                self.node.store.put_image(&image).await?;
                self.wrong.push(image);
            }
            Removal => self.remove_oldest().await?,
            Reload => {
                self.reloads += 1;
                self.node.hooks = HOOKS[self.reloads % HOOKS.len()];
                let log = self.node.log.from_now();
                let plugin = self.node.plugin.as_ref().context("serving")?;
                plugin.reload(&self.config())?;
                let read = "the configuration was read again";
                log.wait_for(read, PATIENCE).await?;
            }
            LostConnection => self.tap.fail(0, FrameFault::Half),
            ContainerdRestart => self.node.restart_containerd().await?,
            SnapshotterRestart => {
                self.node.lab.remote(Remote::Nydus).kill();
                restart_nydus(&self.node.lab).await?;
            }
        }
        Ok(())
    }

    /// Removes the oldest image, but not the only one of which pods are made, and one that is wrong.
    async fn remove_oldest(&mut self) -> Result<()> {
        let oldest = (self.images.len() > 1).then(|| self.images.pop_front());
        for image in oldest.flatten().into_iter().chain(self.wrong.pop()) {
            self.node.cri.remove_image(image.name()).await?;
        }
        Ok(())
    }

    /// Creates a pod and removes it, with the tries of a kubelet.
    async fn pod(&mut self, turn: usize, image: usize) -> Result<()> {
        let image = &self.images[image];
        let mut pods = Pods {
            store: self.node.lab.store().await?,
            cri: self.node.cri.clone(),
            handler: self.handlers[turn],
        };
        let deadline = Instant::now() + PATIENCE;
        loop {
            let tried = pods.try_once(image).await;
            if matches!(tried, Ok(true)) {
                break;
            }
            self.failed += 1;
            ensure!(Instant::now() < deadline, "{}: {tried:?}", image.name());
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        self.pods += 1;
        Ok(())
    }

    /// Removes all images that came during the hour, and checks that nothing of them is left.
    async fn end(&mut self) -> Result<()> {
        let images: Vec<_> = self.images.drain(..).chain(self.wrong.drain(..)).collect();
        for image in images {
            self.node.cri.remove_image(image.name()).await?;
        }
        self.node.remove_pods_except(&[]).await?;
        let kept = [images::pause(&[PAUSE])?, self.node.image.clone()];
        let deadline = Instant::now() + PATIENCE;
        for snapshotter in [self.handlers[0], NYDUS, "overlayfs"] {
            for image in kept.iter().filter(|_| snapshotter != "overlayfs") {
                self.node.wait_image(image, snapshotter).await?;
            }
            loop {
                self.node.store.collect_garbage().await?;
                let left = self.node.assert_no_snapshot_but_of(&kept, snapshotter);
                let left = left.await.and(self.node.nothing_left(snapshotter).await);
                match left {
                    Ok(()) => break,
                    left if Instant::now() > deadline => return left,
                    _ => tokio::time::sleep(BETWEEN_TRIES).await,
                }
            }
        }
        Ok(())
    }
}

/// Returns an image with a layer that is not what its config says.
fn wrong(name: &str) -> Image {
    let layer = Layer::new().file("f", 0o644, format!("{name}\n"));
    let image = Image::builder(name).layer(layer).command(&["/f"]);
    image.flaw(Flaw::WrongDiffId(0)).build()
}

async fn an_hour(version: Version) -> Result<()> {
    let minutes = match std::env::var_os(HOUR) {
        Some(_) => MINUTES,
        None => EACH,
    };
    let mut random = Random::new()?;
    let mut life = Life::begin(version).await?;
    let before = Resources::by(&life.node)?;
    // Each event happens once, in an order by the seed.
    let mut each = EVENTS[..EACH].to_vec();
    for minute in 0..minutes {
        let event = match each.len() {
            0 => EVENTS[random.below(EVENTS.len())],
            left => each.swap_remove(random.below(left)),
        };
        let context = || format!("{version:?}, minute {minute}: {event:?}");
        life.make(event).await.with_context(context)?;
        for turn in 0..life.handlers.len() {
            let image = random.below(life.images.len());
            life.pod(turn, image).await.with_context(context)?;
        }
    }
    life.end().await?;
    let Life {
        pods,
        failed,
        events,
        made,
        ..
    } = &life;
    println!("{version:?}: {events:?}, {made} images, {pods} pods, {failed} tries failed");
    Resources::by(&life.node)?.assert_as(&before)
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_on_2_1() -> Result<()> {
    an_hour(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_hour_on_1_7() -> Result<()> {
    an_hour(Version::V1_7).await
}
