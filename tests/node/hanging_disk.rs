//! The disk of containerd's root takes reads and writes and does not end them. Hooks answer in time, and when the disk goes
//! on, so does the node.
//!
//! The disk hangs for some seconds. With `NRI_UNPACK_HANG=60` it hangs for a minute.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use futures::stream::{FuturesUnordered, TryStreamExt};
use lab::{Image, Options, Remote, Version};
use tokio::time::Instant;

use crate::after_pull::{image, took};
use crate::guest_pull::NYDUS;
use crate::support::{ALL, DEFAULT_HOOKS, Node, handler};

/// The environment variable with the seconds.
const HANG: &str = "NRI_UNPACK_HANG";
const DEFAULT_HANG: u64 = 5;

/// The size of the disk in MiB.
const DISK: u64 = 1000;

const LAYERS: usize = 5;
const IMAGES: usize = 6;

/// The longest time of a hook: the default of `hooks.wait`, and a margin for a loaded machine.
const LONGEST_HOOK: Duration = Duration::from_millis(500 + 700);

/// The tries of a kubelet, and the time between them.
const TRIES: usize = 40;
const BETWEEN: Duration = Duration::from_millis(500);

fn hang() -> Result<Duration> {
    let seconds = match std::env::var(HANG) {
        Ok(seconds) => seconds
            .parse()
            .with_context(|| format!("{HANG}={seconds}"))?,
        Err(_) => DEFAULT_HANG,
    };
    Ok(Duration::from_secs(seconds))
}

impl Node {
    /// Runs a pod of each image, at the same time, as a kubelet does.
    async fn run_pods(&self, handlers: [&str; 2], images: &[Image]) -> Result<()> {
        let pods: FuturesUnordered<_> = images
            .iter()
            .enumerate()
            .map(|(n, image)| {
                let (mut cri, handler) = (self.cri.clone(), handlers[n % handlers.len()]);
                async move {
                    for _ in 0..TRIES {
                        let Ok(pod) = cri.run_pod(handler, &[]).await else {
                            tokio::time::sleep(BETWEEN).await;
                            continue;
                        };
                        let created = cri.create_container(&pod, image.name(), &[], &[]).await;
                        cri.remove_pod(&pod).await?;
                        if created.is_ok() {
                            return Ok(());
                        }
                        tokio::time::sleep(BETWEEN).await;
                    }
                    anyhow::bail!("{}: no container after {TRIES} tries", image.name())
                }
            })
            .collect();
        pods.try_collect().await
    }
}

async fn hooks_answer_while_the_disk_hangs(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    options.root_size = Some(DISK);
    options.root_can_hang = true;
    let mut node = Node::start_with(version, options).await?;
    let images: Vec<_> = (0..IMAGES).map(|n| image(LAYERS, n)).collect();
    for image in &images {
        node.registry.push(image).await?;
        node.cri.pull_image(image.name()).await?;
    }
    node.hooks = DEFAULT_HOOKS;
    let config = node.config(ALL);
    node.serve_config(&config.replace("level = \"debug\"", "level = \"trace\""))
        .await?;
    // In the middle of the look at all images, which unpacks them.
    let handlers = [handler(version), NYDUS];
    node.disk_hangs_during(node.run_pods(handlers, &images), hang()?)
        .await?;
    for snapshotter in handlers {
        for image in &images {
            node.wait_image(image, snapshotter).await?;
        }
        node.assert_nothing_left(snapshotter).await?;
    }
    let hooks = node.log.lines_with("nri_unpack::hooks] answers hook=");
    // Two for each pod.
    ensure!(hooks.len() >= 2 * IMAGES, "{} hooks", hooks.len());
    for hook in hooks {
        ensure!(took(&hook)? < LONGEST_HOOK, "{hook}");
    }
    let closed = node.lab.log().lines_with("closing plugin");
    ensure!(closed.is_empty(), "{closed:#?}");
    Ok(())
}

impl Node {
    /// Lets the disk hang for this time while something is done, which ends only afterwards.
    async fn disk_hangs_during(
        &self,
        work: impl Future<Output = Result<()>>,
        time: Duration,
    ) -> Result<()> {
        let disk = self.lab.disk();
        let began = Instant::now();
        disk.pause()?;
        let hang = async {
            tokio::time::sleep(time).await;
            disk.go_on()
        };
        let (done, gone_on) = tokio::join!(work, hang);
        gone_on?;
        ensure!(began.elapsed() > time, "the disk did not hang");
        println!("done {:?} after the disk went on", began.elapsed() - time);
        done
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_answer_while_the_disk_hangs_on_2_1() -> Result<()> {
    hooks_answer_while_the_disk_hangs(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn hooks_answer_while_the_disk_hangs_on_1_7() -> Result<()> {
    hooks_answer_while_the_disk_hangs(Version::V1_7).await
}
