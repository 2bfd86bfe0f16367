//! containerd, the snapshotter or the plugin is killed at a random moment of a run of pods whose images
//! have just been pulled: no pod fails because of the plugin, each container has what it should have, and
//! afterwards every image is ready and nothing is left behind.
//!
//! The tests kill each once. Each of them twenty times, in runs of sixty pods, is
//! `NRI_UNPACK_KILLS=20 cargo test --test node ahead_kills -- --nocapture --test-threads 1`. The same
//! moments again: `NRI_UNPACK_SEED=…` with the number that was printed.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::ListPodSandboxRequest;
use lab::{Cri, Image, PAUSE, Remote, Store, Version, images};

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::support::{ALL, Node, PATIENCE, handler};

/// How many kills of each.
const COUNT: &str = "NRI_UNPACK_KILLS";

/// Where chance begins.
const SEED: &str = "NRI_UNPACK_SEED";

/// Pods for each kill. The first shows how long one takes, and no kill falls into it.
const PODS: usize = 3;
const LAYERS: usize = 10;

/// The kubelet tries again; a killed containerd takes some seconds to come back.
const TRIES: usize = 20;
const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// What the plugin's own errors begin with.
const REJECTION: &str = "nri-unpack:";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victim {
    Plugin,
    Snapshotter,
    Containerd,
}

/// Numbers that look random and can be had again.
struct Chance(u64);

impl Chance {
    /// From the environment, or the time.
    fn new() -> Result<Self> {
        let seed = match std::env::var(SEED) {
            Ok(seed) => seed.parse().with_context(|| format!("{SEED}={seed}"))?,
            Err(_) => SystemTime::now()
                .duration_since(SystemTime::UNIX_EPOCH)?
                .as_nanos() as u64,
        };
        println!("{SEED}={seed}");
        Ok(Self(seed | 1))
    }

    /// Below this.
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }
}

/// nydus-snapshotter 0.13.4 in proxy mode does not find its instances again when it was restarted: no
/// container can stand any more on a chain that one stood on before, such as the pause image's. The tests
/// at the end show it without the plugin.
fn is_its_own_fault(error: &tonic::Status) -> bool {
    let message = error.message();
    message.contains("create instance") && message.contains("already exists")
}

/// What became of pods.
#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    /// Made, with a container that has what it should have.
    made: usize,
    /// Given up, since the snapshotter makes none any more.
    given_up: usize,
    failed_tries: usize,
}

/// Pods on this handler.
struct Pods {
    store: Store,
    cri: Cri,
    handler: &'static str,
}

impl Pods {
    /// Pulls an image and makes a pod and a container of it, as often as it takes.
    async fn make(&mut self, image: &Image, tally: &mut Tally) -> Result<()> {
        for _ in 0..TRIES {
            let error = match self.try_once(image).await {
                Ok(is_right) => {
                    ensure!(is_right, "{}: not what is in the image", image.name());
                    tally.made += 1;
                    return Ok(());
                }
                Err(error) => error,
            };
            println!("{}: {}", image.name(), error.message());
            ensure!(
                !error.message().contains(REJECTION),
                "the plugin's: {error}"
            );
            if is_its_own_fault(&error) {
                tally.given_up += 1;
                return Ok(());
            }
            tally.failed_tries += 1;
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        anyhow::bail!("{}: no pod after {TRIES} tries", image.name())
    }

    /// Whether the container that was made has what is in the image.
    async fn try_once(&mut self, image: &Image) -> Result<bool, tonic::Status> {
        self.cri.pull_image(image.name()).await?;
        let pod = self.cri.run_pod(self.handler, &[]).await?;
        let created = self.cri.create_container(&pod, image.name(), &[], &[]);
        let container = created.await?;
        let is_right = match self.handler {
            NYDUS => self.is_left_to_guest(&container).await?,
            _ => self.has_all(&container, image).await?,
        };
        self.cri.remove_pod(&pod).await?;
        Ok(is_right)
    }

    async fn is_left_to_guest(&self, container: &str) -> Result<bool, tonic::Status> {
        let mounts = self.store.mounts(NYDUS, container).await?;
        let mut kinds = mounts.iter().map(|mount| mount.kind.as_str());
        Ok(kinds.any(|kind| kind == "fuse.nydus-overlayfs"))
    }

    /// Every layer's file is there.
    async fn has_all(&mut self, container: &str, image: &Image) -> Result<bool, tonic::Status> {
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

    /// Runs pods of these images, and kills while one of them, but the first, is made.
    async fn round(
        &mut self,
        victim: Victim,
        handler: &'static str,
        images: &[Image],
        chance: &mut Chance,
    ) -> Result<Tally> {
        for image in images {
            self.registry.push(image).await?;
        }
        let mut pods = Pods {
            store: self.lab.store().await?,
            cri: self.lab.cri().await?,
            handler,
        };
        let (mut tally, began) = (Tally::default(), Instant::now());
        let (first, others) = images.split_first().context("no image")?;
        pods.make(first, &mut tally).await?;
        // Later ones may be quicker.
        let moments = began.elapsed().as_micros() as usize * 2 / 3;
        let (nth, moment) = (chance.below(others.len()), chance.below(moments));
        let moment = Duration::from_micros(moment as u64);
        let begun = AtomicUsize::new(0);
        let made = async {
            for image in others {
                begun.fetch_add(1, Ordering::Relaxed);
                pods.make(image, &mut tally).await?;
            }
            Ok::<_, anyhow::Error>(())
        };
        let kill = async {
            while begun.load(Ordering::Relaxed) <= nth {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            tokio::time::sleep(moment).await;
            let fell_into = begun.load(Ordering::Relaxed);
            self.kill(victim).await?;
            Ok::<_, anyhow::Error>(fell_into)
        };
        let (made, killed) = tokio::join!(made, kill);
        let what = format!("{victim:?} killed {moment:?} into pod {}", nth + 2);
        println!("{what}, in the making of pod {}", killed? + 1);
        made.context(what)?;
        ensure!(
            victim != Victim::Plugin || tally.failed_tries == 0,
            "without the plugin nothing would have failed"
        );
        Ok(tally)
    }

    /// Every image becomes ready, and nothing is left.
    async fn ends_well(&mut self, images: &[Image], snapshotter: &str) -> Result<()> {
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

/// No other has their layers.
fn images_of(handler: &str, round: usize) -> Result<Vec<Image>> {
    let numbers = (0..PODS).map(|n| round * PODS + n);
    numbers
        .map(|n| match handler {
            NYDUS => Ok(image(LAYERS, n)),
            _ => images::own_layers(&format!("registry.test/killed/app:{n}"), LAYERS),
        })
        .collect()
}

async fn kills(version: Version, handler: &'static str, config: &str) -> Result<()> {
    let count = match std::env::var(COUNT) {
        Ok(many) => many.parse().with_context(|| format!("{COUNT}={many}"))?,
        Err(_) => 1,
    };
    let mut chance = Chance::new()?;
    let mut victims = vec![Victim::Plugin, Victim::Containerd];
    if handler == NYDUS {
        victims.push(Victim::Snapshotter);
    }
    for victim in victims {
        let (mut all, mut images) = (Tally::default(), Vec::new());
        let mut node = start(version).await?;
        node.serve(config).await?;
        for round in 0..count {
            // Once it was restarted, nydus-snapshotter makes no more pods: each kill has a node of its own.
            if victim == Victim::Snapshotter && round > 0 {
                node.ends_well(&images, handler).await?;
                images.clear();
                node = start(version).await?;
                node.serve(config).await?;
            }
            let these = images_of(handler, round)?;
            let tally = node.round(victim, handler, &these, &mut chance).await?;
            images.extend(these);
            all.made += tally.made;
            all.given_up += tally.given_up;
            all.failed_tries += tally.failed_tries;
        }
        node.ends_well(&images, handler).await?;
        println!("{version:?}, {handler}: {victim:?} killed {count} times: {all:?}; all ready");
    }
    Ok(())
}

/// A pod on nydus; containerd tries its connection again only after a pause.
async fn run_pod(cri: &mut Cri) -> Result<Result<lab::Pod, tonic::Status>> {
    for _ in 0..TRIES {
        match cri.run_pod(NYDUS, &[]).await {
            Err(error) if error.message().contains("connection refused") => {
                tokio::time::sleep(BETWEEN_TRIES).await;
            }
            other => return Ok(other),
        }
    }
    anyhow::bail!("containerd does not reach the snapshotter again")
}

/// Without the plugin: what is ready stays so, and no second pod can be made of it, until what the documentation says
/// is done. A pod that runs goes on, and goes away as ever.
async fn own_fault(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    for image in [images::pause(&[PAUSE])?, node.image.clone()] {
        node.ensure_ready(&image, NYDUS)?;
    }
    let running = node.cri.run_pod(NYDUS, &[]).await?;
    let nydus = node.lab.remote(Remote::Nydus);
    nydus.kill();
    nydus.restart().await?;
    let error = match run_pod(&mut node.cri).await? {
        Err(error) if is_its_own_fault(&error) => error,
        other => anyhow::bail!("{other:?}"),
    };
    node.play(NYDUS, error.message()).await?;
    let name = node.image.name().to_owned();
    for _ in 0..2 {
        let pod = run_pod(&mut node.cri).await??;
        let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
        node.assert_guest_pulls(&container).await?;
    }
    let list = ListPodSandboxRequest::default();
    let pods = node.cri.runtime.list_pod_sandbox(list).await?.into_inner();
    let ready = k8s_cri::v1::PodSandboxState::SandboxReady as i32;
    let runs = |pod: &k8s_cri::v1::PodSandbox| pod.id == running.id && pod.state == ready;
    ensure!(pods.items.iter().any(runs), "{pods:#?}");
    node.remove_pods().await?;
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_nydus_makes_pods_again_by_the_documented_remedy_on_2_1() -> Result<()> {
    own_fault(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restarted_nydus_makes_pods_again_by_the_documented_remedy_on_1_7() -> Result<()> {
    own_fault(Version::V1_7).await
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
