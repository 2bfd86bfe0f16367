//! A registry on a non-default port. containerd does not report the port of the image that it pulls. As soon as
//! the image record exists, the labels of layers that were unpacked during the pull name the port, as with
//! containerd's own labelled pull.

use anyhow::{Result, ensure};
use lab::{Image, Options, Registry, Remote, Version};

use crate::after_pull::layered;
use crate::guest_pull::{NYDUS, start};
use crate::support::{CRI_LABELS, Node, PATIENCE};

/// Enough layers for the unpack to begin before the pull ends.
const LAYERS: usize = 10;

async fn port_in_labels(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let registry = Registry::start_by_address().await?;
    node.lab.use_registry(&registry)?;
    node.serve("").await?;
    node.wait_reconciled(NYDUS).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let host = registry.address().to_owned();
    // Nothing names the port of the first image; for the second image the plugin uses the port of the first.
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
    // An earlier version unpacked it, and reported it as ready.
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

/// If containerd labels the snapshots of its pull, the name is known during the pull.
async fn port_of_a_labelled_pull(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    options.snapshot_annotations = true;
    let mut node = Node::start_with(version, options).await?;
    let registry = Registry::start_by_address().await?;
    node.lab.use_registry(&registry)?;
    node.serve("").await?;
    node.wait_reconciled(NYDUS).await?;
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
    /// Waits until the labels of each layer that is not shared have the image's name, with registry and port.
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
async fn labels_name_the_port_on_2_1() -> Result<()> {
    port_in_labels(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_name_the_port_on_1_7() -> Result<()> {
    port_in_labels(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_pull_names_the_port_on_2_1() -> Result<()> {
    port_of_a_labelled_pull(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_labelled_pull_names_the_port_on_1_7() -> Result<()> {
    port_of_a_labelled_pull(Version::V1_7).await
}
