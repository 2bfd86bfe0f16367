//! Images that share layers share chain ids: each layer's snapshot carries the labels of one of them.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Options, Remote, Version, images};

use crate::support::{CRI_LABELS, Node, handler};

impl Node {
    /// The top layer's labels name this image.
    async fn assert_top(&self, image: &Image, snapshotter: &str) -> Result<()> {
        let chain = self.store.chain(snapshotter, image).await?;
        let top = chain.last().map(|top| &top.labels);
        let name = top.and_then(|labels| labels.get(CRI_LABELS[0]));
        ensure!(name.map(String::as_str) == Some(image.name()), "{top:#?}");
        Ok(())
    }
}

/// A base image, and one that is built from it, in both orders.
async fn base_and_child(version: Version) -> Result<()> {
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
            node.assert_top(image, snapshotter).await?;
        }
        node.assert_nothing_left(snapshotter).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn base_and_child_on_2_1() -> Result<()> {
    base_and_child(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn base_and_child_on_1_7() -> Result<()> {
    base_and_child(Version::V1_7).await
}

/// Two images over one base on nydus, one left to the guest and one unpacked on the host, in both
/// orders: both end left to the guest.
async fn proxied_and_poisoned(version: Version) -> Result<()> {
    for (poisoned_first, state) in [(true, "unlabelled"), (false, "mixed")] {
        let mut options = Options::new(version);
        options.remotes = vec![Remote::Nydus];
        let mut node = Node::start_with(version, options).await?;
        let image = |name: &str| {
            let common = Layer::new().file("common", 0o644, "common\n");
            let own = Layer::new().file("own", 0o644, name);
            let image = Image::builder(format!("registry.test/shared/{name}:1"));
            image.layer(common).layer(own).command(&["/own"]).build()
        };
        let (proxied, poisoned) = (image("proxied"), image("poisoned"));
        for image in [&proxied, &poisoned] {
            node.lab.import(image).await?;
        }
        if !poisoned_first {
            node.ensure_ready(&proxied, "nydus")?;
        }
        let pod = node.cri.run_pod("nydus", &[]).await?;
        let container = node
            .cri
            .create_container(&pod, poisoned.name(), &[], &[])
            .await?;
        if poisoned_first {
            node.ensure_ready(&proxied, "nydus")?;
        }
        let now = node.state_of(&poisoned, "nydus").await?;
        ensure!(now == state, "poisoned first: {poisoned_first}: {now}");
        node.cri.remove_container(&container).await?;
        node.ensure_ready(&poisoned, "nydus")?;
        for image in [&proxied, &poisoned] {
            ensure!(
                node.state_of(image, "nydus").await? == "ready",
                "{}",
                image.name()
            );
            node.assert_top(image, "nydus").await?;
            let created = node.cri.create_container(&pod, image.name(), &[], &[]);
            let container = created.await?;
            node.assert_guest_pulls_image(&container, image).await?;
        }
        node.assert_nothing_left("nydus").await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn proxied_and_poisoned_on_2_1() -> Result<()> {
    proxied_and_poisoned(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn proxied_and_poisoned_on_1_7() -> Result<()> {
    proxied_and_poisoned(Version::V1_7).await
}
