//! The first pod of a new node that has its image, without the plugin, and with the startup taint.

use std::time::Duration;

use anyhow::{Result, ensure};
use lab::{Options, Version};
use tokio::time::Instant;

use super::{REMOVED, until_untainted, with_new_node};
use crate::guest_pull::{NYDUS, start_with};
use crate::support::{CRI_LABELS, DEFAULT_HOOKS, Node, PATIENCE, RESOLVED};

/// The number of new nodes that a measurement makes.
const ROUNDS: usize = 5;

/// What a first pod meets.
#[derive(Clone, Copy, Debug, Default)]
struct First {
    /// From the start of the plugin's process to the removal of the taint.
    tainted: Duration,
    /// The start of the sandbox and the creation of the container.
    created: Duration,
    /// Whether all layers below the container have the labels of the guest's pull, or of a remote snapshotter.
    is_labelled: bool,
}

impl Node {
    /// Runs a pod with a container of the node's image.
    async fn first(&mut self, handler: &str) -> Result<(String, First)> {
        let began = Instant::now();
        let name = self.image.name().to_owned();
        let pod = self.cri.run_pod(handler, &[]).await?;
        let container = self.cri.create_container(&pod, &name, &[], &[]).await?;
        let created = began.elapsed();
        let chain = self.store.chain(handler, &self.image).await?;
        let is_labelled = !chain.is_empty()
            && chain
                .iter()
                .all(|snapshot| snapshot.labels.contains_key(CRI_LABELS[0]));
        let first = First {
            created,
            is_labelled,
            ..First::default()
        };
        Ok((container, first))
    }
}

/// The kubelet is ready before the plugin: the pod comes, and then the plugin.
async fn without(version: Version, handler: &str) -> Result<First> {
    let mut node = start_with(version, Options::new(version)).await?;
    node.hooks = DEFAULT_HOOKS;
    let (container, first) = node.first(handler).await?;
    node.serve("").await?;
    node.wait_reconciled(handler).await?;
    if handler == NYDUS {
        // It stays what it is.
        node.assert_unpacked_on_host(&container).await?;
    }
    Ok(first)
}

/// The scheduler binds the pod when the taint is gone.
async fn with(version: Version, handler: &str) -> Result<First> {
    let mut node = start_with(version, Options::new(version)).await?;
    node.hooks = DEFAULT_HOOKS;
    let server = with_new_node().await?;
    let config = node.config(&node.tainted(&server, "watch = \"off\"")?);
    let began = Instant::now();
    let plugin = lab::Plugin::start(&node.lab, &node.program, &config)?;
    node.log = plugin.log().clone();
    node.plugin = Some(plugin);
    until_untainted(&server).await?;
    let tainted = began.elapsed();
    ensure!(!node.log.lines_with(RESOLVED).is_empty());
    let (container, first) = node.first(handler).await?;
    if handler == NYDUS {
        node.assert_guest_pulls(&container).await?;
    }
    node.log.wait_for(REMOVED, PATIENCE).await?;
    Ok(First { tainted, ..first })
}

async fn compare(version: Version, handler: &str) -> Result<()> {
    let (without, with) = (
        without(version, handler).await?,
        with(version, handler).await?,
    );
    println!("{version:?} {handler}: without {without:?}, with {with:?}");
    ensure!(with.is_labelled, "{with:?}");
    ensure!(!without.is_labelled, "{without:?}");
    Ok(())
}

/// The guest pulls the image of a pod that waited for the taint's removal; before, the host's unpack was used.
#[tokio::test(flavor = "multi_thread")]
async fn the_guest_pulls_for_the_first_pod_on_2_1() -> Result<()> {
    compare(Version::V2_1, NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_guest_pulls_for_the_first_pod_on_1_7() -> Result<()> {
    compare(Version::V1_7, NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_first_pod_of_a_local_snapshotter_is_labelled() -> Result<()> {
    compare(Version::V2_1, "erofs").await
}

/// The times, for docs/kubernetes.md.
#[tokio::test(flavor = "multi_thread")]
#[ignore = "a measurement"]
async fn measure() -> Result<()> {
    for (version, handler) in [
        (Version::V2_1, NYDUS),
        (Version::V1_7, NYDUS),
        (Version::V2_1, "erofs"),
    ] {
        let median = |mut times: Vec<Duration>| {
            times.sort_unstable();
            times[times.len() / 2]
        };
        let (mut before, mut after) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            before.push(without(version, handler).await?);
            after.push(with(version, handler).await?);
        }
        let created = |all: &[First]| median(all.iter().map(|first| first.created).collect());
        println!(
            "{version:?} {handler}: pod without the plugin {:?}; taint removed {:?} after the plugin's start, pod {:?}",
            created(&before),
            median(after.iter().map(|first| first.tainted).collect()),
            created(&after),
        );
    }
    Ok(())
}
