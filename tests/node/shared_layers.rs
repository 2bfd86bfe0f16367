//! Images that share layers share chain IDs: the snapshot of each layer carries the labels of one of the
//! images.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Options, Remote, Version, images};

use crate::support::{CRI_LABELS, Node, handler};

impl Node {
    /// Checks that the labels of the top layer name this image.
    async fn assert_top_names(&self, image: &Image, snapshotter: &str) -> Result<()> {
        let chain = self.store.chain(snapshotter, image).await?;
        let top = chain.last().map(|top| &top.labels);
        let name = top.and_then(|labels| labels.get(CRI_LABELS[0]));
        ensure!(name.map(String::as_str) == Some(image.name()), "{top:#?}");
        Ok(())
    }
}

/// A base image and an image that is built from it are made ready, in both orders.
async fn a_base_and_its_child_become_ready(version: Version) -> Result<()> {
    let snapshotter = handler(version);
    for child_first in [false, true] {
        let node = Node::start(version).await?;
        let base = images::many_layers("registry.test/shared/base:1", 2)?;
        let child = images::many_layers("registry.test/shared/child:1", 4)?;
        ensure!(child.chain_ids().starts_with(&base.chain_ids()));
        for image in [&base, &child] {
            node.store.put_image(image).await?;
        }
        if child_first {
            node.ensure_ready(&child, snapshotter)?;
            ensure!(node.state_of(&base, snapshotter).await? == "foreign");
            node.ensure_ready(&base, snapshotter)?;
        } else {
            node.ensure_ready(&base, snapshotter)?;
            ensure!(node.state_of(&child, snapshotter).await? == "partial");
            node.ensure_ready(&child, snapshotter)?;
        }
        for image in [&base, &child] {
            ensure!(
                node.state_of(image, snapshotter).await? == "ready",
                "{}",
                image.name()
            );
            node.assert_top_names(image, snapshotter).await?;
        }
        node.assert_nothing_left(snapshotter).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_and_its_child_become_ready_on_2_1() -> Result<()> {
    a_base_and_its_child_become_ready(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_base_and_its_child_become_ready_on_1_7() -> Result<()> {
    a_base_and_its_child_become_ready(Version::V1_7).await
}

/// Two images on one base layer on nydus: one is left to the guest, the other is unpacked on the host, in both
/// orders. Afterwards both are left to the guest.
async fn images_on_one_base_end_with_the_guest_pull(version: Version) -> Result<()> {
    for (on_host_first, state) in [(true, "unlabelled"), (false, "mixed")] {
        let mut options = Options::new(version);
        options.remotes = vec![Remote::Nydus];
        let mut node = Node::start_with(version, options).await?;
        let image = |name: &str| {
            let common = Layer::new().file("common", 0o644, "common\n");
            let own = Layer::new().file("own", 0o644, name);
            let image = Image::builder(format!("registry.test/shared/{name}:1"));
            image.layer(common).layer(own).command(&["/own"]).build()
        };
        let (by_guest, on_host) = (image("proxied"), image("poisoned"));
        for image in [&by_guest, &on_host] {
            node.lab.import(image).await?;
        }
        if !on_host_first {
            node.ensure_ready(&by_guest, "nydus")?;
        }
        let pod = node.cri.run_pod("nydus", &[]).await?;
        let container = node
            .cri
            .create_container(&pod, on_host.name(), &[], &[])
            .await?;
        if on_host_first {
            node.ensure_ready(&by_guest, "nydus")?;
        }
        let now = node.state_of(&on_host, "nydus").await?;
        ensure!(now == state, "on the host first: {on_host_first}: {now}");
        node.cri.remove_container(&container).await?;
        node.ensure_ready(&on_host, "nydus")?;
        for image in [&by_guest, &on_host] {
            ensure!(
                node.state_of(image, "nydus").await? == "ready",
                "{}",
                image.name()
            );
            node.assert_top_names(image, "nydus").await?;
            let created = node.cri.create_container(&pod, image.name(), &[], &[]);
            let container = created.await?;
            node.assert_guest_pulls_image(&container, image).await?;
        }
        node.assert_nothing_left("nydus").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn images_on_one_base_end_with_the_guest_pull_on_2_1() -> Result<()> {
    images_on_one_base_end_with_the_guest_pull(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn images_on_one_base_end_with_the_guest_pull_on_1_7() -> Result<()> {
    images_on_one_base_end_with_the_guest_pull(Version::V1_7).await
}
