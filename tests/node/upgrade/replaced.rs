//! The plugin is replaced, as by a rolling update of its DaemonSet or a restart of its unit, while pods are created: no
//! creation fails. Each replacement ends the plugin by SIGTERM at a random moment, and starts it when it has ended.
//!
//! A test replaces it five times. For more, set `NRI_UNPACK_REPLACEMENTS`; `NRI_UNPACK_SEED` repeats the same moments.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Cri, Image, Log, Plugin, Registry, Tap, Version};

use crate::guest_pull::{self, NYDUS};
use crate::kills::{Counts, Kills};
use crate::pods::{Pods, image_for, remove_as_kubelet};
use crate::random::Random;
use crate::support::{Node, PATIENCE, RESOLVED, handler};

/// The environment variable with the number of replacements.
const COUNT: &str = "NRI_UNPACK_REPLACEMENTS";
const DEFAULT_COUNT: usize = 5;

/// The latest moment of a replacement after the plugin before it is ready: two or three pods.
const LATEST: usize = 1500;

/// The two streams of pods, until the replacements are done.
#[derive(Default)]
struct Streams {
    ended: AtomicBool,
    /// The pods of the handler that were begun.
    begun: AtomicUsize,
}

impl Streams {
    /// Pods of a handler, each of an image that was just pulled.
    async fn of_new_images(
        &self,
        pods: &mut Pods,
        registry: &Registry,
        kills: &Kills,
    ) -> Result<(Counts, Vec<Image>)> {
        let (mut counts, mut images) = (Counts::default(), Vec::new());
        while !self.ended.load(Ordering::Relaxed) {
            let image = image_for(pods.handler, images.len())?;
            registry.push(&image).await?;
            self.begun.fetch_add(1, Ordering::Relaxed);
            pods.create(&image, kills, &mut counts).await?;
            images.push(image);
        }
        Ok((counts, images))
    }

    /// Pods of the default handler, with an image that is there. Returns their number.
    async fn of_default_handler(&self, cri: &mut Cri, image: &Image) -> Result<usize> {
        let mut made = 0;
        while !self.ended.load(Ordering::Relaxed) {
            let pod = cri.run_pod("", &[]).await?;
            let name = image.name();
            let container = cri.create_container(&pod, name, &[], &[]).await?;
            cri.start_container(&container).await?;
            remove_as_kubelet(cri, &pod, &container).await?;
            made += 1;
        }
        Ok(made)
    }

    /// Replaces the plugin at random moments. Returns how long each time was without one.
    async fn replace(
        &self,
        plugin: &mut Plugin,
        log: &Log,
        count: usize,
        random: &mut Random,
    ) -> Result<Vec<Duration>> {
        let mut gaps = Vec::new();
        for _ in 0..count {
            let begun = self.begun.load(Ordering::Relaxed);
            while self.begun.load(Ordering::Relaxed) == begun {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            let moment = random.below(LATEST) as u64;
            tokio::time::sleep(Duration::from_millis(moment)).await;
            let now = log.from_now();
            let gone = Instant::now();
            ensure!(plugin.stop().await?.success());
            plugin.restart()?;
            now.wait_for(RESOLVED, PATIENCE).await?;
            gaps.push(gone.elapsed());
        }
        Ok(gaps)
    }
}

async fn replaced(version: Version, handler: &'static str) -> Result<()> {
    let count = match std::env::var(COUNT) {
        Ok(many) => many.parse().with_context(|| format!("{COUNT}={many}"))?,
        Err(_) => DEFAULT_COUNT,
    };
    let mut random = Random::new()?;
    let mut node = match handler {
        NYDUS => guest_pull::start(version).await?,
        _ => Node::start(version).await?,
    };
    node.serve(&format!("[snapshotters.{handler}]\neager = \"all\"\n"))
        .await?;
    let mut pods = Pods {
        store: node.lab.store().await?,
        cri: node.lab.cri().await?,
        handler,
    };
    let mut cri = node.lab.cri().await?;
    let log = node.log.clone();
    let mut plugin = node.plugin.take().context("serving")?;
    // Nothing is killed: no try may fail.
    let (streams, kills) = (Streams::default(), Kills::new(&log));
    let replacements = async {
        let gaps = streams.replace(&mut plugin, &log, count, &mut random).await;
        streams.ended.store(true, Ordering::Relaxed);
        gaps
    };
    let (made, of_default, gaps) = tokio::join!(
        streams.of_new_images(&mut pods, &node.registry, &kills),
        streams.of_default_handler(&mut cri, &node.image),
        replacements,
    );
    node.plugin = Some(plugin);
    let ((counts, images), of_default, mut gaps) = (made?, of_default?, gaps?);
    gaps.sort_unstable();
    let gap = |at: usize| gaps[(gaps.len() - 1) * at / 100];
    println!(
        "{version:?}, {handler}: replaced {count} times: {} pods, {of_default} of the default handler; without a \
         plugin for {:?} (median), {:?} (longest)",
        counts.made,
        gap(50),
        gap(100)
    );
    ensure!(counts.made >= count && of_default > 0, "too few pods");
    ensure!(log.lines_with("work did not end within").is_empty());
    node.assert_all_ready(&images, handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_fails_on_erofs_on_2_1() -> Result<()> {
    replaced(Version::V2_1, handler(Version::V2_1)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_fails_on_native_on_1_7() -> Result<()> {
    replaced(Version::V1_7, handler(Version::V1_7)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_fails_on_nydus_on_2_1() -> Result<()> {
    replaced(Version::V2_1, NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_pod_fails_on_nydus_on_1_7() -> Result<()> {
    replaced(Version::V1_7, NYDUS).await
}

/// SIGTERM comes while a hook is at work: the plugin finishes it and answers, before it ends.
async fn hook_in_flight(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.tap = Some(Tap::start(&node.lab)?);
    node.serve("").await?;
    let chain = node.image.chain_ids();
    let is_of_image = move |call: &lab::Call| chain.iter().any(|id| call.message.contains(id));
    let relabels =
        move |call: &lab::Call| call.path.ends_with("Snapshots/Update") && is_of_image(call);
    let mut held = node.tap.as_ref().context("tapped")?.hold(relabels);
    let pod = node.cri.run_pod(handler, &[]).await?;
    let (mut cri, name) = (node.cri.clone(), node.image.name().to_owned());
    let creation = tokio::spawn(async move { cri.create_container(&pod, &name, &[], &[]).await });
    tokio::time::timeout(PATIENCE, held.came())
        .await
        .context("the hook puts no labels")??;
    let log = node.log.clone();
    let mut plugin = node.plugin.take().context("serving")?;
    let release = async {
        log.wait_for("stopping", PATIENCE).await?;
        ensure!(!creation.is_finished(), "answered before its labels");
        held.release();
        Ok(creation.await??)
    };
    let (stopped, created) = tokio::join!(plugin.stop(), release);
    ensure!(stopped?.success());
    created?;
    node.assert_labelled(handler).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_in_flight_is_answered_on_2_1() -> Result<()> {
    hook_in_flight(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hook_in_flight_is_answered_on_1_7() -> Result<()> {
    hook_in_flight(Version::V1_7).await
}
