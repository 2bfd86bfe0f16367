//! The blobs are gone, as `discard_unpacked_layers` leaves it, and the registry is, too: the layers
//! come from overlayfs, and the result is what an ordinary unpack of the blobs makes.

pub(crate) mod nasty;
pub(crate) mod tree;

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1 as api;
use lab::{Handler, Kind, Layer, Options, Registry, Version, images, namespaced};

use crate::support::{Node, PATIENCE};
use tree::{Difference, Tree};

pub(crate) const NASTY: &str = "registry.test/lab/nasty:1";

/// A node that has pulled the image for overlayfs and kept no blob of its layers; the registry is
/// gone.
pub(crate) async fn discarded(version: Version, handler: &str) -> Result<Node> {
    discarded_with(version, handler, Options::new(version)).await
}

/// The same on a containerd with these options.
pub(crate) async fn discarded_with(
    version: Version,
    handler: &str,
    mut options: Options,
) -> Result<Node> {
    options.discard_unpacked_layers = true;
    options.handlers = vec![Handler::new(handler, handler)];
    let mut node = Node::start_with(version, options).await?;
    node.image = nasty::image(NASTY)?;
    let registry = Registry::start().await?;
    registry.push(&node.image).await?;
    node.lab.use_registry(&registry)?;
    node.cri.pull_image(NASTY).await?;
    drop(registry);
    node.store.collect_garbage().await?;
    for layer in &node.image.layers {
        let blob = node.store.content_labels(&layer.digest).await;
        ensure!(blob.is_err(), "{} is still there", layer.digest);
    }
    Ok(node)
}

/// Runs `ensure` and answers its row.
pub(crate) fn ensured(node: &Node, handler: &str) -> Result<serde_json::Value> {
    let output = node.command(&["ensure", NASTY, "--handler", handler, "--output", "json"])?;
    ensure!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(report["results"][0].clone())
}

/// What an ordinary unpack of the blobs makes of the image, on a node of its own.
async fn ordinary(version: Version, handler: &str) -> Result<Tree> {
    let mut options = Options::new(version);
    options.handlers = vec![Handler::new(handler, handler)];
    let mut node = Node::start_with(version, options).await?;
    node.image = nasty::image(NASTY)?;
    node.store.put_image(&node.image).await?;
    let row = ensured(&node, handler)?;
    ensure!(row["action"] == "unpacked", "{row:#}");
    tree::of(&node, handler).await
}

async fn rebuilt(version: Version, handler: &str) -> Result<()> {
    let mut node = discarded(version, handler).await?;
    let blobs = node.blobs().await?;
    let row = ensured(&node, handler)?;
    ensure!(
        row["state"] == "ready" && row["action"] == "rebuilt" && row["layers_done"] == 5,
        "{row:#}"
    );
    node.assert_labelled(handler).await?;
    for snapshot in node.store.chain(handler, &node.image).await? {
        let from = snapshot.labels.get("nri-unpack/rebuilt-from");
        ensure!(
            from.map(String::as_str) == Some("overlayfs"),
            "{snapshot:#?}"
        );
    }
    node.assert_nothing_rebuilding(handler).await?;

    node.store.collect_garbage().await?;
    ensure!(
        node.blobs().await? == blobs,
        "what was made for it is gone, and nothing else"
    );
    node.assert_labelled(handler).await?;
    ensure!(ensured(&node, handler)?["action"] == "none");

    assert_as_source(&node, handler).await?;
    let rebuilt = tree::of(&node, handler).await?;
    let ordinary = ordinary(version, handler).await?;
    assert_equal(
        "an ordinary unpack",
        &rebuilt,
        &ordinary,
        from_ordinary(handler),
    )?;

    let pod = node.cri.run_pod(handler, &[]).await?;
    let container = node.cri.create_container(&pod, NASTY, &[], &[]).await?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/same").await? == "beyond");
    node.assert_labelled(handler).await
}

/// The image is the same in a handler's snapshotter as in overlayfs.
pub(crate) async fn assert_as_source(node: &Node, handler: &str) -> Result<()> {
    let rebuilt = tree::of(node, handler).await?;
    let source = tree::of(node, "overlayfs").await?;
    assert_equal("overlayfs", &rebuilt, &source, from_source(handler))
}

/// A cause for trees to differ, and in what.
pub(crate) type Cause = (&'static str, fn(&Difference, &Tree) -> bool);

const COPIED: Cause = (
    "native copies its parent for each layer, and directories are of the time they are filled",
    |found, tree| found.field == "time" && is_filled(&found.path, tree),
);

const SPLIT: Cause = (
    "native copies every name of a link or a pipe by itself",
    |found, tree| found.field == "names" && tree[&found.path].content.is_none(),
);

const MADE_UP: Cause = (
    "mkfs.erofs makes directories up that a layer does not list: open to all and of now; those of \
     overlayfs are as in the layer below",
    |found, _| nasty::is_unlisted(&found.path),
);

const EARLY: Cause = (
    "mkfs.erofs keeps a time before 1970, which containerd's own unpack puts at 1970",
    |found, _| found.field == "time" && found.path == Path::new("old"),
);

const FILLED: Cause = (
    "a directory that a layer fills and does not list is of the time at which that happens",
    |found, tree| found.field == "time" && is_filled(&found.path, tree),
);

const OF_ITS_OWN: Cause = (
    "a block file holds a file system, with a directory of its own, and a root of the time at which that \
     is filled",
    |found, _| {
        found.path == Path::new("lost+found")
            || found.field == "time" && found.path.as_os_str().is_empty()
    },
);

/// Causes to differ from overlayfs, where the layers are from.
fn from_source(handler: &str) -> &'static [Cause] {
    match handler {
        "native" => &[COPIED, SPLIT],
        "blockfile" => &[OF_ITS_OWN],
        _ => &[],
    }
}

/// Causes for an ordinary unpack to differ from that of overlayfs.
pub(crate) fn from_overlayfs(snapshotter: &str) -> &'static [Cause] {
    match snapshotter {
        "native" => &[COPIED, SPLIT],
        "erofs" => &[MADE_UP, EARLY],
        "blockfile" => &[OF_ITS_OWN, FILLED],
        _ => &[],
    }
}

/// Causes to differ from an ordinary unpack of the blobs in the same snapshotter.
fn from_ordinary(handler: &str) -> &'static [Cause] {
    match handler {
        "native" => &[COPIED],
        "erofs" => &[MADE_UP, EARLY],
        "blockfile" => &[OF_ITS_OWN, FILLED],
        _ => &[],
    }
}

fn is_filled(directory: &Path, tree: &Tree) -> bool {
    tree.keys().any(|path| path.parent() == Some(directory))
}

/// They differ by these causes, by each of them, and in nothing else.
pub(crate) fn assert_equal(
    what: &str,
    rebuilt: &Tree,
    other: &Tree,
    causes: &[Cause],
) -> Result<()> {
    let mut differences = tree::differences(rebuilt, other);
    for (cause, explains) in causes {
        let before = differences.len();
        differences.retain(|difference| !explains(difference, rebuilt));
        ensure!(
            differences.len() < before,
            "nothing differs because {cause}"
        );
    }
    let told = |d: &Difference| format!("/{} {}: {}", d.path.display(), d.field, d.told);
    let differences: Vec<_> = differences.iter().map(told).collect();
    ensure!(
        differences.is_empty(),
        "not as {what}:\n{}",
        differences.join("\n")
    );
    Ok(())
}

impl Node {
    /// Takes from the manifest what keeps its layers' blobs.
    async fn let_go_of_layers(&self) -> Result<()> {
        let digest = self.image.manifest.digest.clone();
        let labels = self.store.content_labels(&digest).await?;
        let layers = labels.keys().filter(|key| key.contains(".content.l."));
        let paths = layers.map(|key| format!("labels.{key}")).collect();
        let request = api::UpdateRequest {
            info: Some(api::Info {
                digest,
                ..Default::default()
            }),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        let mut content = self.store.client.content();
        content.update(namespaced(request)).await?;
        Ok(())
    }

    /// The digests of all blobs.
    async fn blobs(&self) -> Result<BTreeSet<String>> {
        let request = api::ListContentRequest::default();
        let listed = self.store.client.content().list(namespaced(request)).await;
        let mut listed = listed?.into_inner();
        let mut blobs = BTreeSet::new();
        while let Some(part) = listed.message().await? {
            blobs.extend(part.info.into_iter().map(|info| info.digest));
        }
        Ok(blobs)
    }

    /// Neither lease nor temporary snapshot nor unfinished blob of ours.
    async fn assert_nothing_rebuilding(&self, snapshotter: &str) -> Result<()> {
        self.assert_nothing_left(snapshotter).await?;
        let sources = self.store.snapshots("overlayfs").await?;
        let views: Vec<_> = sources.iter().filter(|s| s.kind == Kind::View).collect();
        ensure!(views.is_empty(), "views left: {views:?}");
        let writes = self.writes().await?;
        ensure!(writes.is_empty(), "unfinished blobs left: {writes:?}");
        Ok(())
    }

    /// The blobs that are being written.
    async fn writes(&self) -> Result<Vec<String>> {
        let request = namespaced(api::ListStatusesRequest::default());
        let listed = self.store.client.content().list_statuses(request).await?;
        let statuses = listed.into_inner().statuses.into_iter();
        Ok(statuses.map(|status| status.r#ref).collect())
    }
}

/// Killed while a layer is being read: nothing is left after the next start, and it is made then.
async fn killed(version: Version, handler: &str) -> Result<()> {
    let mut options = Options::new(version);
    options.discard_unpacked_layers = true;
    let mut node = Node::start_with(version, options).await?;
    // Noise, in layers that take some time to copy.
    node.image = images::large(NASTY, 3, 40 << 20)?;
    node.lab.import(&node.image).await?;
    for layer in &node.image.layers {
        node.store.delete_content(&layer.digest).await?;
    }
    node.serve("").await?;

    let annotation = [("nri-unpack/images", NASTY)];
    let mut cri = node.cri.clone();
    let pod = async {
        // The plugin dies under this hook; containerd lets the pod pass.
        let _ = cri.run_pod(handler, &annotation).await;
    };
    let mut plugin = node.plugin.take().expect("serving");
    let kill = async {
        let writing = async {
            while node.writes().await?.is_empty() {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Ok::<_, anyhow::Error>(())
        };
        let met = tokio::time::timeout(PATIENCE, writing).await;
        plugin.kill();
        met?
    };
    let ((), met) = tokio::join!(pod, kill);
    met?;
    let leases = node.store.leases().await?;
    ensure!(
        leases.keys().any(|id| id.starts_with("nri-unpack")),
        "nothing to take away: {leases:?}"
    );
    let rebuilt = node.store.chain(handler, &node.image).await?.len();
    ensure!(rebuilt < node.image.layers.len(), "too quick to be met");

    let before = node.log.lines_with("removed the leftovers").len();
    plugin.restart()?;
    node.plugin = Some(plugin);
    node.wait_for_lines("removed the leftovers", before + 1)
        .await?;
    node.store.collect_garbage().await?;
    node.assert_nothing_rebuilding(handler).await?;

    ensure!(ensured(&node, handler)?["action"] == "rebuilt");
    node.assert_labelled(handler).await?;
    node.assert_nothing_rebuilding(handler).await
}

/// With `discard_unpacked_layers` an image that has just been pulled still has its blobs, and nothing
/// keeps them: what is being unpacked is not collected.
async fn held(version: Version, handler: &str) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.image = images::large(NASTY, 8, 8 << 20)?;
    node.store.put_image(&node.image).await?;
    // The collection that follows every lease is over.
    node.store.collect_garbage().await?;
    node.let_go_of_layers().await?;
    let handler_named = handler.to_owned();
    let node = Arc::new(node);
    let other = node.clone();
    let ensuring = tokio::task::spawn_blocking(move || ensured(&other, &handler_named));
    let begun = async {
        while node.store.chain(handler, &node.image).await?.is_empty() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        node.store.collect_garbage().await?;
        anyhow::Ok(node.store.chain(handler, &node.image).await?.len())
    };
    let made = tokio::time::timeout(PATIENCE, begun).await??;
    ensure!(made < node.image.layers.len(), "too quick to be met");
    let row = ensuring.await??;
    ensure!(row["action"] == "unpacked", "{row:#}");
    node.store.collect_garbage().await?;
    // The first two are those of the other image on this node, too.
    for layer in &node.image.layers[2..] {
        let blob = node.store.content_labels(&layer.digest).await;
        ensure!(blob.is_err(), "{} is held for longer", layer.digest);
    }
    node.assert_nothing_left(handler).await
}

/// The plugin needs no more memory for a large layer than for a small one.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_needs_no_memory() -> Result<()> {
    /// Much less than the layer, and more than the plugin's buffers.
    const ALLOWED: u64 = 32 << 20;
    const LAYER: usize = 256 << 20;
    let mut node = Node::start(Version::V2_1).await?;
    node.serve("").await?;
    let mut grown = Vec::new();
    for (name, bytes) in [("small", 1 << 10), ("large", LAYER)] {
        let name = format!("registry.test/lab/{name}:1");
        let layer = Layer::new().file("f", 0o644, vec![0x5a; bytes]);
        node.image = lab::Image::builder(&name)
            .command(&["/none"])
            .layer(layer)
            .build();
        node.lab.import(&node.image).await?;
        node.store
            .delete_content(&node.image.layers[0].digest)
            .await?;
        node.cri
            .run_pod("erofs", &[("nri-unpack/images", &name)])
            .await?;
        node.wait_labelled("erofs").await?;
        let chain = node.store.chain("erofs", &node.image).await?;
        let is_rebuilt = |s: &lab::Snapshot| s.labels.contains_key("nri-unpack/rebuilt-from");
        ensure!(chain.iter().all(is_rebuilt), "{chain:#?}");
        grown.push(node.peak_memory()?);
    }
    println!("peak resident memory after a small and a large layer: {grown:?}");
    ensure!(grown[1] < grown[0] + ALLOWED, "{grown:?}");
    Ok(())
}

impl Node {
    /// The most that the plugin has had in memory so far, in bytes.
    pub(crate) fn peak_memory(&self) -> Result<u64> {
        let pid = self.plugin.as_ref().and_then(lab::Plugin::pid);
        let pid = pid.context("the plugin does not run")?;
        let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
        let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kilobytes = peak.and_then(|peak| peak.split_whitespace().next());
        Ok(kilobytes.context("no VmHWM")?.parse::<u64>()? << 10)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_held_for_erofs_on_2_1() -> Result<()> {
    held(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_held_for_native_on_1_7() -> Result<()> {
    held(Version::V1_7, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_for_erofs_on_2_1() -> Result<()> {
    killed(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_for_native_on_1_7() -> Result<()> {
    killed(Version::V1_7, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn for_erofs_on_2_1() -> Result<()> {
    rebuilt(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn for_native_on_2_1() -> Result<()> {
    rebuilt(Version::V2_1, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn for_blockfile_on_2_1() -> Result<()> {
    rebuilt(Version::V2_1, "blockfile").await
}

#[tokio::test(flavor = "multi_thread")]
async fn for_native_on_1_7() -> Result<()> {
    rebuilt(Version::V1_7, "native").await
}
