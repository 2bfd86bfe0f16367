//! The configuration decides which images get which labels: the plugin does not touch excluded images, and sets
//! additional labels.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::{Kind, Labels, Snapshot, Version};

use crate::support::{CRI_LABELS, Node, PROGRAM, handler};

/// An additional label for users, and one for a snapshotter, which gets only the labels with this prefix.
const EXTRA: &str = r#"
extra_labels = { "example.com/source" = "{image-ref} {layer-digest}", "containerd.io/snapshot/example" = "{manifest-digest} {diff-id} {chain-id}" }
"#;

impl Node {
    /// Runs a command with this table for all snapshotters; returns its exit code and its output.
    pub(crate) fn command_with_table(
        &self,
        policy: &str,
        arguments: &[&str],
    ) -> Result<(Option<i32>, String)> {
        let config = self.lab.path("policy.toml");
        let more = format!("[snapshotters.default]\n{policy}\n");
        std::fs::write(&config, self.config(&more))?;
        let mut command = Command::new(PROGRAM);
        let output = command
            .args(arguments)
            .arg("--config")
            .arg(config)
            .output()?;
        let printed = [&output.stdout[..], &output.stderr[..]].concat();
        let printed = String::from_utf8_lossy(&printed).into_owned();
        Ok((output.status.code(), printed))
    }

    async fn layers(&self, snapshotter: &str) -> Result<Vec<Snapshot>> {
        Ok(self.store.chain(snapshotter, &self.image).await?)
    }
}

/// Returns the labels of [`EXTRA`] for each layer, bottom first.
fn expected_labels(node: &Node) -> Vec<Labels> {
    let image = &node.image;
    let label = |key: &str, value: String| (key.to_owned(), value);
    let layers = image.layers.iter().map(|layer| {
        let manifest = &image.manifest.digest;
        Labels::from([
            label(
                "example.com/source",
                format!("{} {}", image.name(), layer.digest),
            ),
            label(
                "containerd.io/snapshot/example",
                format!("{manifest} {} {}", layer.diff_id, layer.chain_id),
            ),
        ])
    });
    layers.collect()
}

/// Unpacked without the label, then with it: unlabelled, relabelled, ready.
async fn extra_labels_are_set(version: Version) -> Result<()> {
    let node = Node::start(version).await?;
    let (handler, image) = (handler(version), node.image.name());
    let at = ["--handler", handler];
    let [check, make] = ["check", "ensure"].map(|command| [&[command, image][..], &at].concat());

    // Only the additional labels and the chain ID.
    let none = format!("labels = \"none\"\n{EXTRA}");
    let (code, printed) = node.command_with_table(&none, &make)?;
    ensure!(code == Some(0) && printed.contains("unpacked"), "{printed}");
    for (layer, mut expected) in node
        .layers(handler)
        .await?
        .iter()
        .zip(expected_labels(&node))
    {
        expected.insert("containerd.io/snapshot.ref".to_owned(), layer.key.clone());
        ensure!(layer.labels == expected, "{layer:#?}");
    }

    // The `cri.*` labels are missing now; after the repair the additional labels are still there.
    let (code, printed) = node.command_with_table("", &check)?;
    ensure!(
        code == Some(1) && printed.contains("unlabelled"),
        "{printed}"
    );
    let (code, printed) = node.command_with_table(EXTRA, &make)?;
    ensure!(
        code == Some(0) && printed.contains("relabelled"),
        "{printed}"
    );
    node.assert_labelled(handler).await?;
    for (layer, expected) in node
        .layers(handler)
        .await?
        .iter()
        .zip(expected_labels(&node))
    {
        for (key, value) in expected {
            ensure!(layer.labels.get(&key) == Some(&value), "{layer:#?}");
        }
    }

    // The configuration asks for another label: if it is missing, the image is unlabelled and is repaired,
    // unless `unlabelled` is "ignore".
    let more = "extra_labels = { a = \"b\" }";
    let ignored = format!("{more}\nunlabelled = \"ignore\"");
    let (code, printed) = node.command_with_table(&ignored, &check)?;
    ensure!(code == Some(0), "{printed}");
    let (code, printed) = node.command_with_table(more, &check)?;
    ensure!(
        code == Some(1) && printed.contains("unlabelled"),
        "{printed}"
    );
    let (code, printed) = node.command_with_table(more, &make)?;
    ensure!(
        code == Some(0) && printed.contains("relabelled"),
        "{printed}"
    );
    let (code, printed) = node.command_with_table(more, &check)?;
    ensure!(code == Some(0), "{printed}");

    // containerd would reject a longer label together with the layer.
    let long = format!(
        "extra_labels = {{ a = \"{}{{chain-id}}\" }}",
        "x".repeat(4050)
    );
    let (code, printed) = node.command_with_table(&long, &[&make[..], &["-v"]].concat())?;
    ensure!(code == Some(0), "{printed}");
    ensure!(
        printed.contains("label of extra_labels omitted") && printed.contains("label=a"),
        "{printed}"
    );
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn extra_labels_are_set_on_2_1() -> Result<()> {
    extra_labels_are_set(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn extra_labels_are_set_on_1_7() -> Result<()> {
    extra_labels_are_set(Version::V1_7).await
}

/// Returns everything that the plugin could change: the layers in the snapshotter, the blobs of the image, the
/// leases.
async fn stored_objects(node: &Node, snapshotter: &str) -> Result<String> {
    let snapshots = node.store.snapshots(snapshotter).await?.into_iter();
    let layers: Vec<_> = snapshots.filter(|s| s.kind == Kind::Committed).collect();
    let mut blobs = Vec::new();
    for blob in &node.image.blobs {
        blobs.push(node.store.content_labels(&blob.digest).await?);
    }
    let leases = node.store.leases().await?;
    Ok(format!("{layers:#?}\n{blobs:#?}\n{leases:#?}"))
}

/// containerd's own fallback unpacks an excluded image, and the plugin does not change it, under any of its
/// names. The next image is labelled.
async fn excluded_images_are_not_changed(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let (handler, image) = (handler(version), node.image.name().to_owned());
    let pod = node.cri.run_pod(handler, &[]).await?;
    node.cri.create_container(&pod, &image, &[], &[]).await?;
    let before = stored_objects(&node, handler).await?;
    let layers = node.layers(handler).await?;
    ensure!(
        layers.len() == 5 && layers.iter().all(|layer| layer.labels.is_empty()),
        "{layers:#?}"
    );

    // The plugin would reject the image if it were not excluded.
    node.serve(
        "on_unready = \"reject\"\n[snapshotters.default]\neager = \"none\"\nexclude = [\"*/app:*\"]\nextra_labels = { a = \"b\" }\n",
    )
    .await?;
    let by_digest = image.replace(":1", &format!("@{}", node.image.target.digest));
    for asked in [&image, &by_digest, &node.image.config.digest.clone()] {
        node.cri.create_container(&pod, asked, &[], &[]).await?;
        let annotations = [("nri-unpack/images", asked.as_str())];
        let pod = node.cri.run_pod(handler, &annotations).await?;
        node.cri.remove_pod(&pod).await?;
    }
    node.wait_for_lines("image of an existing container is left to containerd", 1)
        .await?;
    node.wait_for_lines("pod's image is left to containerd", 3)
        .await?;
    let after = stored_objects(&node, handler).await?;
    ensure!(before == after, "{before}\n{after}");

    let other = lab::images::large("registry.test/lab/other:1", 1, 16)?;
    node.registry.push(&other).await?;
    node.cri.pull_image(other.name()).await?;
    node.cri
        .create_container(&pod, other.name(), &[], &[])
        .await?;
    for layer in node.store.chain(handler, &other).await? {
        for key in CRI_LABELS.iter().chain(&["a"]) {
            ensure!(layer.labels.contains_key(*key), "{layer:#?}");
        }
    }
    Ok(())
}

/// The commands apply the same policy.
#[tokio::test(flavor = "multi_thread")]
async fn commands_skip_excluded_images() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let name = node.image.name().to_owned();
    let exclude = "exclude = [\"*/app:*\"]";
    let at = ["--handler", "erofs"];
    let named = |command| [&[command, name.as_str()][..], &at].concat();
    let (code, printed) = node.command_with_table(exclude, &named("ensure"))?;
    ensure!(code == Some(1), "{printed}");
    ensure!(
        printed.contains("missing: ") && printed.contains("is excluded from erofs"),
        "{printed}"
    );
    let (code, printed) = node.command_with_table(exclude, &named("check"))?;
    ensure!(
        code == Some(1) && printed.contains("excluded by the configuration"),
        "{printed}"
    );
    let (_, printed) = node.command_with_table(exclude, &[&["check"][..], &at].concat())?;
    ensure!(
        !printed.contains("lab/app"),
        "not asked for by name: {printed}"
    );
    ensure!(node.layers("erofs").await?.is_empty());

    // The chain that containerd unpacked is complete.
    let pod = node.cri.run_pod("erofs", &[]).await?;
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    let before = stored_objects(&node, "erofs").await?;
    for command in ["ensure", "check"] {
        let (code, printed) = node.command_with_table(exclude, &named(command))?;
        ensure!(code == Some(0) && printed.contains("ready"), "{printed}");
    }
    let after = stored_objects(&node, "erofs").await?;
    ensure!(before == after, "{before}\n{after}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_images_are_not_changed_on_2_1() -> Result<()> {
    excluded_images_are_not_changed(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn excluded_images_are_not_changed_on_1_7() -> Result<()> {
    excluded_images_are_not_changed(Version::V1_7).await
}
