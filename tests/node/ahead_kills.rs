//! containerd, the snapshotter or the plugin is killed at a random moment of a run of pods whose images
//! have just been pulled: afterwards every image is ready all the same, and nothing is left behind.
//!
//! The tests kill each once. Twenty times is `NRI_UNPACK_KILLS=20 cargo test --test node ahead_kills --
//! --nocapture --test-threads 1`.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::ListPodSandboxRequest;
use lab::{Cri, Image, Remote, Version};

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, Node, PATIENCE, handler};

/// How many kills.
const COUNT: &str = "NRI_UNPACK_KILLS";

/// In turn; the snapshotter, if it is a process of its own, at the end.
const VICTIMS: [Victim; 2] = [Victim::Plugin, Victim::Containerd];

/// Pods that are run while one is killed.
const PODS: usize = 3;
const LAYERS: usize = 10;

/// Within this time one of the pods is being made.
const MOMENTS: u64 = 1200;

/// The kubelet tries again; a killed containerd takes some seconds to come back.
const TRIES: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Plugin,
    Snapshotter,
    Containerd,
}

/// Any time up to the last.
fn moment() -> Result<Duration> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(Duration::from_millis(
        u64::from(now.subsec_nanos()) / 7 % MOMENTS,
    ))
}

/// nydus-snapshotter 0.13.4 in proxy mode does not find its instances again when it was restarted: no
/// container can stand any more on a chain that one stood on before, such as the pause image's.
fn is_its_own_fault(error: &tonic::Status) -> bool {
    let message = error.message();
    message.contains("create instance") && message.contains("already exists")
}

/// Pulls an image and makes a pod and a container of it; answers how many tries failed.
async fn run(mut cri: Cri, handler: &str, image: &Image) -> Result<usize> {
    let mut failed = 0;
    while let Err(error) = try_once(&mut cri, handler, image.name()).await {
        println!("{}: {}", image.name(), error.message());
        if is_its_own_fault(&error) {
            break;
        }
        failed += 1;
        ensure!(failed < TRIES, "{}: {error}", image.name());
        tokio::time::sleep(BETWEEN_TRIES).await;
    }
    Ok(failed)
}

async fn try_once(cri: &mut Cri, handler: &str, image: &str) -> Result<(), tonic::Status> {
    cri.pull_image(image).await?;
    let pod = cri.run_pod(handler, &[]).await?;
    cri.create_container(&pod, image, &[], &[]).await?;
    cri.remove_pod(&pod).await
}

impl Node {
    /// Kills it, and has it started again as its supervisor would.
    async fn kill(&mut self, victim: Victim) -> Result<()> {
        match victim {
            Victim::Plugin => {
                let plugin = self.plugin.as_mut().context("serving")?;
                plugin.kill();
                plugin.restart()
            }
            Victim::Snapshotter => {
                let nydus = self.lab.remote(Remote::Nydus);
                nydus.kill();
                nydus.restart().await
            }
            Victim::Containerd => {
                self.lab.kill();
                self.lab.restart().await
            }
        }
    }

    /// Runs pods of these images, and kills while they are made.
    async fn round(&mut self, victim: Victim, snapshotter: &str, images: &[Image]) -> Result<()> {
        for image in images {
            self.registry.push(image).await?;
        }
        let (cri, moment) = (self.cri.clone(), moment()?);
        let pods = async {
            let mut failed = 0;
            for image in images {
                failed += run(cri.clone(), snapshotter, image).await?;
            }
            Ok::<_, anyhow::Error>(failed)
        };
        let kill = async {
            tokio::time::sleep(moment).await;
            self.kill(victim).await
        };
        let (failed, killed) = tokio::join!(pods, kill);
        killed?;
        let failed = failed.with_context(|| format!("{victim:?} killed after {moment:?}"))?;
        println!("{victim:?} killed after {moment:?}: {failed} tries failed");
        ensure!(
            victim != Victim::Plugin || failed == 0,
            "without the plugin nothing would have failed"
        );
        Ok(())
    }

    async fn remove_pods(&mut self) -> Result<()> {
        let list = self
            .cri
            .runtime
            .list_pod_sandbox(ListPodSandboxRequest::default());
        for pod in list.await?.into_inner().items {
            let pod = lab::Pod {
                id: pod.id,
                config: k8s_cri::v1::PodSandboxConfig::default(),
            };
            self.cri.remove_pod(&pod).await?;
        }
        Ok(())
    }

    /// Until it is ready.
    pub(crate) async fn wait_image(&self, image: &Image, snapshotter: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let state = self.state_of(image, snapshotter).await?;
            if state == "ready" {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "{} is {state}",
                image.name()
            );
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }
}

async fn kills(version: Version, snapshotter: &str, config: &str) -> Result<()> {
    let count = match std::env::var(COUNT) {
        Ok(many) => many.parse().with_context(|| format!("{COUNT}={many}"))?,
        Err(_) => VICTIMS.len(),
    };
    let mut node = start(version).await?;
    node.serve(config).await?;
    let turns = VICTIMS.into_iter().cycle().take(count);
    let last = (snapshotter == NYDUS).then_some(Victim::Snapshotter);
    let mut images = Vec::new();
    for (n, victim) in turns.chain(last).enumerate() {
        let these: Vec<_> = (0..PODS).map(|i| image(LAYERS, n * PODS + i)).collect();
        node.round(victim, snapshotter, &these).await?;
        images.extend(these);
    }
    node.cri = node.lab.cri().await?;
    node.store = node.lab.store().await?;
    node.remove_pods().await?;
    for image in &images {
        node.wait_image(image, snapshotter).await?;
    }
    node.assert_nothing_left(snapshotter).await
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_pulls_on_2_1() -> Result<()> {
    kills(Version::V2_1, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_pulls_on_1_7() -> Result<()> {
    kills(Version::V1_7, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1() -> Result<()> {
    kills(Version::V2_1, handler(Version::V2_1), ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7() -> Result<()> {
    kills(Version::V1_7, handler(Version::V1_7), ALL).await
}
