//! Faults at random calls of the plugin, while it looks at all images, images arrive, and pods start. Afterwards every image
//! is ready, and nothing is left.
//!
//! `NRI_UNPACK_IMAGES=200 cargo test --test node faults::at_random -- --nocapture --test-threads 1` is a long run, and
//! `NRI_UNPACK_SEED` with the number that it prints makes the same choices.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Options, Remote, Tap, Version};
use tokio::time::Instant;

use super::FAULTS;
use crate::after_pull::image;
use crate::guest_pull::NYDUS;
use crate::random::Random;
use crate::support::{ALL, DEFAULT_HOOKS, Node, handler};

/// The environment variable with the number of images.
const IMAGES: &str = "NRI_UNPACK_IMAGES";
const DEFAULT_IMAGES: usize = 6;
const LAYERS: usize = 4;

/// One of so many calls has a fault.
const SHARE: usize = 12;

/// The tries of a kubelet, and the time between two of them.
const TRIES: usize = 40;
const BETWEEN: Duration = Duration::from_millis(500);

/// The plugin tries again after some seconds, and later after a minute.
const HEALED: Duration = Duration::from_secs(120);

async fn at_random(version: Version) -> Result<()> {
    let images = match std::env::var(IMAGES) {
        Ok(images) => images
            .parse()
            .with_context(|| format!("{IMAGES}={images}"))?,
        Err(_) => DEFAULT_IMAGES,
    };
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(version, options).await?;
    let handlers = [handler(version), NYDUS];
    // The look at all images finds some.
    let images: Vec<_> = (0..images).map(|n| image(LAYERS, n)).collect();
    let (there, arriving) = images.split_at(images.len() / 2);
    for image in there {
        node.store.put_image(image).await?;
    }
    let (tap, mut random) = (Tap::start(&node.lab)?, Random::new()?);
    let count = Arc::<AtomicUsize>::default();
    let counted = count.clone();
    tap.disturb(move |_| {
        let fault = (random.below(SHARE) == 0).then(|| FAULTS[random.below(FAULTS.len())]);
        counted.fetch_add(fault.is_some().into(), Ordering::Relaxed);
        fault
    });
    node.tap = Some(tap);
    node.hooks = DEFAULT_HOOKS;
    node.serve(ALL).await?;
    let mut failed = 0;
    for (n, image) in there.iter().chain(arriving).enumerate() {
        if n >= there.len() {
            node.pull(image).await?;
        }
        failed += node
            .creates(handlers[n % handlers.len()], image.name())
            .await?;
    }
    let tap = node.tap.as_ref().context("no tap")?;
    tap.calm();
    println!(
        "{version:?}: {} faults in {} calls; {failed} tries of {} creations failed",
        count.load(Ordering::Relaxed),
        tap.calls().len(),
        images.len()
    );
    ensure!(
        count.load(Ordering::Relaxed) > images.len(),
        "too few faults"
    );
    let deadline = Instant::now() + HEALED;
    for snapshotter in handlers {
        for image in &images {
            while let Err(e) = node.wait_image(image, snapshotter).await {
                ensure!(Instant::now() < deadline, "{e:#}");
            }
        }
        node.assert_nothing_left(snapshotter).await?;
    }
    let closed = node.lab.log().lines_with("closing plugin");
    ensure!(closed.is_empty(), "{closed:#?}");
    Ok(())
}

impl Node {
    /// Creates a pod with a container, as a kubelet does, and removes it. Returns the number of tries that failed.
    async fn creates(&mut self, handler: &str, image: &str) -> Result<usize> {
        let pod = self.cri.run_pod(handler, &[]).await?;
        for failed in 0..TRIES {
            match self.cri.create_container(&pod, image, &[], &[]).await {
                Ok(_) => {
                    self.cri.remove_pod(&pod).await?;
                    return Ok(failed);
                }
                Err(e) => println!("{image} on {handler}: {e}"),
            }
            tokio::time::sleep(BETWEEN).await;
        }
        anyhow::bail!("{image}: no container after {TRIES} tries")
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_2_1() -> Result<()> {
    at_random(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn on_1_7() -> Result<()> {
    at_random(Version::V1_7).await
}
