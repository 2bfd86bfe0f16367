//! A pull for a runtime handler, as a kubelet with the feature gate `RuntimeClassInImageCriApi` asks for: containerd
//! unpacks in the handler's snapshotter, and the plugin does nothing twice. containerd 2.1 reads the handler from an
//! annotation of the sandbox; from 2.2.2 on it reads the field that the kubelet sets.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use lab::{Call, Options, Remote, Tap, Version};

use crate::bound::own_image;
use crate::doctor::has;
use crate::doctor_remedies::PULL_HANDLER;
use crate::guest_pull::NYDUS;
use crate::support::{CRI_LABELS, Node, PATIENCE, handler};

/// Calls that make, change or remove snapshots.
const WRITES: [&str; 6] = [
    "Snapshots/Prepare",
    "Snapshots/View",
    "Snapshots/Commit",
    "Snapshots/Update",
    "Snapshots/Remove",
    "Diff/Apply",
];

/// The time without a call after which the plugin has done what it does after an event.
const QUIET: Duration = Duration::from_millis(500);

fn writes(calls: &[Call]) -> Vec<&Call> {
    let writes = |call: &&Call| WRITES.iter().any(|write| call.path.ends_with(write));
    calls.iter().filter(writes).collect()
}

/// Returns the options of a containerd that pulls for this handler and labels snapshots.
fn options(version: Version, handler: &str) -> Options {
    let mut options = Options::new(version);
    options.pull_by_handler = true;
    options.snapshot_annotations = true;
    if handler == NYDUS {
        options.remotes = vec![Remote::Nydus];
    }
    options
}

impl Node {
    async fn labelled_layers(&self, handler: &str, image: &lab::Image) -> Result<usize> {
        let chain = self.store.chain(handler, image).await?;
        let is_labelled =
            |labels: &lab::Labels| CRI_LABELS.iter().all(|key| labels.contains_key(*key));
        let labelled = chain
            .iter()
            .filter(|snapshot| is_labelled(&snapshot.labels));
        Ok(labelled.count())
    }
}

/// The pull has unpacked the image with its labels: the plugin looks, and writes nothing, also for its container and
/// after a restart.
async fn nothing_is_done_twice(version: Version, handler: &str) -> Result<()> {
    let mut node = Node::start_with(version, options(version, handler)).await?;
    node.tap = Some(Tap::start(&node.lab)?);
    node.serve("").await?;
    node.wait_reconciled(handler).await?;
    let image = own_image("registry.test/lab/for-handler:1");
    node.registry.push(&image).await?;
    let tap = node.tap.as_ref().context("no tap")?;
    let before = tap.quiet(0, QUIET, PATIENCE).await?;
    node.cri.pull_image_for(image.name(), handler).await?;
    ensure!(node.labelled_layers(handler, &image).await? == image.layers.len());
    let pod = node.cri.run_pod(handler, &[]).await?;
    let log = node.log.from_now();
    node.cri
        .create_container(&pod, image.name(), &[], &[])
        .await?;
    let ready = log.lines_with(" verdict=ready hook=CreateContainer ");
    ensure!(ready.len() == 1, "{}", log.text());

    let tap = node.tap.as_ref().context("no tap")?;
    tap.quiet(before, QUIET, PATIENCE).await?;
    let plugin = node.plugin.as_mut().context("no plugin")?;
    plugin.stop().await?;
    plugin.restart()?;
    log.wait_for(
        &format!("reconcile finished snapshotter={handler} "),
        PATIENCE,
    )
    .await?;
    let calls = tap.calls().split_off(before);
    // What it asks the snapshotter at its start is for no image.
    let about: Vec<_> = writes(&calls)
        .into_iter()
        .filter(|call| {
            let mut layers = image.layers.iter();
            call.path.ends_with("Apply")
                || layers.any(|layer| call.message.contains(&layer.chain_id))
        })
        .collect();
    ensure!(about.is_empty(), "{about:#?}");
    ensure!(node.state_of(&image, handler).await? == "ready");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_twice_for_a_guest_on_2_1() -> Result<()> {
    nothing_is_done_twice(Version::V2_1, NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_twice_for_a_guest_on_1_7() -> Result<()> {
    nothing_is_done_twice(Version::V1_7, NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_done_twice_on_2_1() -> Result<()> {
    nothing_is_done_twice(Version::V2_1, handler(Version::V2_1)).await
}

/// containerd 2.1 does not read the field: the image comes for the default snapshotter, and the plugin is needed.
#[tokio::test(flavor = "multi_thread")]
async fn the_field_counts_for_nothing_on_2_1() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::start_with(version, options(version, NYDUS)).await?;
    let image = own_image("registry.test/lab/by-field:1");
    node.registry.push(&image).await?;
    node.cri.pull_image_naming(image.name(), NYDUS).await?;
    ensure!(node.store.chain(NYDUS, &image).await?.is_empty());
    ensure!(node.store.chain("overlayfs", &image).await?.len() == image.layers.len());
    node.serve("").await?;
    node.wait_image(&image, NYDUS).await
}

/// By default containerd 2.1 labels nothing and pulls through its transfer service, which unpacks only for the
/// snapshotters that it is configured for, without labels. `doctor` has the remedy.
async fn needs_labels(unpack_config: &[&str], errors: [Option<&str>; 2]) -> Result<()> {
    const ID: &str = "handler-pull-fails";
    let version = Version::V2_1;
    let mut options = options(version, NYDUS);
    options.snapshot_annotations = false;
    for snapshotter in unpack_config {
        options.extra_config += &format!(
            "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\nplatform = \"linux\"\nsnapshotter = \"{snapshotter}\"\n"
        );
    }
    let mut node = Node::start_with(version, options).await?;
    let (_, found) = node.examine()?;
    let remedy = "disable_snapshot_annotations = false";
    has(&found, ID, "note", remedy)?;
    let handlers = ["erofs", NYDUS];
    let images = handlers.map(|handler| own_image(&format!("registry.test/lab/for-{handler}:1")));
    for ((handler, image), error) in handlers.iter().zip(&images).zip(errors) {
        node.registry.push(image).await?;
        let pulled = node.cri.pull_image_for(image.name(), handler).await;
        let named = found[ID]["found"].as_str().unwrap_or_default();
        ensure!(named.contains(handler) == error.is_some(), "{found:#?}");
        match (pulled, error) {
            (Ok(_), None) => ensure!(node.labelled_layers(handler, image).await? == 0),
            (Err(e), Some(words)) => ensure!(e.message().contains(words), "{handler}: {e}"),
            (pulled, _) => bail!("{handler}: {pulled:?}"),
        }
    }
    let pod = node.cri.run_pod(NYDUS, &[(PULL_HANDLER, NYDUS)]).await?;
    let (_, found) = node.examine()?;
    has(&found, ID, "warning", remedy)?;
    node.cri.remove_pod(&pod).await?;

    let text = std::fs::read_to_string(node.lab.config())?;
    let text = text.replace("disable_snapshot_annotations = true", remedy);
    std::fs::write(node.lab.config(), text)?;
    node.restart_containerd().await?;
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key(ID), "{found:#?}");
    let image = &images[1];
    node.cri.pull_image_for(image.name(), NYDUS).await?;
    ensure!(node.labelled_layers(NYDUS, image).await? == image.layers.len());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transfer_service_has_to_know_the_snapshotter_on_2_1() -> Result<()> {
    let refused = "no unpack platforms defined";
    needs_labels(&[], [Some(refused), Some(refused)]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transfer_service_sets_no_labels_on_2_1() -> Result<()> {
    let refused = "missing CRI reference annotation";
    needs_labels(
        &["overlayfs", "native", "erofs", NYDUS],
        [None, Some(refused)],
    )
    .await
}
