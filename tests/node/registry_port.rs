//! A registry on a port of its own. containerd does not say the port of what it is pulling, and the layers of an
//! image that is prepared in the pull still name it as containerd's own pull would, as soon as its record
//! is there.

use anyhow::{Result, ensure};
use lab::{Image, Options, Registry, Remote, Version};

use crate::after_pull::layered;
use crate::guest_pull::{NYDUS, start};
use crate::support::{CRI_LABELS, Node, PATIENCE};

/// Enough that the work begins before the pull ends.
const LAYERS: usize = 10;

async fn the_port_is_in_the_labels(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let registry = Registry::start_by_address().await?;
    node.lab.use_registry(&registry)?;
    node.serve("").await?;
    node.log.wait_for("reconcile finished", PATIENCE).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let host = registry.address().to_owned();
    // Nothing tells the port of the first; that of the second is the first's.
    for (path, in_the_pull) in [("lab/first", "127.0.0.1"), ("lab/second", host.as_str())] {
        let image = layered(&registry.image(&format!("{path}:1")), LAYERS);
        registry.push(&image).await?;
        let log = node.log.from_now();
        node.cri.pull_image(image.name()).await?;
        let early = format!(" image={in_the_pull}/{path}@{} ", image.target.digest);
        log.wait_for(&early, PATIENCE).await?;
        node.wait_named_in(NYDUS, &image, 0).await?;
        ensure!(node.state_of(&image, NYDUS).await? == "ready");
        let container = node
            .cri
            .create_container(&pod, image.name(), &[], &[])
            .await?;
        node.assert_guest_pulls_image(&container, &image).await?;
        node.image = image;
    }
    // Made by an earlier version, and called ready by it.
    drop(node.plugin.take());
    let image = node.image.clone();
    let wrong = image.name().replacen(&host, "127.0.0.1", 1);
    for chain in image.chain_ids() {
        let label = format!("{}={wrong}", CRI_LABELS[0]);
        let args = ["snapshots", "--snapshotter", NYDUS, "label", &chain, &label];
        node.lab.ctr(&args).await?;
    }
    ensure!(node.state_of(&image, NYDUS).await? == "foreign");
    node.serve("").await?;
    node.wait_named_in(NYDUS, &image, 0).await?;
    node.assert_nothing_left(NYDUS).await
}

/// Where containerd labels what it extracts, the name is known in the pull.
async fn a_labelled_pull_tells_the_port(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    options.snapshot_annotations = true;
    let mut node = Node::start_with(version, options).await?;
    let registry = Registry::start_by_address().await?;
    node.lab.use_registry(&registry)?;
    node.serve("").await?;
    node.log.wait_for("reconcile finished", PATIENCE).await?;
    let image = layered(&registry.image("lab/first:1"), LAYERS);
    registry.push(&image).await?;
    let log = node.log.from_now();
    node.cri.pull_image(image.name()).await?;
    let early = format!(" image={} snapshotter={NYDUS} state=missing ", image.name());
    log.wait_for(&early, PATIENCE).await?;
    node.wait_named_in(NYDUS, &image, 0).await?;
    let wrong = log.lines_with("image=127.0.0.1/");
    ensure!(wrong.is_empty(), "{wrong:#?}");
    node.assert_nothing_left(NYDUS).await
}

impl Node {
    /// Each layer above those that others share has the image's name, registry and port in it.
    pub(crate) async fn wait_named_in(
        &self,
        snapshotter: &str,
        image: &Image,
        shared: usize,
    ) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let chain = self.store.chain(snapshotter, image).await?;
            let names = chain.iter().map(|s| s.labels.get(CRI_LABELS[0]));
            let right = names.filter(|name| name.is_some_and(|name| name == image.name()));
            if right.count() == image.layers.len() - shared {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "{}: {chain:#?}",
                image.name()
            );
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_in_the_labels_on_2_1() -> Result<()> {
    the_port_is_in_the_labels(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_in_the_labels_on_1_7() -> Result<()> {
    the_port_is_in_the_labels(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_pull_tells_it_on_2_1() -> Result<()> {
    a_labelled_pull_tells_the_port(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_pull_tells_it_on_1_7() -> Result<()> {
    a_labelled_pull_tells_the_port(Version::V1_7).await
}
