//! A later version on the store of an earlier one, and back, by data: `tests/releases` has what each release leaves. And
//! the plugin is replaced under a stream of pods.

mod replaced;

use anyhow::{Context, Result, ensure};
use lab::{Image, Labels, Metadata, Version};
use serde::Deserialize;

use crate::foreknowledge::tag;
use crate::support::{DEFAULT_HOOKS, Node};

/// What version 0.1.0 leaves.
const STORE: &str = include_str!("../releases/0.1.0/store.toml");

/// What all anchors begin with.
const ANCHOR: &str = "containerd.io/gc.ref.snapshot.";

/// The snapshotter with the store of the earlier version: both containerds have it.
const NATIVE: &str = "native";

/// What a release leaves in containerd's store.
#[derive(Debug, Deserialize)]
struct Release {
    names: Names,
    killed: Killed,
    layer: Labels,
    used: Labels,
    unused: Labels,
}

/// The beginnings of its names.
#[derive(Debug, Deserialize)]
struct Names {
    leases: Vec<String>,
    snapshots: Vec<String>,
    labels: Vec<String>,
    anchors: Vec<String>,
}

/// The remains of a killed process.
#[derive(Debug, Deserialize)]
struct Killed {
    lease: String,
    labels: Labels,
    extraction: String,
    view: String,
    probe: String,
}

fn release() -> Result<Release> {
    Ok(toml::from_str(STORE)?)
}

impl Names {
    fn have(&self, word: &str) -> bool {
        if let Some(anchor) = word.strip_prefix(ANCHOR) {
            let suffix = anchor.find('/').map(|at| &anchor[at..]);
            return self.anchors.iter().any(|it| Some(it.as_str()) == suffix);
        }
        let names = [&self.leases, &self.snapshots, &self.labels];
        let begins = |name: &String| word.starts_with(name.trim_end());
        names.into_iter().flatten().any(begins)
    }
}

/// Checks that 0.1.0 knows each name of this program in a store.
pub(crate) fn assert_known(store: &Metadata) -> Result<()> {
    let names = release()?.names;
    for line in store.lines() {
        let words = line.split([' ', '"', ',', '{', '}', '[', ']']);
        for word in words.filter(|word| word.contains("nri-unpack")) {
            let word = word.strip_suffix(':').unwrap_or(word);
            ensure!(names.have(word), "0.1.0 does not know {word} in {line}");
        }
    }
    Ok(())
}

/// Fills in the values of one layer of an image.
fn filled(labels: &Labels, image: &Image, layer: usize) -> Labels {
    let digests: Vec<_> = image.layers.iter().map(|l| l.digest.as_str()).collect();
    let fill = |text: &String| {
        // The longer words first.
        text.replace("SNAPSHOTTER", NATIVE)
            .replace("MANIFEST", &image.manifest.digest)
            .replace("LAYERS", &digests[layer..].join(","))
            .replace("LAYER", digests[layer])
            .replace("IMAGE", image.name())
            .replace("CHAIN", &image.layers[layer].chain_id)
            .replace("TOP", image.top())
    };
    labels.iter().map(|(k, v)| (fill(k), fill(v))).collect()
}

impl Node {
    /// Lays an image as the earlier version has left it: the content is from containerd's own unpack for a container.
    async fn lay_image(&mut self, image: &Image, layer: &Labels, config: &Labels) -> Result<()> {
        self.registry.push(image).await?;
        self.cri.pull_image(image.name()).await?;
        let pod = self.cri.run_pod(NATIVE, &[]).await?;
        self.cri
            .create_container(&pod, image.name(), &[], &[])
            .await?;
        self.cri.remove_pod(&pod).await?;
        for (i, of) in image.layers.iter().enumerate() {
            let labels = filled(layer, image, i);
            self.store
                .label_snapshot(NATIVE, &of.chain_id, &labels)
                .await?;
        }
        let labels = filled(config, image, 0);
        self.store
            .label_content(&image.config.digest, &labels)
            .await?;
        Ok(())
    }

    /// Lays private chains, and the remains of a killed process.
    async fn lay_rest(&self, image: &Image, killed: &Killed) -> Result<()> {
        let store = &self.store;
        store.put_lease(&killed.lease, &killed.labels).await?;
        let top = image.top();
        for name in [
            format!("nri-unpack-private-{top}"),
            format!("nri-unpack-private-host-{top}"),
        ] {
            let none = Labels::new();
            store
                .put_committed(&killed.lease, NATIVE, &name, "", &none)
                .await?;
        }
        let fill = |text: &String| text.replace("CHAIN", top);
        store
            .put_active(&killed.lease, NATIVE, &fill(&killed.extraction), top)
            .await?;
        store
            .put_view(&killed.lease, NATIVE, &fill(&killed.view), top)
            .await?;
        let none = Labels::new();
        store
            .put_committed(&killed.lease, NATIVE, &killed.probe, "", &none)
            .await?;
        Ok(())
    }
}

/// A store that 0.1.0 has left is understood: images are ready as they are, what containers have used is known, the
/// remains of a killed process are removed, and `purge` finds everything.
async fn understands_0_1_0(version: Version) -> Result<()> {
    let release = release()?;
    let mut node = Node::start(version).await?;
    let (used, unused) = (tag("older/used", 1), tag("older/unused", 1));
    node.lay_image(&used, &release.layer, &release.used).await?;
    node.lay_image(&unused, &release.layer, &release.unused)
        .await?;
    node.lay_rest(&unused, &release.killed).await?;
    assert_known(&node.store.metadata().await?)?;

    node.hooks = DEFAULT_HOOKS;
    node.serve("").await?;
    node.wait_reconciled(NATIVE).await?;
    for image in [&used, &unused] {
        ensure!(node.ensure_ready(image, NATIVE)? == "none");
    }
    for (image, ahead) in [(&used, Some("used-repository")), (&unused, None)] {
        let row = node.row(&["check", image.name(), "--snapshotter", NATIVE])?;
        ensure!(row["ahead"].as_str() == ahead, "{row:#}");
    }
    node.assert_nothing_left(NATIVE).await?;
    let left = node.store.snapshots(NATIVE).await?;
    let is_temporary = |key: &str| key.starts_with("nri-unpack-") && !key.contains("private");
    let left: Vec<_> = left.iter().filter(|s| is_temporary(&s.key)).collect();
    ensure!(left.is_empty(), "{left:#?}");

    let mut plugin = node.plugin.take().context("serving")?;
    ensure!(plugin.stop().await?.success());
    let purged = node.command(&["purge"])?;
    ensure!(purged.status.success(), "{purged:?}");
    let lines = node.store.metadata().await?.lines();
    let ours: Vec<_> = lines.iter().filter(|l| l.contains("nri-unpack")).collect();
    ensure!(ours.is_empty(), "{ours:#?}");
    ensure!(node.store.chain(NATIVE, &used).await?.len() == used.layers.len());
    ensure!(node.store.chain(NATIVE, &unused).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_0_1_0_is_understood_on_2_1() -> Result<()> {
    understands_0_1_0(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_of_0_1_0_is_understood_on_1_7() -> Result<()> {
    understands_0_1_0(Version::V1_7).await
}
