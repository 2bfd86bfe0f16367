//! The plugin's clock differs from that of containerd, and jumps; and containerd restarts again and again.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::packages::Packages;
use lab::{Image, Version};
use tokio::time::Instant;

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, DEFAULT_HOOKS, Node, PATIENCE, RESOLVED, handler};

const LAYERS: usize = 4;

/// The clock of the plugin, in libfaketime's words. The first is that of the machine. It is never a day behind that of
/// containerd, for which its leases, which have a day, would be over at once: on a machine both read the same clock.
const CLOCKS: [&str; 4] = ["+0", "-23h", "+3650d", "+30d"];

/// libfaketime reads its file so often.
const SEEN: Duration = Duration::from_millis(1500);

/// The restarts of containerd, and the part of the time that the plugin may compute meanwhile.
const RESTARTS: usize = 10;
const LARGEST_PART: f64 = 0.25;

impl Node {
    /// Pulls an image, waits until it is ready in both snapshotters, and creates a container in each.
    async fn is_served(&mut self, image: &Image) -> Result<()> {
        self.pull(image).await?;
        for handler in [handler(self.lab.version()), NYDUS] {
            self.wait_image(image, handler).await?;
            let log = self.log.from_now();
            self.pod(handler, image.name()).await?;
            let ready = log.lines_with(" verdict=ready hook=CreateContainer ");
            ensure!(ready.len() == 1, "{handler}: {}", log.text());
            self.assert_nothing_left(handler).await?;
        }
        Ok(())
    }

    /// Returns the processor time of the plugin.
    fn computed(&self) -> Result<Duration> {
        let plugin = self.plugin.as_ref().context("serving")?;
        let pid = plugin.pid().context("the plugin does not run")?;
        // In nanoseconds, for each thread.
        let mut total = 0;
        for task in fs::read_dir(format!("/proc/{pid}/task"))? {
            let schedule = fs::read_to_string(task?.path().join("schedstat"))?;
            let computed = schedule.split_whitespace().next();
            total += computed.context("schedstat")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }
}

async fn a_clock_that_jumps(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.hooks = DEFAULT_HOOKS;
    node.serve(ALL).await?;
    let (library, file) = (Packages::fetch()?.fake_clock(), node.lab.path("clock"));
    fs::write(&file, CLOCKS[0])?;
    let paths = [library.to_str(), file.to_str()];
    let [Some(library), Some(file_name)] = paths else {
        anyhow::bail!("{paths:?}");
    };
    let log = node.log.from_now();
    let plugin = node.plugin.as_mut().context("serving")?;
    plugin.stop().await?;
    plugin.set_variables(&[
        ("LD_PRELOAD", library),
        ("FAKETIME_TIMESTAMP_FILE", file_name),
        ("FAKETIME_CACHE_DURATION", "1"),
        ("FAKETIME_DONT_FAKE_MONOTONIC", "1"),
    ]);
    plugin.restart()?;
    log.wait_for(RESOLVED, PATIENCE).await?;
    for (n, clock) in CLOCKS.iter().enumerate() {
        fs::write(&file, clock)?;
        tokio::time::sleep(SEEN).await;
        node.is_served(&image(LAYERS, n)).await.context(*clock)?;
    }
    // The times of the log show that the clock has jumped.
    let dates = log.text();
    let dates: std::collections::BTreeSet<_> =
        dates.lines().filter_map(|line| line.get(..8)).collect();
    ensure!(dates.len() >= CLOCKS.len() - 1, "{dates:?}");
    let closed = node.lab.log().lines_with("closing plugin");
    ensure!(closed.is_empty(), "{closed:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_on_2_1() -> Result<()> {
    a_clock_that_jumps(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_on_1_7() -> Result<()> {
    a_clock_that_jumps(Version::V1_7).await
}

/// As fast as it starts: about once a second.
async fn a_containerd_that_restarts_again_and_again(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.hooks = DEFAULT_HOOKS;
    node.serve(ALL).await?;
    let (began, before) = (Instant::now(), node.computed()?);
    for _ in 0..RESTARTS {
        node.lab.kill();
        node.lab.restart().await?;
    }
    let (took, computed) = (began.elapsed(), node.computed()? - before);
    println!(
        "{version:?}: {RESTARTS} restarts in {took:?}, of which the plugin computed {computed:?}"
    );
    let part = computed.as_secs_f64() / took.as_secs_f64();
    ensure!(
        part < LARGEST_PART,
        "the plugin computed {computed:?} in {took:?}"
    );
    node.cri = node.lab.cri().await?;
    node.store = node.lab.store().await?;
    let log = node.log.from_now();
    log.wait_for("reconcile finished", PATIENCE).await?;
    node.is_served(&image(LAYERS, 0)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_restarts_again_and_again_on_2_1() -> Result<()> {
    a_containerd_that_restarts_again_and_again(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_containerd_that_restarts_again_and_again_on_1_7() -> Result<()> {
    a_containerd_that_restarts_again_and_again(Version::V1_7).await
}
