//! Which images get which labels is the configuration's to say: what it leaves out is not touched,
//! what it adds is there.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::{Kind, Labels, Snapshot, Version};

use crate::support::{CRI_LABELS, Node, PROGRAM, handler};

/// A team's label, and one for a snapshotter, which gets to see only those that begin so.
const EXTRA: &str = r#"
extra_labels = { "example.com/source" = "{image-ref} {layer-digest}", "containerd.io/snapshot/example" = "{manifest-digest} {diff-id} {chain-id}" }
"#;

impl Node {
    /// Runs a command with this table for all snapshotters; answers its exit status and its output.
    pub(crate) fn under(&self, policy: &str, arguments: &[&str]) -> Result<(Option<i32>, String)> {
        let config = self.lab.path("policy.toml");
        let more = format!("[snapshotters.default]\n{policy}\n");
        std::fs::write(&config, self.config(&more))?;
        let mut command = Command::new(PROGRAM);
        let output = command
            .args(arguments)
            .arg("--config")
            .arg(config)
            .output()?;
        let said = [&output.stdout[..], &output.stderr[..]].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        Ok((output.status.code(), said))
    }

    async fn layers(&self, snapshotter: &str) -> Result<Vec<Snapshot>> {
        Ok(self.store.chain(snapshotter, &self.image).await?)
    }
}

/// The labels that [`EXTRA`] is for each layer, bottom first.
fn extra(node: &Node) -> Vec<Labels> {
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

/// Unpacked without the label, then with: unlabelled, relabelled, ready.
async fn extra_labels(version: Version) -> Result<()> {
    let node = Node::start(version).await?;
    let (handler, image) = (handler(version), node.image.name());
    let at = ["--handler", handler];
    let [check, make] = ["check", "ensure"].map(|command| [&[command, image][..], &at].concat());

    // Only what is added, and the chain id.
    let none = format!("labels = \"none\"\n{EXTRA}");
    let (code, said) = node.under(&none, &make)?;
    ensure!(code == Some(0) && said.contains("unpacked"), "{said}");
    for (layer, mut expected) in node.layers(handler).await?.iter().zip(extra(&node)) {
        expected.insert("containerd.io/snapshot.ref".to_owned(), layer.key.clone());
        ensure!(layer.labels == expected, "{layer:#?}");
    }

    // The `cri.*` labels are lacking now, and then the added ones stay beside them.
    let (code, said) = node.under("", &check)?;
    ensure!(code == Some(1) && said.contains("unlabelled"), "{said}");
    let (code, said) = node.under(EXTRA, &make)?;
    ensure!(code == Some(0) && said.contains("relabelled"), "{said}");
    node.assert_labelled(handler).await?;
    for (layer, expected) in node.layers(handler).await?.iter().zip(extra(&node)) {
        for (key, value) in expected {
            ensure!(layer.labels.get(&key) == Some(&value), "{layer:#?}");
        }
    }

    // Another label is asked for: its absence shows, and is repaired; ignored, it does not.
    let more = "extra_labels = { a = \"b\" }";
    let ignored = format!("{more}\nunlabelled = \"ignore\"");
    let (code, said) = node.under(&ignored, &check)?;
    ensure!(code == Some(0), "{said}");
    let (code, said) = node.under(more, &check)?;
    ensure!(code == Some(1) && said.contains("unlabelled"), "{said}");
    let (code, said) = node.under(more, &make)?;
    ensure!(code == Some(0) && said.contains("relabelled"), "{said}");
    let (code, said) = node.under(more, &check)?;
    ensure!(code == Some(0), "{said}");

    // containerd would refuse a longer one, and the layer with it.
    let long = format!(
        "extra_labels = {{ a = \"{}{{chain-id}}\" }}",
        "x".repeat(4050)
    );
    let (code, said) = node.under(&long, &[&make[..], &["-v"]].concat())?;
    ensure!(code == Some(0), "{said}");
    ensure!(
        said.contains("label of extra_labels omitted") && said.contains("label=a"),
        "{said}"
    );
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn extra_labels_on_2_1() -> Result<()> {
    extra_labels(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn extra_labels_on_1_7() -> Result<()> {
    extra_labels(Version::V1_7).await
}

/// What could be written to: the snapshotter's layers, the image's blobs, the leases.
async fn what_is_there(node: &Node, snapshotter: &str) -> Result<String> {
    let snapshots = node.store.snapshots(snapshotter).await?.into_iter();
    let layers: Vec<_> = snapshots.filter(|s| s.kind == Kind::Committed).collect();
    let mut blobs = Vec::new();
    for blob in &node.image.blobs {
        blobs.push(node.store.content_labels(&blob.digest).await?);
    }
    let leases = node.store.leases().await?;
    Ok(format!("{layers:#?}\n{blobs:#?}\n{leases:#?}"))
}

/// An excluded image is unpacked by containerd's own fallback and stays as that left it, under each of its names; the
/// next image is labelled.
async fn left_out(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let (handler, image) = (handler(version), node.image.name().to_owned());
    let pod = node.cri.run_pod(handler, &[]).await?;
    node.cri.create_container(&pod, &image, &[], &[]).await?;
    let before = what_is_there(&node, handler).await?;
    let layers = node.layers(handler).await?;
    ensure!(
        layers.len() == 5 && layers.iter().all(|layer| layer.labels.is_empty()),
        "{layers:#?}"
    );

    // Rejected, if it were any of our business.
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
    let after = what_is_there(&node, handler).await?;
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

/// The command line follows the same policy.
#[tokio::test(flavor = "multi_thread")]
async fn left_out_by_command() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let name = node.image.name().to_owned();
    let exclude = "exclude = [\"*/app:*\"]";
    let at = ["--handler", "erofs"];
    let named = |command| [&[command, name.as_str()][..], &at].concat();
    let (code, said) = node.under(exclude, &named("ensure"))?;
    ensure!(code == Some(1), "{said}");
    ensure!(
        said.contains("missing: ") && said.contains("is excluded from erofs"),
        "{said}"
    );
    let (code, said) = node.under(exclude, &named("check"))?;
    ensure!(
        code == Some(1) && said.contains("excluded by the configuration"),
        "{said}"
    );
    let (_, said) = node.under(exclude, &[&["check"][..], &at].concat())?;
    ensure!(!said.contains("lab/app"), "not asked for by name: {said}");
    ensure!(node.layers("erofs").await?.is_empty());

    // As containerd leaves it, it is as it should be.
    let pod = node.cri.run_pod("erofs", &[]).await?;
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    let before = what_is_there(&node, "erofs").await?;
    for command in ["ensure", "check"] {
        let (code, said) = node.under(exclude, &named(command))?;
        ensure!(code == Some(0) && said.contains("ready"), "{said}");
    }
    let after = what_is_there(&node, "erofs").await?;
    ensure!(before == after, "{before}\n{after}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn left_out_on_2_1() -> Result<()> {
    left_out(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn left_out_on_1_7() -> Result<()> {
    left_out(Version::V1_7).await
}
