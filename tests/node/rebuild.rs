//! The blobs are missing, as with `discard_unpacked_layers`, and the registry is down: the plugin rebuilds the
//! layers from overlayfs. The result equals an unpack of the blobs.

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

/// Returns a node that has pulled the image for overlayfs and kept no blob of its layers. The registry is down.
pub(crate) async fn discarded(version: Version, handler: &str) -> Result<Node> {
    discarded_with(version, handler, Options::new(version)).await
}

/// Like [`discarded`], with these options of containerd.
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
        ensure!(blob.is_err(), "{} was not deleted", layer.digest);
    }
    Ok(node)
}

/// Runs `ensure`; returns its row.
pub(crate) fn ensured(node: &Node, handler: &str) -> Result<serde_json::Value> {
    let output = node.command(&["ensure", NASTY, "--handler", handler, "--output", "json"])?;
    ensure!(output.status.success(), "{output:?}");
    let report: serde_json::Value = serde_json::from_slice(&output.stdout)?;
    Ok(report["results"][0].clone())
}

/// Returns the files that an unpack of the blobs creates, on another node.
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

async fn rebuilt_from_overlayfs(version: Version, handler: &str) -> Result<()> {
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
        "`ensure` left blobs behind, or removed other blobs"
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

/// Checks that the image has the same files in the handler's snapshotter as in overlayfs.
pub(crate) async fn assert_as_source(node: &Node, handler: &str) -> Result<()> {
    let rebuilt = tree::of(node, handler).await?;
    let source = tree::of(node, "overlayfs").await?;
    assert_equal("overlayfs", &rebuilt, &source, from_source(handler))
}

/// A reason why trees differ, with the attributes that differ.
pub(crate) type Cause = (&'static str, fn(&Difference, &Tree) -> bool);

const COPIED: Cause = (
    "native copies its parent for each layer: directories get the time of the copy",
    |found, tree| found.field == "time" && is_filled(&found.path, tree),
);

const SPLIT: Cause = (
    "native copies each hard link of a symbolic link or a pipe separately",
    |found, tree| found.field == "names" && tree[&found.path].content.is_none(),
);

const SYNTHETIC: Cause = (
    "mkfs.erofs creates directories that a layer does not list, with mode 0777 and the current time; those of \
     overlayfs are as in the layer below",
    |found, _| nasty::is_unlisted(&found.path),
);

const BEFORE_1970: Cause = (
    "mkfs.erofs keeps a time before 1970, which containerd's own unpack sets to 1970",
    |found, _| found.field == "time" && found.path == Path::new("old"),
);

const FILLED: Cause = (
    "a directory that a layer fills but does not list gets the time of the unpack",
    |found, tree| found.field == "time" && is_filled(&found.path, tree),
);

const LOST_AND_FOUND: Cause = (
    "a block file holds a file system, with a directory lost+found, and a root whose time is that at which it \
     is filled",
    |found, _| {
        found.path == Path::new("lost+found")
            || found.field == "time" && found.path.as_os_str().is_empty()
    },
);

/// Returns the reasons for differences to overlayfs, from which the layers come.
fn from_source(handler: &str) -> &'static [Cause] {
    match handler {
        "native" => &[COPIED, SPLIT],
        "blockfile" => &[LOST_AND_FOUND],
        _ => &[],
    }
}

/// Returns the reasons for differences between an unpack of the blobs and that of overlayfs.
pub(crate) fn from_overlayfs(snapshotter: &str) -> &'static [Cause] {
    match snapshotter {
        "native" => &[COPIED, SPLIT],
        "erofs" => &[SYNTHETIC, BEFORE_1970],
        "blockfile" => &[LOST_AND_FOUND, FILLED],
        _ => &[],
    }
}

/// Returns the reasons for differences to an unpack of the blobs in the same snapshotter.
fn from_ordinary(handler: &str) -> &'static [Cause] {
    match handler {
        "native" => &[COPIED],
        "erofs" => &[SYNTHETIC, BEFORE_1970],
        "blockfile" => &[LOST_AND_FOUND, FILLED],
        _ => &[],
    }
}

fn is_filled(directory: &Path, tree: &Tree) -> bool {
    tree.keys().any(|path| path.parent() == Some(directory))
}

/// Checks that the trees differ for all of these reasons, and for no other reason.
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
            "no difference for this reason: {cause}"
        );
    }
    let describe = |d: &Difference| format!("/{} {}: {}", d.path.display(), d.field, d.values);
    let differences: Vec<_> = differences.iter().map(describe).collect();
    ensure!(
        differences.is_empty(),
        "differs from {what}:\n{}",
        differences.join("\n")
    );
    Ok(())
}

impl Node {
    /// Removes the labels of the manifest that keep the blobs of its layers.
    async fn unlabel_manifest(&self) -> Result<()> {
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

    /// Returns the digests of all blobs.
    pub(crate) async fn blobs(&self) -> Result<BTreeSet<String>> {
        let request = api::ListContentRequest::default();
        let listed = self.store.client.content().list(namespaced(request)).await;
        let mut listed = listed?.into_inner();
        let mut blobs = BTreeSet::new();
        while let Some(part) = listed.message().await? {
            blobs.extend(part.info.into_iter().map(|info| info.digest));
        }
        Ok(blobs)
    }

    /// Checks that no lease, no temporary snapshot and no unfinished blob of the plugin remains.
    pub(crate) async fn assert_nothing_rebuilding(&self, snapshotter: &str) -> Result<()> {
        self.assert_nothing_left(snapshotter).await?;
        let sources = self.store.snapshots("overlayfs").await?;
        let views: Vec<_> = sources.iter().filter(|s| s.kind == Kind::View).collect();
        ensure!(views.is_empty(), "views left: {views:?}");
        let writes = self.unfinished_blobs().await?;
        ensure!(writes.is_empty(), "unfinished blobs left: {writes:?}");
        Ok(())
    }

    /// Returns the blobs that are being written.
    pub(crate) async fn unfinished_blobs(&self) -> Result<Vec<String>> {
        let request = namespaced(api::ListStatusesRequest::default());
        let listed = self.store.client.content().list_statuses(request).await?;
        let statuses = listed.into_inner().statuses.into_iter();
        Ok(statuses.map(|status| status.r#ref).collect())
    }
}

/// The plugin is killed while it reads a layer: its next start removes what it left, and the image is rebuilt.
async fn killed_while_rebuilding(version: Version, handler: &str) -> Result<()> {
    let mut options = Options::new(version);
    options.discard_unpacked_layers = true;
    let mut node = Node::start_with(version, options).await?;
    // Random bytes, in layers that take some time to copy.
    node.image = images::large(NASTY, 3, 40 << 20)?;
    node.lab.import(&node.image).await?;
    for layer in &node.image.layers {
        node.store.delete_content(&layer.digest).await?;
    }
    node.serve("").await?;

    let annotation = [("nri-unpack/images", NASTY)];
    let mut cri = node.cri.clone();
    let pod = async {
        // The plugin is killed during this hook; containerd creates the pod.
        let _ = cri.run_pod(handler, &annotation).await;
    };
    let mut plugin = node.plugin.take().expect("serving");
    let kill = async {
        let writing = async {
            while node.unfinished_blobs().await?.is_empty() {
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
        "no lease to remove: {leases:?}"
    );
    let rebuilt = node.store.chain(handler, &node.image).await?.len();
    ensure!(
        rebuilt < node.image.layers.len(),
        "the rebuild had ended before the kill"
    );

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

/// With `discard_unpacked_layers` a just pulled image still has its blobs, but no label keeps them. Garbage
/// collection does not remove the blobs that the plugin unpacks.
async fn blobs_are_held(version: Version, handler: &str) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.image = images::large(NASTY, 8, 8 << 20)?;
    node.store.put_image(&node.image).await?;
    // The garbage collection after each lease has ended.
    node.store.collect_garbage().await?;
    node.unlabel_manifest().await?;
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
    ensure!(
        made < node.image.layers.len(),
        "the unpack had ended before the check"
    );
    let row = ensuring.await??;
    ensure!(row["action"] == "unpacked", "{row:#}");
    node.store.collect_garbage().await?;
    // The other image on this node has the first two layers, too.
    for layer in &node.image.layers[2..] {
        let blob = node.store.content_labels(&layer.digest).await;
        ensure!(blob.is_err(), "{} is held for longer", layer.digest);
    }
    node.assert_nothing_left(handler).await
}

/// The plugin needs the same memory for a large layer as for a small one.
#[tokio::test(flavor = "multi_thread")]
async fn a_large_layer_needs_no_more_memory() -> Result<()> {
    /// Much less than the layer, and more than the buffers of the plugin.
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
        let annotation = [("nri-unpack/images", name.as_str())];
        let pod = node.cri.run_pod("erofs", &annotation).await?;
        node.wait_labelled("erofs").await?;
        // A pod without a container would have the next image made ready while its blob is there.
        node.cri.create_container(&pod, &name, &[], &[]).await?;
        node.cri.remove_pod(&pod).await?;
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
    /// Returns the peak resident memory of the plugin in bytes.
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
    blobs_are_held(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn blobs_are_held_for_native_on_1_7() -> Result<()> {
    blobs_are_held(Version::V1_7, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_nothing_in_erofs_on_2_1() -> Result<()> {
    killed_while_rebuilding(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_leaves_nothing_in_native_on_1_7() -> Result<()> {
    killed_while_rebuilding(Version::V1_7, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_rebuilt_for_erofs_on_2_1() -> Result<()> {
    rebuilt_from_overlayfs(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_rebuilt_for_native_on_2_1() -> Result<()> {
    rebuilt_from_overlayfs(Version::V2_1, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_rebuilt_for_blockfile_on_2_1() -> Result<()> {
    rebuilt_from_overlayfs(Version::V2_1, "blockfile").await
}

#[tokio::test(flavor = "multi_thread")]
async fn layers_are_rebuilt_for_native_on_1_7() -> Result<()> {
    rebuilt_from_overlayfs(Version::V1_7, "native").await
}
