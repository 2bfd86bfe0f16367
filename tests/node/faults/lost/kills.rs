//! The command or the plugin is killed while it heals lost images. The next one heals them, and nothing is left.
//!
//! `NRI_UNPACK_KILLS` is the number of kills of each. `NRI_UNPACK_SEED` repeats the same moments.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Call, Held, Version};

use super::Bench;
use crate::guest_pull::NYDUS;
use crate::kills::count;
use crate::random::Random;
use crate::support::PATIENCE;

/// The kills of the command in a short run.
const KILLS: usize = 4;

/// Those of the plugin, which removes the lease of a killed one after some seconds.
const KILLS_OF_PLUGIN: usize = 2;

/// The plugin heals at its start, and then makes few calls: later ones are not waited for.
const HEALING: Duration = Duration::from_secs(4);

/// Whether the call looks for the record of a lost layer.
fn begins(call: &Call) -> bool {
    call.message.contains("nri-unpack nothing")
}

/// Returns the number of calls since the healing began.
fn healing(made: &[Call]) -> usize {
    let before = made.iter().take_while(|call| !begins(call));
    made.len() - before.count()
}

impl Bench {
    /// Holds the call with this number since the healing began.
    fn hold_nth(&self, nth: usize) -> Result<Held> {
        let (has_begun, seen) = (AtomicBool::new(false), AtomicUsize::new(0));
        Ok(self.tap()?.hold(move |call| {
            if has_begun.fetch_or(begins(call), Ordering::Relaxed) || begins(call) {
                return seen.fetch_add(1, Ordering::Relaxed) == nth;
            }
            false
        }))
    }

    /// Waits until the images are ready, each anchor is what it was, and nothing temporary is left.
    async fn wait_healed(&self) -> Result<()> {
        for image in self.others.iter().chain([&self.target]) {
            self.node.wait_image(image, NYDUS).await?;
        }
        let deadline = Instant::now() + PATIENCE;
        loop {
            let anchors = self.anchors().await?;
            let mut expected = self.anchors.iter();
            match expected.find(|(key, value)| anchors.get(*key) != Some(*value)) {
                None => return self.node.assert_nothing_left(NYDUS).await,
                Some(missing) => {
                    ensure!(Instant::now() < deadline, "not anchored: {missing:?}");
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
            }
        }
    }
}

/// Kills `ensure`. The next one is of two images, as the plugin makes all lost images ready.
async fn of_the_command(version: Version) -> Result<()> {
    let bench = Bench::start(version).await?;
    let calls = healing(&bench.clean_run().await?);
    let mut random = Random::new()?;
    for _ in 0..count(KILLS)? {
        bench.lose().await?;
        let nth = random.below(calls);
        let mut held = bench.hold_nth(nth)?;
        let words = ["ensure", bench.target.name(), "--snapshotter", NYDUS];
        let mut command = bench.node.command_of(&words)?;
        let mut child = command.stdout(Stdio::null()).spawn()?;
        let call = tokio::time::timeout(PATIENCE, held.came()).await;
        child.kill()?;
        child.wait()?;
        let case = format!("killed before call {nth} of {calls}, {}", call??.path);
        println!("{case}");
        drop(held);
        let used = bench.used[0].name();
        let words = [words[0], used, words[1], words[2], words[3]];
        bench.node.command(&words)?;
        bench.assert_healed().await.context(case)?;
    }
    Ok(())
}

/// Kills the plugin.
async fn of_the_plugin(version: Version) -> Result<()> {
    let mut bench = Bench::start(version).await?;
    bench.node.serve("").await?;
    bench.wait_healed().await?;
    // The first run made other images ready as well.
    bench.plugin()?.stop().await?;
    bench.lose().await?;
    let earlier = bench.tap()?.calls().len();
    bench.plugin()?.restart()?;
    bench.wait_healed().await?;
    let calls = healing(&bench.tap()?.calls()[earlier..]);
    let mut random = Random::new()?;
    for _ in 0..count(KILLS_OF_PLUGIN)? {
        let mut nth = random.below(calls);
        let path = loop {
            bench.plugin()?.stop().await?;
            bench.lose().await?;
            if let Some(path) = bench.kill_before(nth).await? {
                break path;
            }
            // It had less to do.
            nth /= 2;
        };
        let case = format!("killed before call {nth} of {calls}, {path}");
        println!("{case}");
        bench.plugin()?.restart()?;
        bench.wait_healed().await.context(case.clone())?;
        // It has leases of its own now and then.
        bench.plugin()?.stop().await?;
        bench.assert_healed().await.context(case)?;
        bench.plugin()?.restart()?;
    }
    Ok(())
}

impl Bench {
    /// Starts the plugin, and kills it before this call of the healing. Returns what is called; `None` if it is not called,
    /// then the plugin runs.
    async fn kill_before(&mut self, nth: usize) -> Result<Option<String>> {
        let mut held = self.hold_nth(nth)?;
        self.plugin()?.restart()?;
        let Ok(call) = tokio::time::timeout(HEALING, held.came()).await else {
            self.tap()?.forget_holds();
            return Ok(None);
        };
        self.plugin()?.kill();
        Ok(Some(call?.path))
    }

    fn plugin(&mut self) -> Result<&mut lab::Plugin> {
        self.node.plugin.as_mut().context("serving")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_command_on_2_1() -> Result<()> {
    of_the_command(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn of_the_command_on_1_7() -> Result<()> {
    of_the_command(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_the_plugin_on_2_1() -> Result<()> {
    of_the_plugin(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "the other version is tested in each run"]
async fn of_the_plugin_on_1_7() -> Result<()> {
    of_the_plugin(Version::V1_7).await
}
