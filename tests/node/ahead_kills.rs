//! containerd, the snapshotter or the plugin is killed at a random moment while pods of just pulled images are
//! created. No pod fails because of the plugin, and each container has the files of its image. Afterwards every
//! image is ready, and no lease or extraction snapshot remains.
//!
//! The tests kill each process once. To kill each process twenty times, in runs of sixty pods, run
//! `NRI_UNPACK_KILLS=20 cargo test --test node ahead_kills -- --include-ignored --nocapture --test-threads 1`. To repeat the same
//! moments, set `NRI_UNPACK_SEED` to the number that was printed.

mod at_once;
mod restart;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::ListPodSandboxRequest;
use lab::{Cri, Image, Pod, Remote, Store, Version, images};

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, Node, PATIENCE, handler};

/// The environment variable with the number of kills of each process.
const COUNT: &str = "NRI_UNPACK_KILLS";

/// The environment variable with the seed of the random numbers.
const SEED: &str = "NRI_UNPACK_SEED";

/// The number of pods for each kill. No kill happens during the first one, which measures how long a pod takes.
const PODS: usize = 3;
const LAYERS: usize = 10;

/// The kubelet retries; a killed containerd takes some seconds to return.
const TRIES: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// The prefix of the plugin's own errors.
const REJECTION: &str = "nri-unpack:";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Plugin,
    Snapshotter,
    Containerd,
}

/// Reproducible pseudo-random numbers.
pub(crate) struct Random(u64);

impl Random {
    /// Takes the seed from the environment, or from the clock.
    pub(crate) fn new() -> Result<Self> {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().with_context(|| format!("{SEED}={seed}"))?,
            Err(_) => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)?
                .as_nanos() as u64,
        };
        println!("{SEED}={seed}");
        Ok(Self(seed | 1))
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

/// Returns the number of rounds from the environment, or this default.
pub(crate) fn count(default: usize) -> Result<usize> {
    match std::env::var(COUNT) {
        Ok(many) => many.parse().with_context(|| format!("{COUNT}={many}")),
        Err(_) => Ok(default),
    }
}

/// Whether the error is a fault of nydus-snapshotter, which the plugin does not cause. After a restart
/// nydus-snapshotter 0.13.4 in proxy mode does not find its instances: it creates no container on a chain that
/// an earlier container used, such as the chain of the pause image. [`restart`] shows it without the plugin.
fn is_nydus_fault(error: &tonic::Status) -> bool {
    let message = error.message();
    message.contains("create instance") && message.contains("already exists")
}

/// Removes a container and then its pod, as the kubelet does. containerd 2.1 removes a pod with its containers under NRI's
/// lock, which it takes twice: if a plugin registers between, both wait for ever.
pub(crate) async fn remove_as_kubelet(
    cri: &mut Cri,
    pod: &Pod,
    container: &str,
) -> Result<(), tonic::Status> {
    cri.stop_container(container).await?;
    cri.remove_container(container).await?;
    cri.remove_pod(pod).await
}

/// Counts of pods by result.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counts {
    /// Pods with a container that has the files of its image.
    pub(crate) made: usize,
    /// Pods that were given up, because the snapshotter creates no more containers.
    pub(crate) given_up: usize,
    pub(crate) failed_tries: usize,
}

/// Creates pods with this handler.
pub(crate) struct Pods {
    pub(crate) store: Store,
    pub(crate) cri: Cri,
    pub(crate) handler: &'static str,
}

impl Pods {
    /// Pulls an image and creates a pod and a container of it, with up to `TRIES` tries.
    pub(crate) async fn create(&mut self, image: &Image, counts: &mut Counts) -> Result<()> {
        for _ in 0..TRIES {
            let error = match self.try_once(image).await {
                Ok(is_right) => {
                    ensure!(is_right, "{}: files differ from the image", image.name());
                    counts.made += 1;
                    return Ok(());
                }
                Err(error) => error,
            };
            println!("{}: {}", image.name(), error.message());
            ensure!(
                !error.message().contains(REJECTION),
                "rejected by the plugin: {error}"
            );
            if is_nydus_fault(&error) {
                counts.given_up += 1;
                return Ok(());
            }
            counts.failed_tries += 1;
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        anyhow::bail!("{}: no pod after {TRIES} tries", image.name())
    }

    /// Creates a pod and a container once; returns whether the container has the files of the image.
    async fn try_once(&mut self, image: &Image) -> Result<bool, tonic::Status> {
        self.cri.pull_image(image.name()).await?;
        let pod = self.cri.run_pod(self.handler, &[]).await?;
        let created = self.cri.create_container(&pod, image.name(), &[], &[]);
        let container = created.await?;
        let is_right = match self.handler {
            NYDUS => self.is_guest_pulled(&container).await?,
            _ => self.has_all_files(&container, image).await?,
        };
        remove_as_kubelet(&mut self.cri, &pod, &container).await?;
        Ok(is_right)
    }

    async fn is_guest_pulled(&self, container: &str) -> Result<bool, tonic::Status> {
        let mounts = self.store.mounts(NYDUS, container).await?;
        let mut kinds = mounts.iter().map(|mount| mount.kind.as_str());
        Ok(kinds.any(|kind| kind == "fuse.nydus-overlayfs"))
    }

    /// Whether the container has the file of every layer.
    async fn has_all_files(
        &mut self,
        container: &str,
        image: &Image,
    ) -> Result<bool, tonic::Status> {
        self.cri.start_container(container).await?;
        let files: Vec<_> = (0..LAYERS).map(|n| format!("/data/{n}")).collect();
        let mut command = vec!["cat"];
        command.extend(files.iter().map(String::as_str));
        let read = self.cri.exec_sync(container, &command).await?;
        let expected = (0..LAYERS).map(|n| format!("{n} of {}\n", image.name()));
        Ok(read.stdout == expected.collect::<String>())
    }
}

impl Node {
    /// Kills a process and starts it again, as its supervisor would.
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

    /// Runs pods of these images, and kills the victim during one of them, but not during the first.
    async fn kill_during_pods(
        &mut self,
        victim: Victim,
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
        let (mut counts, began) = (Counts::default(), Instant::now());
        let (first, others) = images.split_first().context("no image")?;
        pods.create(first, &mut counts).await?;
        // Later pods may take less time.
        let moments = began.elapsed().as_micros() as usize * 2 / 3;
        let (nth, moment) = (random.below(others.len()), random.below(moments));
        let moment = Duration::from_micros(moment as u64);
        let started = AtomicUsize::new(0);
        let made = async {
            for image in others {
                started.fetch_add(1, Ordering::Relaxed);
                pods.create(image, &mut counts).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let kill = async {
            while started.load(Ordering::Relaxed) <= nth {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(moment).await;
            let during = started.load(Ordering::Relaxed);
            self.kill(victim).await?;
            Ok::<_, anyhow::Error>(during)
        };
        let (made, killed) = tokio::join!(made, kill);
        let what = format!("{victim:?} killed {moment:?} into pod {}", nth + 2);
        println!("{what}, in the making of pod {}", killed? + 1);
        made.context(what)?;
        ensure!(
            victim != Victim::Plugin || counts.failed_tries == 0,
            "a try failed though only the plugin was killed"
        );
        Ok(counts)
    }

    /// Checks that every image becomes ready, and that no lease or extraction snapshot remains.
    pub(crate) async fn assert_all_ready(
        &mut self,
        images: &[Image],
        snapshotter: &str,
    ) -> Result<()> {
        self.cri = self.lab.cri().await?;
        self.store = self.lab.store().await?;
        self.remove_pods().await?;
        for image in images {
            self.wait_image(image, snapshotter).await?;
        }
        self.assert_nothing_left(snapshotter).await
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

    /// Waits until the image is ready.
    pub(crate) async fn wait_image(&self, image: &Image, snapshotter: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            // containerd reconnects to a killed snapshotter only after a pause: until then `check` lists nothing.
            let state = self.state_of(image, snapshotter).await;
            let state = state.unwrap_or_else(|error| error.to_string());
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

/// Returns images for one round.
fn images_for(handler: &str, round: usize) -> Result<Vec<Image>> {
    let numbers = (0..PODS).map(|n| round * PODS + n);
    numbers.map(|n| image_for(handler, n)).collect()
}

/// Returns an image that shares no layer with the others.
pub(crate) fn image_for(handler: &str, n: usize) -> Result<Image> {
    match handler {
        NYDUS => Ok(image(LAYERS, n)),
        _ => images::own_layers(&format!("registry.test/killed/app:{n}"), LAYERS),
    }
}

async fn kills(version: Version, handler: &'static str, config: &str) -> Result<()> {
    let count = count(1)?;
    let mut random = Random::new()?;
    let mut victims = vec![Victim::Plugin, Victim::Containerd];
    if handler == NYDUS {
        victims.push(Victim::Snapshotter);
    }
    for victim in victims {
        let (mut all, mut images) = (Counts::default(), Vec::new());
        let mut node = start(version).await?;
        node.serve(config).await?;
        for round in 0..count {
            // After a restart nydus-snapshotter creates no more pods: each kill gets a node of its own.
            if victim == Victim::Snapshotter && round > 0 {
                node.assert_all_ready(&images, handler).await?;
                images.clear();
                node = start(version).await?;
                node.serve(config).await?;
            }
            let these = images_for(handler, round)?;
            let counts = node
                .kill_during_pods(victim, handler, &these, &mut random)
                .await?;
            images.extend(these);
            all.made += counts.made;
            all.given_up += counts.given_up;
            all.failed_tries += counts.failed_tries;
        }
        node.assert_all_ready(&images, handler).await?;
        println!("{version:?}, {handler}: {victim:?} killed {count} times: {all:?}; all ready");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_pulls_survive_kills_on_2_1() -> Result<()> {
    kills(Version::V2_1, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_pulls_survive_kills_on_1_7() -> Result<()> {
    kills(Version::V1_7, NYDUS, "").await
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_survives_kills_on_2_1() -> Result<()> {
    kills(Version::V2_1, handler(Version::V2_1), ALL).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_survives_kills_on_1_7() -> Result<()> {
    kills(Version::V1_7, handler(Version::V1_7), ALL).await
}
