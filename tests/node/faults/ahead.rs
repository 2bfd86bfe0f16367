//! A fault in each call of a reconcile: that at the plugin's start, and a later one, which finds images that a
//! garbage collection has taken away. All images become ready, nothing is left, the plugin goes on, and each failure is
//! said once.
//!
//! In a short run the configuration is read again a moment after the fault, so that the next look comes at once. With
//! `NRI_UNPACK_FAULTS` the plugin tries again by itself, which takes ten seconds for an image that has failed.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Call, Fault, Image, Tap, Version};
use tokio::time::{Instant, sleep};

use super::place::Place;
use super::{FAULTS, chosen, is_complete};
use crate::after_pull::layered;
use crate::support::{DEFAULT_HOOKS, Node, PATIENCE, handler};

const IMAGES: usize = 2;
const LAYERS: usize = 2;

/// One of so many pairs of a call and a fault is tried in a short run.
const SHARE: usize = 53;

/// Longer than the plugin is quiet while it works.
const QUIET: Duration = Duration::from_millis(400);

/// Longer than a try takes: what is not ready then is tried again after a pause.
const TRIED: Duration = Duration::from_secs(2);

/// The calls of the look at images that are not there.
const CALLS: [&str; 11] = [
    "Images/List",
    "Introspection/Plugins",
    "Snapshots/List",
    "Content/Info",
    "Leases/Create",
    "Leases/Delete",
    "Snapshots/Prepare",
    "Diff/Apply",
    "Snapshots/Commit",
    "Content/Update",
    "Snapshots/Stat",
];

/// Which look has the fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Look {
    AtStart,
    Later,
}

struct Bench {
    node: Node,
    snapshotter: &'static str,
    images: Vec<Image>,
    look: Look,
    config: String,
}

impl Bench {
    async fn start(version: Version, look: Look) -> Result<Self> {
        let mut node = Node::start(version).await?;
        node.hooks = DEFAULT_HOOKS;
        let name = node.image.name().to_owned();
        node.cri.remove_image(&name).await?;
        let image = |n: usize| layered(&format!("registry.test/looked-at/app:{n}"), LAYERS);
        let images: Vec<_> = (0..IMAGES).map(image).collect();
        for image in &images {
            node.store.put_image(image).await?;
        }
        node.tap = Some(Tap::start(&node.lab)?);
        let snapshotter = handler(version);
        let eager = format!("[snapshotters.{snapshotter}]\neager = \"all\"\n");
        let config = node.config(&eager);
        let mut bench = Self {
            node,
            snapshotter,
            images,
            look,
            config,
        };
        bench.node.serve_config(&bench.config).await?;
        bench.until_ready(false).await?;
        if look == Look::AtStart {
            bench.plugin()?.stop().await?;
        }
        Ok(bench)
    }

    fn tap(&self) -> Result<&Tap> {
        self.node.tap.as_ref().context("no tap")
    }

    fn plugin(&mut self) -> Result<&mut lab::Plugin> {
        self.node.plugin.as_mut().context("serving")
    }

    /// Takes the chains away, as another client of containerd does.
    async fn lose(&mut self) -> Result<()> {
        let anchor = format!("containerd.io/gc.ref.snapshot.{}=", self.snapshotter);
        for image in &self.images {
            let words = ["content", "label", &image.config.digest, &anchor];
            self.node.lab.ctr(&words).await?;
        }
        self.node.store.collect_garbage().await?;
        for image in &self.images {
            let chain = self.node.store.chain(self.snapshotter, image).await?;
            ensure!(chain.is_empty(), "{} layers are left", chain.len());
        }
        Ok(())
    }

    /// Begins the look.
    fn begin(&mut self) -> Result<()> {
        match self.look {
            Look::AtStart => self.plugin()?.restart(),
            Look::Later => self.reload(),
        }
    }

    fn reload(&mut self) -> Result<()> {
        let config = self.config.clone();
        self.plugin()?.reload(&config)
    }

    /// Waits until each image has all layers, with labels and the anchor, and the plugin is quiet. No call of this goes
    /// through the tap.
    async fn until_ready(&mut self, may_reload: bool) -> Result<()> {
        let (began, mut is_reloaded) = (Instant::now(), !may_reload);
        while let Err(e) = self.are_ready().await {
            ensure!(began.elapsed() < PATIENCE, "{e}");
            if !is_reloaded && began.elapsed() > TRIED {
                self.reload()?;
                is_reloaded = true;
            }
            sleep(Duration::from_millis(20)).await;
        }
        self.tap()?.quiet(0, QUIET, PATIENCE).await?;
        Ok(())
    }

    async fn are_ready(&mut self) -> Result<()> {
        for image in self.images.clone() {
            let anchor = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
            let labels = self.node.store.content_labels(&image.config.digest).await?;
            ensure!(
                labels.contains_key(&anchor),
                "{} has no anchor",
                image.name()
            );
            self.node.image = image;
            self.node.assert_labelled(self.snapshotter).await?;
        }
        Ok(())
    }

    /// Runs a look, with this fault if there is one. Returns the calls, and whether the fault has occurred.
    async fn run(&mut self, fault: Option<(&Place, Fault)>) -> Result<(Vec<Call>, bool)> {
        self.lose().await?;
        let log = self.node.log.from_now();
        if let Some((place, fault)) = fault {
            place.fail(self.tap()?, fault);
        }
        let earlier = self.tap()?.calls().len();
        self.begin()?;
        let pid = self.plugin()?.pid();
        self.until_ready(fault.is_some() && !is_complete()).await?;
        let made = self.tap()?.calls().split_off(earlier);
        let has_occurred = self.tap()?.heal();
        for image in &self.images {
            let state = self.node.state_of(image, self.snapshotter).await?;
            ensure!(state == "ready", "{} is {state}", image.name());
        }
        ensure!(self.plugin()?.pid() == pid, "the plugin has ended");
        assert_said_once(&log, fault.is_some())?;
        let is_left = match fault {
            Some((place, fault)) => is_left_to_the_sweep(place, fault),
            None => false,
        };
        if is_left {
            self.plugin()?.stop().await?;
            self.plugin()?.restart()?;
        }
        self.node.assert_nothing_left(self.snapshotter).await?;
        if self.look == Look::AtStart {
            self.plugin()?.stop().await?;
        } else if is_left {
            self.until_ready(false).await?;
        }
        let left = self.node.nothing_left(self.snapshotter).await;
        ensure!(left.is_ok(), "{left:?}");
        Ok((made, has_occurred))
    }
}

/// Whether the plugin leaves a lease to its next start, as it could not delete it or remove a snapshot that it holds.
fn is_left_to_the_sweep(place: &Place, fault: Fault) -> bool {
    let is_end = place.is("Leases/Delete") || place.is("Snapshots/Remove");
    is_end && fault == Fault::Error
}

/// Checks that no line of a failure is repeated, and that there are few.
fn assert_said_once(log: &lab::Log, may_fail: bool) -> Result<()> {
    let text = log.text();
    let failures = text
        .lines()
        .filter(|line| line.contains(" WARN ") || line.contains(" ERROR "));
    // Without the time.
    let failures: Vec<_> = failures
        .filter_map(|line| line.split_once(' ').map(|(_, rest)| rest))
        .collect();
    let distinct: BTreeSet<_> = failures.iter().collect();
    ensure!(distinct.len() == failures.len(), "repeated: {failures:#?}");
    ensure!(
        failures.len() <= if may_fail { 3 } else { 0 },
        "{failures:#?}"
    );
    Ok(())
}

async fn every_call(version: Version, look: Look) -> Result<()> {
    let mut bench = Bench::start(version, look).await?;
    let (made, _) = bench.run(None).await?;
    let absent = CALLS
        .iter()
        .filter(|name| !made.iter().any(|call| call.path.ends_with(**name)));
    let absent: Vec<_> = absent.collect();
    ensure!(absent.is_empty(), "never called: {absent:?}");
    let places = Place::of_each(&made);
    let pairs = places
        .iter()
        .flat_map(|place| FAULTS.map(|fault| (place, fault)));
    let pairs: Vec<_> = pairs.collect();
    println!("{look:?}: {} calls, {} faults", places.len(), pairs.len());
    for n in chosen(pairs.len(), SHARE)? {
        let (place, fault) = pairs[n];
        let run = async || {
            let began = Instant::now();
            let (_, has_occurred) = bench.run(Some((place, fault))).await?;
            println!("{fault:?} in {place:?}: {:?}", began.elapsed());
            Ok(has_occurred)
        };
        place.meets(fault, run).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn at_the_start_on_2_1() -> Result<()> {
    every_call(Version::V2_1, Look::AtStart).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn at_the_start_on_1_7() -> Result<()> {
    every_call(Version::V1_7, Look::AtStart).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn later_on_2_1() -> Result<()> {
    every_call(Version::V2_1, Look::Later).await
}

#[tokio::test(flavor = "multi_thread")]
async fn later_on_1_7() -> Result<()> {
    every_call(Version::V1_7, Look::Later).await
}
