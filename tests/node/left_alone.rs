//! An excluded image, or a pod with mode `skip`, on a snapshotter that leaves other images to the guest. If
//! both share a layer, containerd unpacks the excluded image on top of an empty snapshot.

use anyhow::{Result, ensure};
use lab::{Image, Version, images};

use crate::guest_pull::{NYDUS, start};
use crate::support::Node;

/// Shares its two lowest layers with [`Node::image`].
const EXCLUDED: &str = "registry.test/lab/excluded:1";

/// An excluded image that shares no layer with another image.
const ALONE: &str = "registry.test/lab/alone:1";

const EXCLUDE: &str = "[snapshotters.nydus]\nexclude = [\"*/excluded:*\", \"*/alone:*\"]\n";

pub(crate) const SKIP: (&str, &str) = ("nri-unpack/mode", "skip");

/// A key of the table `hooks`: the annotation counts in the namespace of the pods.
pub(crate) const MAY_SKIP: &str = "skip_namespaces = [\"lab\"]\n";

const MOVED: &str = "container moved onto a private chain";

/// The prefix of the keys of the plugin's private chains.
const PRIVATE: &str = "nri-unpack-private-";

impl Node {
    async fn push_and_pull(&mut self, image: &Image) -> Result<()> {
        self.registry.push(image).await?;
        self.cri.pull_image(image.name()).await?;
        Ok(())
    }

    /// Checks that the container reads the file of its image's lowest layer.
    async fn assert_reads_own_file(&mut self, container: &str, image: &str) -> Result<()> {
        self.cri.start_container(container).await?;
        let read = self.cri.cat(container, "/data/0").await?;
        ensure!(read == format!("0 of {image}\n"), "{read}");
        Ok(())
    }

    async fn private_layers(&self) -> Result<usize> {
        let snapshots = self.store.snapshots(NYDUS).await?;
        let private = snapshots.iter().filter(|s| s.key.starts_with(PRIVATE));
        Ok(private.count())
    }
}

/// Containers of an excluded image, and of a pod with mode `skip`, are created on a private chain that the host
/// has unpacked from the lowest layer. A complete chain stays unchanged.
async fn excluded_images_get_a_complete_chain(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve(&format!("{MAY_SKIP}{EXCLUDE}")).await?;
    node.wait_reconciled(NYDUS).await?;
    node.assert_proxied().await?;
    let image = images::own_layers(EXCLUDED, 1)?;
    let alone = {
        let layer = lab::Layer::new().file("only", 0o644, "only\n");
        Image::builder(ALONE)
            .layer(layer)
            .command(&["/none"])
            .build()
    };
    for image in [&image, &alone] {
        node.push_and_pull(image).await?;
    }

    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let skipping = node.cri.run_pod(NYDUS, &[SKIP]).await?;
    for (n, pod) in [(1, &pod), (2, &skipping), (3, &pod)] {
        let created = node.cri.create_container(pod, EXCLUDED, &[], &[]).await;
        let container = created?;
        node.assert_reads_own_file(&container, EXCLUDED).await?;
        ensure!(node.log.lines_with(MOVED).len() == n, "{n}");
        ensure!(
            node.private_layers().await? == 3,
            "not exactly one private chain"
        );
    }
    ensure!(node.state_of(&image, NYDUS).await? == "mixed");
    let moved = node.log.lines_with(MOVED);
    ensure!(
        moved[0].contains("state=mixed") && moved[0].contains("the guest does not pull"),
        "{moved:?}"
    );

    let exclude = "exclude = [\"*/excluded:*\"]";
    let (_, printed) = node.command_with_table(exclude, &["doctor", "--output", "json"])?;
    ensure!(printed.contains("excluded-mixed"), "{printed}");

    // A complete chain is allowed, and stays as containerd made it.
    for pod in [&pod, &skipping] {
        node.cri.create_container(pod, ALONE, &[], &[]).await?;
    }
    ensure!(
        node.log.lines_with(MOVED).len() == 3,
        "a container on a complete chain was moved"
    );
    let chain = node.store.chain(NYDUS, &alone).await?;
    ensure!(chain.len() == 1 && chain[0].labels.is_empty(), "{chain:#?}");
    node.store.collect_garbage().await?;
    node.assert_nothing_left(NYDUS).await?;
    ensure!(node.private_layers().await? == 3);

    // Removing the image removes its private chain.
    for pod in [&pod, &skipping] {
        node.cri.remove_pod(pod).await?;
    }
    node.cri.remove_image(EXCLUDED).await?;
    node.store.collect_garbage().await?;
    ensure!(node.private_layers().await? == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_images_get_a_complete_chain_on_2_1() -> Result<()> {
    excluded_images_get_a_complete_chain(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_images_get_a_complete_chain_on_1_7() -> Result<()> {
    excluded_images_get_a_complete_chain(Version::V1_7).await
}
