//! containerd stops and starts again; the plugin is killed during an unpack.

use anyhow::{Context, Result, ensure};
use lab::{Handler, Options, Tap, Version, images};

use crate::support::{LaunchedBy, Node, PATIENCE, RESOLVED, handler};

async fn containerd_killed(version: Version, by: LaunchedBy) -> Result<()> {
    let mut node = Node::serving(version, by).await?;
    let handler = handler(version);
    let before = node.log.lines_with(RESOLVED).len();
    node.lab.kill();
    if by == LaunchedBy::Itself {
        node.log.wait_for("trying again", PATIENCE).await?;
    }
    node.restart_containerd().await?;
    node.wait_for_lines(RESOLVED, before + 1).await?;

    let pod = node.cri.run_pod(handler, &[]).await?;
    node.cri
        .create_container(&pod, node.image.name(), &[], &[])
        .await?;
    node.wait_labelled(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_reconnects_to_containerd_2_1() -> Result<()> {
    containerd_killed(Version::V2_1, LaunchedBy::Itself).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_reconnects_to_containerd_1_7() -> Result<()> {
    containerd_killed(Version::V1_7, LaunchedBy::Itself).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_2_1_launches_the_plugin_again() -> Result<()> {
    containerd_killed(Version::V2_1, LaunchedBy::Containerd).await
}

/// containerd restarts with another snapshotter for a handler: the snapshotter gets the images that it should
/// have. After SIGHUP the handler uses overlayfs.
async fn a_changed_snapshotter_gets_images(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    // This handler makes containerd start the snapshotter.
    options.handlers.push(Handler::new("other", "blockfile"));
    let mut node = Node::start_with(version, options).await?;
    node.serve("[snapshotters.blockfile]\neager = \"all\"\n")
        .await?;
    let log = node.log.from_now();
    let config = std::fs::read_to_string(node.lab.config())?;
    let (before, after) = config
        .split_once("runtimes.native]")
        .context("no handler native")?;
    let after = after.replacen("\"native\"", "\"blockfile\"", 1);
    std::fs::write(
        node.lab.config(),
        format!("{before}runtimes.native]{after}"),
    )?;
    node.restart_containerd().await?;
    let resolved = "handler resolved handler=native snapshotter=blockfile";
    log.wait_for(resolved, PATIENCE).await?;
    node.wait_labelled("blockfile").await?;

    let log = node.log.from_now();
    let plugin = node.plugin.as_ref().context("serving")?;
    plugin.reload(&node.config("[handlers]\nnative = \"overlayfs\"\n"))?;
    let resolved = "handler resolved handler=native snapshotter=overlayfs";
    log.wait_for(resolved, PATIENCE).await?;
    log.wait_for("reconcile finished", PATIENCE).await?;
    let later = images::many_layers("registry.test/lab/later:1", 3)?;
    node.lab.import(&later).await?;
    let pod = node
        .cri
        .run_pod("native", &[("nri-unpack/images", later.name())])
        .await?;
    node.cri.remove_pod(&pod).await?;
    // The plugin does not touch the default snapshotter.
    let chain = node.store.chain("overlayfs", &later).await?;
    ensure!(
        chain.iter().all(|s| !s
            .labels
            .contains_key("containerd.io/snapshot/cri.image-ref")),
        "{chain:#?}"
    );
    node.assert_nothing_left("blockfile").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_snapshotter_gets_images_on_2_1() -> Result<()> {
    a_changed_snapshotter_gets_images(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_snapshotter_gets_images_on_1_7() -> Result<()> {
    a_changed_snapshotter_gets_images(Version::V1_7).await
}

/// The plugin is killed while it holds a lease and a half unpacked layer, whose commit is in progress.
async fn a_kill_leaves_nothing(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.image = images::many_layers("registry.test/lab/many:1", 12)?;
    node.store.put_image(&node.image).await?;
    let tap = Tap::start(&node.lab)?;
    let third = node.image.chain_ids().swap_remove(2);
    let mut held =
        tap.hold(move |call| call.path.ends_with("/Commit") && call.message.contains(&third));
    node.tap = Some(tap);
    node.serve("").await?;

    let annotation = [("nri-unpack/images", node.image.name())];
    let pod = async {
        // The plugin is killed during this hook; containerd creates the pod.
        let _ = node.cri.clone().run_pod(handler, &annotation).await;
    };
    let mut plugin = node.plugin.take().expect("serving");
    let kill = async {
        let met = tokio::time::timeout(PATIENCE, held.came()).await;
        plugin.kill();
        met?
    };
    let ((), met) = tokio::join!(pod, kill);
    met?;
    drop(held);
    let committed = node.store.chain(handler, &node.image).await?.len();
    ensure!(committed == 2, "{committed} layers");
    let leases = node.store.leases().await?;
    ensure!(
        leases.keys().any(|id| id.starts_with("nri-unpack")),
        "no lease to remove: {leases:?}"
    );

    let before = node.log.lines_with("removed the leftovers").len();
    plugin.restart()?;
    node.plugin = Some(plugin);
    node.wait_for_lines("removed the leftovers", before + 1)
        .await?;
    node.assert_nothing_left(handler).await?;

    let ensured = node.command(&["ensure", node.image.name(), "--handler", handler])?;
    ensure!(ensured.status.success(), "{ensured:?}");
    node.wait_labelled(handler).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_an_unpack_leaves_nothing_on_2_1() -> Result<()> {
    a_kill_leaves_nothing(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_kill_in_an_unpack_leaves_nothing_on_1_7() -> Result<()> {
    a_kill_leaves_nothing(Version::V1_7).await
}
