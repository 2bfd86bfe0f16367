//! A new node and its startup taint, at a stand-in for the API server: the plugin removes the taint when it is ready, and
//! not before.

mod first_pod;

use std::time::Duration;

use anyhow::{Result, bail, ensure};
use k8s_openapi::api::core::v1::{Node as KubernetesNode, NodeSpec, Taint};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use lab::{ApiServer, Mode, Options, PAUSE, Plugin, Remote, Version, images};
use serde_json::Value;
use tokio::time::{Instant, sleep};

use crate::bound::failures::findings;
use crate::bound::{CLASS, NODE, WATCH, own_image, pod};
use crate::guest_pull::{NYDUS, start_with};
use crate::support::{Node, PATIENCE, handler};

/// The key of the taint.
pub(crate) const TAINT: &str = "nri-unpack/starting";

/// The message of its removal.
const REMOVED: &str = "startup taint removed";

/// A request that changes the node.
const PATCH: [&str; 1] = ["PATCH /api/v1/nodes/lab-node"];

/// How long the taint is watched that has to stay.
const STAYS: Duration = Duration::from_secs(1);

pub(crate) fn taint(key: &str, effect: &str) -> Taint {
    Taint {
        key: key.to_owned(),
        effect: effect.to_owned(),
        ..Taint::default()
    }
}

/// Returns a node with these taints, as Kubernetes' own type writes it.
pub(crate) fn kubernetes_node(taints: &[Taint]) -> Result<Value> {
    let node = KubernetesNode {
        metadata: ObjectMeta {
            name: Some(NODE.to_owned()),
            ..ObjectMeta::default()
        },
        spec: Some(NodeSpec {
            taints: Some(taints.to_vec()),
            ..NodeSpec::default()
        }),
        status: None,
    };
    Ok(serde_json::to_value(node)?)
}

/// Returns a server with a new node, whose kubelet has registered it with the taint.
async fn with_new_node() -> Result<ApiServer> {
    let server = ApiServer::start().await?;
    server.put_node(kubernetes_node(&[taint(TAINT, "NoSchedule")])?);
    Ok(server)
}

/// Waits until this node has no taint of this plugin.
pub(crate) async fn until_untainted(server: &ApiServer) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while server
        .taints(NODE)
        .iter()
        .any(|taint| taint["key"] == TAINT)
    {
        ensure!(Instant::now() < deadline, "the taint is there");
        sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

/// Checks that the taint stays, and that the plugin does not even try to remove it.
async fn assert_stays(server: &ApiServer) -> Result<()> {
    sleep(STAYS).await;
    ensure!(!server.taints(NODE).is_empty(), "the taint was removed");
    let requests = server.requests();
    ensure!(
        !requests.iter().any(|request| request.contains("/nodes/")),
        "{requests:#?}"
    );
    Ok(())
}

impl Node {
    /// Returns a configuration with the taint, and with `more` keys of the table.
    fn tainted(&self, server: &ApiServer, more: &str) -> Result<String> {
        let config = self.watching(server)?;
        Ok(format!("{config}startup_taint = \"{TAINT}\"\n{more}\n"))
    }
}

async fn is_removed(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let server = ApiServer::start().await?;
    let foreign = [
        taint("node.kubernetes.io/not-ready", "NoSchedule"),
        taint("nri-unpack/starting-too", "NoExecute"),
    ];
    let valued = Taint {
        value: Some("yes".to_owned()),
        ..taint(TAINT, "NoExecute")
    };
    let [first, second] = foreign.clone();
    let all = [taint(TAINT, "NoSchedule"), first, valued, second];
    server.put_node(kubernetes_node(&all)?);
    let config = node.tainted(&server, "watch = \"off\"")?;
    node.serve(&config).await?;
    node.log.wait_for(REMOVED, PATIENCE).await?;
    let left: Vec<Taint> = server
        .taints(NODE)
        .into_iter()
        .map(serde_json::from_value)
        .collect::<Result<_, _>>()?;
    ensure!(left == foreign, "{left:?}");
    let pause = images::pause(&[PAUSE])?;
    ensure!(node.state_of(&pause, handler(version)).await? == "ready");
    let requests = server.requests();
    ensure!(
        requests.len() == 2 && requests.iter().all(|request| request.contains(NODE)),
        "{requests:#?}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn is_removed_and_foreign_taints_stay_on_2_1() -> Result<()> {
    is_removed(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn is_removed_and_foreign_taints_stay_on_1_7() -> Result<()> {
    is_removed(Version::V1_7).await
}

/// containerd 1.7 sends no list of containers to a plugin that it launches.
async fn is_removed_by_a_launched_plugin(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let server = with_new_node().await?;
    let config = node.tainted(&server, "watch = \"off\"")?;
    node.launch_with(&config).await?;
    until_untainted(&server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn is_removed_by_a_launched_plugin_on_2_1() -> Result<()> {
    is_removed_by_a_launched_plugin(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn is_removed_by_a_launched_plugin_on_1_7() -> Result<()> {
    is_removed_by_a_launched_plugin(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stays_while_containerd_is_away() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let server = with_new_node().await?;
    node.lab.stop().await?;
    let config = node.config(&node.tainted(&server, "watch = \"off\"")?);
    let plugin = Plugin::start(&node.lab, &node.program, &config)?;
    node.log = plugin.log().clone();
    node.plugin = Some(plugin);
    node.log
        .wait_for("trying again until it works", PATIENCE)
        .await?;
    assert_stays(&server).await?;
    node.lab.restart().await?;
    until_untainted(&server).await
}

#[tokio::test(flavor = "multi_thread")]
async fn stays_while_a_snapshotter_is_away() -> Result<()> {
    let mut node = start_with(Version::V2_1, Options::new(Version::V2_1)).await?;
    let server = with_new_node().await?;
    node.lab.remote(Remote::Nydus).kill();
    let config = node.tainted(&server, "watch = \"off\"")?;
    node.serve(&config).await?;
    node.log
        .wait_for("snapshotter does not answer", PATIENCE)
        .await?;
    assert_stays(&server).await?;
    node.lab.remote(Remote::Nydus).restart().await?;
    until_untainted(&server).await?;
    ensure!(node.state_of(&images::pause(&[PAUSE])?, NYDUS).await? == "ready");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn stays_while_a_pinned_image_is_not_ready() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let server = with_new_node().await?;
    let pause = images::pause(&[PAUSE])?;
    for layer in &pause.layers {
        node.store.delete_content(&layer.digest).await?;
    }
    // Otherwise the plugin takes the layers from overlayfs.
    let config = node.tainted(&server, "watch = \"off\"")?
        + "[unpack]\nmin_free = \"0%\"\nmissing_content = []\n";
    node.serve(&config).await?;
    let failed = format!("image cannot be made ready ahead image={PAUSE} snapshotter=erofs");
    let failed = node.log.wait_for(&failed, PATIENCE);
    failed.await?;
    assert_stays(&server).await?;
    node.lab.import(&pause).await?;
    until_untainted(&server).await?;
    ensure!(node.state_of(&pause, "erofs").await? == "ready");
    Ok(())
}

/// Other clients change the node between the plugin's two requests.
#[tokio::test(flavor = "multi_thread")]
async fn a_conflict_is_tried_again() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let server = with_new_node().await?;
    server.conflict(3);
    let config = node.tainted(&server, "watch = \"off\"")?;
    node.serve(&config).await?;
    until_untainted(&server).await?;
    let requests = server.requests();
    let patches = requests.iter().filter(|request| request.contains(PATCH[0]));
    ensure!(patches.count() == 4, "{requests:#?}");
    let warned = node.log.lines_with("startup taint cannot be removed");
    ensure!(warned.is_empty(), "{warned:#?}");
    Ok(())
}

/// A refusal is said once, and the watch of pods goes on beside it.
#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_is_said_once_and_changes_nothing_else() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::start(version).await?;
    let server = with_new_node().await?;
    server.put_class(CLASS, handler(version));
    server.set_nodes(Some(Mode::Status(403)));
    let config = node.tainted(&server, "")?;
    node.serve(&config).await?;
    server.wait_for_request(&WATCH, PATIENCE).await?;
    server.wait_for_request(&["/nodes/"], PATIENCE).await?;
    let image = own_image("registry.test/lab/bound:1");
    node.pull(&image).await?;
    server.put_pod(pod("1", Some(CLASS), &[image.name()]));
    node.wait_image(&image, handler(version)).await?;
    // A new session tries at once.
    node.restart_containerd().await?;
    node.wait_for_lines("startup taint cannot be removed", 2)
        .await?;
    let warned = node.log.lines_with("startup taint cannot be removed");
    ensure!(
        warned.len() == 2
            && warned.iter().all(|line| {
                let has = |word: &str| line.contains(word);
                has("WARN") && has("403") && has("`get` and `patch` of nodes")
            }),
        "{warned:#?}"
    );
    server.set_nodes(None);
    ensure!(!server.taints(NODE).is_empty());
    node.restart_containerd().await?;
    until_untainted(&server).await
}

/// A server that fails in other ways is tried again until it works, and the reason is said once.
#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_fails_is_tried_again() -> Result<()> {
    for (mode, word) in [
        (Mode::Status(500), "500"),
        (Mode::Cut, "cannot be reached"),
        (Mode::Garbage, "cannot be read"),
        // A slow answer, which never comes.
        (Mode::Silent, "cannot be reached"),
    ] {
        let mut node = Node::start(Version::V2_1).await?;
        let server = with_new_node().await?;
        server.set_nodes(Some(mode));
        let config = node.tainted(&server, "watch = \"off\"")?;
        node.serve(&config).await?;
        server.wait_for_request(&["/nodes/"], PATIENCE).await?;
        if mode != Mode::Silent {
            let failed = node
                .log
                .wait_for("startup taint cannot be removed", PATIENCE);
            failed.await?;
            server.wait_for_requests(&["/nodes/"], 3, PATIENCE).await?;
        }
        ensure!(!server.taints(NODE).is_empty(), "{mode:?}");
        server.set_nodes(None);
        until_untainted(&server).await?;
        let said = node.log.lines_with("WARN");
        let said: Vec<_> = said
            .iter()
            .filter(|line| line.contains("startup taint"))
            .collect();
        ensure!(
            said.len() == 1 && said[0].contains(word),
            "{mode:?}: {said:#?}"
        );
    }
    Ok(())
}

/// Checks that `doctor` has this finding about Kubernetes with these words, and no other; none for an empty id.
fn assert_found(node: &Node, config: &str, id: &str, words: &[&str]) -> Result<()> {
    match &findings(node, config)?[..] {
        [] if id.is_empty() => Ok(()),
        [(of, text)] if of == id && words.iter().all(|word| text.contains(word)) => Ok(()),
        found => bail!("{id}: {found:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_what_keeps_the_taint() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let server = with_new_node().await?;
    let config = node.tainted(&server, "watch = \"off\"")?;
    assert_found(
        &node,
        &config,
        "kubernetes-startup-taint",
        &[NODE, TAINT, "pinned images"],
    )?;
    ensure!(!server.taints(NODE).is_empty(), "doctor removed the taint");
    server.set_nodes(Some(Mode::Status(403)));
    assert_found(
        &node,
        &config,
        "kubernetes-forbidden",
        &["nodes", "`patch`", "403"],
    )?;
    server.set_nodes(None);
    let another = config.replace(NODE, "another-node");
    assert_found(
        &node,
        &another,
        "kubernetes-node-unknown",
        &["another-node"],
    )?;
    let none = format!("[kubernetes]\nstartup_taint = \"{TAINT}\"\n");
    assert_found(
        &node,
        &none,
        "kubernetes-credentials",
        &["kubernetes.kubeconfig"],
    )?;
    node.serve(&config).await?;
    until_untainted(&server).await?;
    assert_found(&node, &config, "", &[])
}
