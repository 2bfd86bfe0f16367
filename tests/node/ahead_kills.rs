//! containerd, the snapshotter or the plugin is killed at a random moment of a run of pods whose images
//! have just been pulled: afterwards every image is ready all the same, and nothing is left behind.
//!
//! The tests kill each once. Each of them twenty times, in runs of sixty pods, is
//! `NRI_UNPACK_KILLS=20 cargo test --test node ahead_kills -- --nocapture --test-threads 1`.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::ListPodSandboxRequest;
use lab::{Cri, Image, Remote, Store, Version};

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, Node, PATIENCE, handler};

/// How many kills of each.
const COUNT: &str = "NRI_UNPACK_KILLS";

/// In turn; the snapshotter, if it is a process of its own, at the end.
const VICTIMS: [Victim; 2] = [Victim::Plugin, Victim::Containerd];

/// Pods that are run while one is killed.
const PODS: usize = 3;
const LAYERS: usize = 10;

/// From its beginning, a pod is being made for longer than this, in milliseconds.
const MOMENTS: u64 = 250;

/// The kubelet tries again; a killed containerd takes some seconds to come back.
const TRIES: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Plugin,
    Snapshotter,
    Containerd,
}

/// A moment in the making of one of the pods.
fn moment() -> Result<(usize, Duration)> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    let chance = u64::from(now.subsec_nanos()) / 7;
    let pod = usize::try_from(chance)? % PODS;
    Ok((pod, Duration::from_millis(chance / 7 % MOMENTS)))
}

/// nydus-snapshotter 0.13.4 in proxy mode does not find its instances again when it was restarted: no
/// container can stand any more on a chain that one stood on before, such as the pause image's.
fn is_its_own_fault(error: &tonic::Status) -> bool {
    let message = error.message();
    message.contains("create instance") && message.contains("already exists")
}

/// Pulls an image and makes a pod and a container of it; answers how many tries failed. No container is
/// mounted from a host's unpack where its guest is to pull.
async fn run(store: &Store, mut cri: Cri, handler: &str, image: &Image) -> Result<usize> {
    let mut failed = 0;
    loop {
        let error = match try_once(store, &mut cri, handler, image.name()).await {
            Ok(is_right) => {
                ensure!(is_right, "{} is mounted from the host", image.name());
                break;
            }
            Err(error) => error,
        };
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

/// Whether the container that was made has the right mounts.
async fn try_once(
    store: &Store,
    cri: &mut Cri,
    handler: &str,
    image: &str,
) -> Result<bool, tonic::Status> {
    cri.pull_image(image).await?;
    let pod = cri.run_pod(handler, &[]).await?;
    let container = cri.create_container(&pod, image, &[], &[]).await?;
    let is_right = handler != NYDUS || is_left_to_guest(store, &container).await;
    cri.remove_pod(&pod).await?;
    Ok(is_right)
}

/// Where nobody answers, because he was killed, nothing is known to be wrong.
async fn is_left_to_guest(store: &Store, container: &str) -> bool {
    match store.mounts(NYDUS, container).await {
        Ok(mounts) => mounts
            .iter()
            .any(|mount| mount.kind == "fuse.nydus-overlayfs"),
        Err(_) => true,
    }
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
        let begun = AtomicUsize::new(0);
        let store = self.lab.store().await?;
        let pods = async {
            let mut failed = 0;
            for image in images {
                begun.fetch_add(1, Ordering::Relaxed);
                failed += run(&store, cri.clone(), snapshotter, image).await?;
            }
            Ok::<_, anyhow::Error>(failed)
        };
        let kill = async {
            while begun.load(Ordering::Relaxed) <= moment.0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(moment.1).await;
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
        Err(_) => 1,
    };
    let mut node = start(version).await?;
    node.serve(config).await?;
    let each = |victim| std::iter::repeat_n(victim, count);
    // With nydus-snapshotter restarted, no more pods come up: it is the last.
    let last = (snapshotter == NYDUS).then_some(Victim::Snapshotter);
    let turns = VICTIMS.into_iter().chain(last).flat_map(each);
    let mut images = Vec::new();
    for (n, victim) in turns.enumerate() {
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
