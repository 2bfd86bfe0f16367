//! The blobs are missing, and the plugin pulls them from the registry: by digest, and only until they are
//! unpacked. Nothing else on the node changes.

use std::collections::{BTreeMap, BTreeSet};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use containerd_client::services::v1 as api;
use lab::{Labels, Options, PASSWORD, Registry, USER, Version, images, namespaced};

use crate::support::{APP, Node, PROGRAM};

/// Returns a node that has pulled the image from this registry for overlayfs, without the blobs of its layers.
pub(crate) async fn node_without_blobs(version: Version, registry: Registry) -> Result<Node> {
    let mut options = Options::new(version);
    options.discard_unpacked_layers = true;
    let node = Node::start_on(version, options, registry, images::app(APP)?).await?;
    node.store.collect_garbage().await?;
    for layer in &node.image.layers {
        let blob = node.store.content_labels(&layer.digest).await;
        ensure!(blob.is_err(), "{} was not deleted", layer.digest);
    }
    Ok(node)
}

/// Everything that a pull could leave behind: image records, and blobs with their labels.
#[derive(Debug, PartialEq)]
struct Remaining {
    images: BTreeMap<String, String>,
    image_labels: BTreeMap<String, Labels>,
    keeps: BTreeMap<String, BTreeSet<String>>,
}

impl Node {
    /// Runs `ensure` with pulls as the only allowed source.
    fn ensure_with_pull(&self, handler: &str, more: &str) -> Result<Output> {
        let config = self.lab.path("pull.toml");
        let hosts = self.lab.path("hosts");
        let pull =
            format!("[unpack]\nmissing_content = [\"pull\"]\n[pull]\nhosts = {hosts:?}\n{more}");
        std::fs::write(&config, self.config(&pull))?;
        let mut command = Command::new(PROGRAM);
        command.args(["ensure", APP, "--handler", handler, "--output", "json"]);
        command.arg("--config").arg(config);
        command.output().context("running nri-unpack")
    }

    async fn remaining(&self) -> Result<Remaining> {
        let images = self.store.images().await?;
        let mut image_labels = BTreeMap::new();
        for name in images.keys() {
            image_labels.insert(name.clone(), self.store.image_labels(name).await?);
        }
        let request = namespaced(api::ListContentRequest::default());
        let mut listed = self
            .store
            .client
            .content()
            .list(request)
            .await?
            .into_inner();
        let mut keeps = BTreeMap::new();
        while let Some(part) = listed.message().await? {
            for blob in part.info {
                let labels = blob.labels.into_keys();
                let kept = labels.filter(|key| key.starts_with("containerd.io/gc.ref.content"));
                keeps.insert(blob.digest, kept.collect());
            }
        }
        Ok(Remaining {
            images,
            image_labels,
            keeps,
        })
    }
}

fn action(output: &Output) -> Result<serde_json::Value> {
    ensure!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(report["results"][0]["action"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn pulled_blobs_are_removed_after_the_unpack() -> Result<()> {
    let mut node = node_without_blobs(Version::V2_1, Registry::start().await?).await?;
    let before = node.remaining().await?;
    ensure!(action(&node.ensure_with_pull("erofs", "")?)? == "unpacked");
    node.assert_labelled("erofs").await?;
    node.assert_nothing_left("erofs").await?;
    node.store.collect_garbage().await?;
    let after = node.remaining().await?;
    ensure!(before == after, "{before:#?}\n{after:#?}");
    node.assert_labelled("erofs").await?;

    let pod = node.cri.run_pod("erofs", &[]).await?;
    let container = node.cri.create_container(&pod, APP, &[], &[]).await?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn credentials_are_sent_to_a_private_registry() -> Result<()> {
    // The image was pulled for overlayfs while the registry was public; now it requires credentials.
    let node = node_without_blobs(Version::V2_1, Registry::start().await?).await?;
    let registry = Registry::start_private().await?;
    registry.push(&node.image).await?;
    node.lab.use_registry(&registry)?;

    let refused = node.ensure_with_pull("erofs", "")?;
    let printed = String::from_utf8_lossy(&refused.stdout).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(
        printed.contains("pull: ") && printed.contains("401 Unauthorized"),
        "{printed}"
    );
    node.assert_nothing_left("erofs").await?;

    let file = node.lab.path("config.json");
    let auth = STANDARD.encode(format!("{USER}:{PASSWORD}"));
    let host = registry.pull_address();
    std::fs::write(
        &file,
        format!("{{\"auths\": {{\"{host}\": {{\"auth\": \"{auth}\"}}}}}}"),
    )?;
    let pulled = node.ensure_with_pull("erofs", &format!("credentials = {file:?}\n"))?;
    ensure!(action(&pulled)? == "unpacked");
    let printed = String::from_utf8_lossy(&pulled.stderr).into_owned();
    ensure!(
        !printed.contains(PASSWORD) && !printed.contains(&auth),
        "{printed}"
    );
    node.assert_labelled("erofs").await
}

/// If neither source has the layer, the error names a remedy, which helps.
async fn remedy_helps(version: Version, handler: &str, words: &str) -> Result<()> {
    let registry = Registry::start().await?;
    let node = node_without_blobs(version, registry).await?;
    let hosts = node.lab.path("hosts").display().to_string();
    // Without the node's registry configuration the plugin reaches no registry.
    let refused = node.ensure_with_pull(handler, "credentials = \"/nowhere/config.json\"\n")?;
    let printed = String::from_utf8_lossy(&refused.stdout).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    let digest = &node.image.layers[0].digest;
    let remedy = format!("ctr -n k8s.io content fetch --hosts-dir {hosts} {APP}");
    for word in ["layer 1 of 5", digest, words, &remedy] {
        ensure!(printed.contains(word), "{word}: {printed}");
    }

    node.lab
        .ctr(&["content", "fetch", "--hosts-dir", &hosts, APP])
        .await?;
    let ensured = node.command(&["ensure", APP, "--handler", handler, "--output", "json"])?;
    ensure!(action(&ensured)? == "unpacked");
    node.assert_labelled(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_of_a_failed_pull_helps_on_2_1() -> Result<()> {
    remedy_helps(Version::V2_1, "erofs", "/nowhere/config.json").await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_remedy_of_a_failed_pull_helps_on_1_7() -> Result<()> {
    remedy_helps(Version::V1_7, "native", "pull: containerd 1.7").await
}
