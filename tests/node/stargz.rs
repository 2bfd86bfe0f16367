//! A real stargz snapshotter. Images that it can mount lazily are mounted before the first pod, on any registry
//! port. Images that it would have to unpack are left until a pod asks for them.
//!
//! Building the snapshotter takes two minutes, so `make check-stargz` runs these tests, and `make test` does
//! not.

use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{Options, Registry, Remote, Version, images};

use crate::support::{DEFAULT_HOOKS, Node, PATIENCE};

const STARGZ: &str = "stargz";

/// The number of layers that only one image has, on top of the shared layers.
const OWN: usize = 2;
const SHARED: usize = 2;

async fn lazily(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Stargz];
    let registry = Registry::start_by_address().await?;
    let before = images::estargz(&registry.image("lab/before:1"), OWN)?;
    let mut node = Node::start_on(version, options, registry, before).await?;
    // Nothing on the node names the port of this image.
    let other = Registry::start_by_address().await?;
    node.lab.use_registry(&other)?;
    node.hooks = DEFAULT_HOOKS;
    node.serve("").await?;
    node.wait_named_in(STARGZ, &node.image, 0).await?;
    node.wait_lazy(1).await?;

    let pod = node.cri.run_pod(STARGZ, &[]).await?;
    let in_the_pull = images::estargz(&node.registry.image("lab/second:1"), OWN)?;
    let first_of_its_registry = images::estargz(&other.image("lab/third:1"), OWN)?;
    node.registry.push(&in_the_pull).await?;
    other.push(&first_of_its_registry).await?;
    for (n, image) in [in_the_pull, first_of_its_registry].into_iter().enumerate() {
        node.image = image;
        node.cri.pull_image(node.image.name()).await?;
        node.wait_named_in(STARGZ, &node.image, SHARED).await?;
        node.wait_lazy(n + 2).await?;
        ensure!(node.state_of(&node.image, STARGZ).await? == "ready");
        let began = Instant::now();
        let name = node.image.name().to_owned();
        let container = node.cri.create_container(&pod, &name, &[], &[]).await?;
        println!("{version:?}: {name}: created in {:?}", began.elapsed());
        node.cri.start_container(&container).await?;
        let read = node.cri.cat(&container, "/data/1").await?;
        ensure!(read == format!("1 of {name}\n"), "{read}");
    }

    // An image that is no stargz image waits for a pod.
    let plain = images::own_layers(&node.registry.image("lab/plain:1"), OWN)?;
    node.registry.push(&plain).await?;
    let log = node.log.from_now();
    node.cri.pull_image(plain.name()).await?;
    let left = format!("the snapshotter needs its content image={} ", plain.name());
    log.wait_for(&left, PATIENCE).await?;
    ensure!(node.store.chain(STARGZ, &plain).await?.is_empty());
    let container = node
        .cri
        .create_container(&pod, plain.name(), &[], &[])
        .await?;
    node.cri.start_container(&container).await?;
    node.image = plain;
    node.wait_labelled(STARGZ).await?;
    node.wait_lazy(3).await?;
    node.assert_nothing_left(STARGZ).await
}

impl Node {
    /// Waits until the layers of this many images are mounted from a registry.
    async fn wait_lazy(&self, images: usize) -> Result<()> {
        self.wait_lazy_mounts(SHARED + images * OWN).await
    }
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles a stargz snapshotter, which takes two minutes: make check-stargz"]
async fn lazily_on_2_1() -> Result<()> {
    lazily(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "compiles a stargz snapshotter, which takes two minutes: make check-stargz"]
async fn lazily_on_1_7() -> Result<()> {
    lazily(Version::V1_7).await
}
