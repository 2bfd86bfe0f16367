//! The plugin leaves the node: what it has left in containerd is listed and removed, while a container runs. Before the
//! plugin, with it, and after `purge`, the store is compared as a whole.

use anyhow::{Context, Result, ensure};
use lab::{Image, Labels, Metadata, Pod, Version, images};
use serde_json::Value;

use crate::guest_pull::{self, NYDUS};
use crate::support::{ALL, Node, ON_DEMAND, RESOLVED, handler};

/// A name that only this program gives.
const OURS: &str = "nri-unpack";

/// The file of the image of [`Node`] that its container reads, and its content.
const FILE: (&str, &str) = ("/data/three", "three\n");

/// An image that no container uses while the plugin is there.
fn unused() -> Result<Image> {
    images::own_layers("registry.test/leaving/unused:1", 3)
}

/// A container that runs from before the purge to after it.
struct Running {
    pod: Pod,
    container: String,
}

impl Node {
    /// Pulls the unused image, and leaves the plugin's store as it is while it runs: a container, a copy that no
    /// container uses, in nydus also a private chain.
    async fn live_with_plugin(&mut self, handler: &str) -> Result<Running> {
        let unused = unused()?;
        self.serve(if handler == NYDUS { ON_DEMAND } else { ALL })
            .await?;
        match handler {
            NYDUS => drop(self.ensure_ready(&unused, handler)?),
            _ => self.wait_image(&unused, handler).await?,
        }
        let pod = self.cri.run_pod(handler, &[]).await?;
        let image = self.image.name().to_owned();
        let container = self.cri.create_container(&pod, &image, &[], &[]).await?;
        if handler == NYDUS {
            self.assert_guest_pulls(&container).await?;
            self.lab.give_to_guest(&self.image)?;
        }
        self.cri.start_container(&container).await?;
        self.assert_nothing_left(handler).await?;
        Ok(Running { pod, container })
    }

    async fn stop_plugin(&mut self) -> Result<()> {
        let mut plugin = self.plugin.take().context("serving")?;
        ensure!(plugin.stop().await?.success());
        Ok(())
    }

    /// A process that was killed has left a lease and an extraction snapshot on the lowest layer of the image.
    async fn lay_remains(&self, snapshotter: &str) -> Result<()> {
        let lease = "nri-unpack-1-2-3";
        let owner = "daemon another-boot pid:[4026531836] 1 1".to_owned();
        let labels = Labels::from([("nri-unpack/owner".to_owned(), owner)]);
        self.store.put_lease(lease, &labels).await?;
        let unused = unused()?;
        let parent = &unused.layers[0].chain_id;
        let key = format!("extract-{lease}.0 {}", unused.layers[1].chain_id);
        self.store
            .put_active(lease, snapshotter, &key, parent)
            .await?;
        Ok(())
    }

    async fn timeless(&self) -> Result<Metadata> {
        Ok(self.store.metadata().await?.without_times())
    }

    /// Runs `purge`. Returns its exit status and its rows.
    fn purge(&self, arguments: &[&str]) -> Result<(Option<i32>, Vec<Value>)> {
        let command = [&["purge", "--output", "json"], arguments].concat();
        let output = self.command(&command)?;
        let report: Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
        let rows = report["leftovers"].as_array().context("rows")?.clone();
        Ok((output.status.code(), rows))
    }
}

/// Returns the rows as `KIND STATE`, sorted.
fn states(rows: &[Value]) -> Vec<String> {
    let word = |row: &Value, key: &str| row[key].as_str().unwrap_or_default().to_owned();
    let mut states: Vec<_> = rows
        .iter()
        .map(|row| format!("{} {}", word(row, "kind"), word(row, "state")))
        .collect();
    states.sort();
    states
}

/// Returns the objects that have a name of this program, or a label with one.
fn ours(store: &Metadata) -> Vec<String> {
    let lines = store.lines().into_iter();
    lines.filter(|line| line.contains(OURS)).collect()
}

fn print(title: &str, changes: &[String]) {
    println!("{title}: {} lines", changes.len());
    changes.iter().for_each(|line| println!("  {line}"));
}

async fn leaves(version: Version, handler: &str) -> Result<()> {
    let mut node = match handler {
        NYDUS => guest_pull::start(version).await?,
        _ => Node::start(version).await?,
    };
    let unused = unused()?;
    node.registry.push(&unused).await?;
    node.cri.pull_image(unused.name()).await?;
    let before = node.timeless().await?;

    let running = node.live_with_plugin(handler).await?;
    let refused = node.command(&["purge"])?;
    let message = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    ensure!(
        message.contains("the plugin runs on this node"),
        "{message}"
    );
    node.stop_plugin().await?;
    node.lay_remains(handler).await?;
    let with = node.timeless().await?;
    print("with the plugin", &before.changes(&with));
    crate::upgrade::assert_known(&with)?;

    let exact = node.store.metadata().await?;
    let (status, listed) = node.purge(&["--dry-run"])?;
    println!("{listed:#?}");
    ensure!(status == Some(1), "{status:?}");
    ensure!(
        node.store.metadata().await? == exact,
        "the dry run changed something"
    );

    let (status, purged) = node.purge(&[])?;
    ensure!(status == Some(0), "{status:?}: {purged:#?}");
    let removed = |word: &String| word.replace("removable", "removed");
    let expected: Vec<_> = states(&listed).iter().map(removed).collect();
    ensure!(states(&purged) == expected, "{purged:#?}");
    let after = node.timeless().await?;
    print("what purge removed", &with.changes(&after));
    print("what stays", &before.changes(&after));
    ensure!(node.cri.cat(&running.container, FILE.0).await? == FILE.1);
    node.assert_what_stays(handler, &running, &before, &after)
        .await?;

    // Without the plugin, containers start: on what stays, and on what is unpacked again.
    let app = node.image.clone();
    for image in [&app, &unused] {
        let name = image.name();
        let container = node
            .cri
            .create_container(&running.pod, name, &[], &[])
            .await?;
        node.cri.start_container(&container).await?;
        let first = if *name == *app.name() {
            FILE.0
        } else {
            "/data/0"
        };
        ensure!(!node.cri.cat(&container, first).await?.is_empty());
    }
    ensure!(node.cri.cat(&running.container, FILE.0).await? == FILE.1);

    node.cri.remove_pod(&running.pod).await?;
    node.store.collect_garbage().await?;
    let (status, _) = node.purge(&[])?;
    ensure!(status == Some(0), "{status:?}");
    let (status, rows) = node.purge(&["--dry-run"])?;
    ensure!(status == Some(0) && rows.is_empty(), "{rows:#?}");
    let left = ours(&node.timeless().await?);
    ensure!(left.is_empty(), "{left:#?}");
    Ok(())
}

impl Node {
    /// Checks each difference to the store before the plugin, with a pod that runs: the snapshots of the pod and of the
    /// chains that it uses, with their anchors, and nothing with a name of this program but a private chain in use.
    async fn assert_what_stays(
        &self,
        handler: &str,
        running: &Running,
        before: &Metadata,
        after: &Metadata,
    ) -> Result<()> {
        let snapshot = format!("+ snapshot {handler} ");
        let anchor = format!("containerd.io/gc.ref.snapshot.{handler}\"");
        for change in before.changes(after) {
            // containerd 2 holds each sandbox by a lease.
            let is_sandbox = change.starts_with(&format!("+ lease {}:", running.pod.id));
            let is_snapshot = is_sandbox || change.starts_with(&snapshot);
            let is_anchored = change.starts_with("+ content ") && change.contains(&anchor);
            let is_replaced = change.starts_with("- content ");
            ensure!(is_snapshot || is_anchored || is_replaced, "{change}");
        }
        let snapshots = self.store.snapshots(handler).await?;
        let own = snapshots.iter().find(|s| s.key == running.container);
        let parent = &own.context("the container's snapshot")?.parent;
        let left = ours(after);
        match handler {
            NYDUS => {
                ensure!(parent.starts_with("nri-unpack-private-"), "{parent}");
                let is_parent =
                    |line: &String| line.starts_with(&format!("snapshot nydus {parent}:"));
                let is_above = |line: &String| line.contains(&format!("on {parent:?}"));
                ensure!(
                    left.iter().all(|line| is_parent(line) || is_above(line)),
                    "{left:#?}"
                );
            }
            _ => {
                ensure!(left.is_empty(), "{left:#?}");
                ensure!(parent == self.image.top(), "{parent}");
                let shared = self.image.chain_ids();
                let chain = self.store.chain(handler, &unused()?).await?;
                let own = chain.iter().filter(|layer| !shared.contains(&layer.key));
                ensure!(own.count() == 0, "{chain:#?}");
            }
        }
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1() -> Result<()> {
    leaves(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_2_1() -> Result<()> {
    leaves(Version::V2_1, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7() -> Result<()> {
    leaves(Version::V1_7, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_2_1() -> Result<()> {
    leaves(Version::V2_1, NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_1_7() -> Result<()> {
    leaves(Version::V1_7, NYDUS).await
}

/// The DaemonSet is deleted, or the process killed, and nothing else is done: pods start, from what the plugin has made
/// ready and from what it has not.
async fn killed(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    node.serve(ALL).await?;
    node.wait_labelled(handler).await?;
    let mut plugin = node.plugin.take().context("serving")?;
    plugin.kill();
    node.lay_remains_without_parent(handler).await?;
    let later = images::own_layers("registry.test/leaving/later:1", 3)?;
    node.registry.push(&later).await?;
    node.cri.pull_image(later.name()).await?;
    let app = node.image.clone();
    for (image, file) in [(&app, FILE.0), (&later, "/data/0")] {
        let pod = node.cri.run_pod(handler, &[]).await?;
        let name = image.name();
        let container = node.cri.create_container(&pod, name, &[], &[]).await?;
        node.cri.start_container(&container).await?;
        ensure!(!node.cri.cat(&container, file).await?.is_empty());
        node.cri.remove_pod(&pod).await?;
        node.store.collect_garbage().await?;
    }
    // The plugin comes back, and finds its way.
    let before = node.log.lines_with(RESOLVED).len();
    plugin.restart()?;
    node.plugin = Some(plugin);
    node.wait_for_lines(RESOLVED, before + 1).await?;
    node.assert_nothing_left(handler).await
}

impl Node {
    /// A process that was killed has left the snapshot of a lowest layer.
    async fn lay_remains_without_parent(&self, snapshotter: &str) -> Result<()> {
        let lease = "nri-unpack-1-2-3";
        self.store.put_lease(lease, &Labels::new()).await?;
        let key = format!("extract-{lease}.0 sha256:lowest");
        self.store.put_active(lease, snapshotter, &key, "").await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_plugin_leaves_a_node_that_works_on_2_1() -> Result<()> {
    killed(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_plugin_leaves_a_node_that_works_on_1_7() -> Result<()> {
    killed(Version::V1_7).await
}
