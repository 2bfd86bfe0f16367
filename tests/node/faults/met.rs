//! The calls that get faults are those of runs without a fault. So each method of the trait `Containerd` has to be
//! called in one of them: this test runs what makes the plugin call each, and names a method that no run has called.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use lab::{Call, Fault, Image, Options, Remote, Tap, Version};

use crate::concurrency::of_its_own;
use crate::guest_pull::NYDUS;
use crate::support::{Node, PATIENCE};

/// The trait.
const TRAIT: &str = include_str!("../../../src/containerd/mod.rs");

const EROFS: &str = "erofs";

/// What makes the plugin or a command call containerd.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Run {
    /// `ensure` of images in each state.
    Ensure,
    Check,
    Doctor,
    /// The plugin, while images arrive and a container is created.
    Serve,
    /// The plugin that containerd 1.7 launches.
    Launched,
}

/// How a method of the trait is seen on the wire.
struct Row {
    method: &'static str,
    /// The services and methods of its calls.
    paths: &'static [&'static str],
    /// A word of the message which tells methods with the same path apart, and whether it has to be there.
    word: Option<(&'static str, bool)>,
    /// The only run in which no other method makes the same calls.
    run: Option<Run>,
}

const fn row(method: &'static str, paths: &'static [&'static str]) -> Row {
    Row {
        method,
        paths,
        word: None,
        run: None,
    }
}

impl Row {
    const fn with(mut self, word: &'static str) -> Self {
        self.word = Some((word, true));
        self
    }

    const fn without(mut self, word: &'static str) -> Self {
        self.word = Some((word, false));
        self
    }

    const fn only_in(mut self, run: Run) -> Self {
        self.run = Some(run);
        self
    }

    /// Whether this is one of the method's calls.
    fn is_of(&self, path: &str, call: &Call) -> bool {
        let (_, name) = call.path.rsplit_once(".v1.").unwrap_or_default();
        let mut word = self.word.iter();
        name == path && word.all(|(word, is_there)| call.message.contains(word) == *is_there)
    }

    fn is_met(&self, calls: &[(Run, Call)]) -> bool {
        let in_run = |run: Run| self.run.is_none_or(|only| only == run);
        let is_met = |path: &&str| {
            let mut calls = calls.iter();
            calls.any(|(run, call)| in_run(*run) && self.is_of(path, call))
        };
        self.paths.iter().all(is_met)
    }
}

/// In the order of the trait.
const TABLE: [Row; 38] = [
    row("image", &["Images/Get"]),
    row("images", &["Images/List"]).without("target.digest"),
    row("images_of", &["Images/List"]).with("target.digest"),
    row("blob", &["Content/Info"]),
    row("blobs", &["Content/List"]).without("gc.ref.content.config"),
    row("manifests", &["Content/List"]).with("gc.ref.content.config"),
    row("read", &["Content/Read"]),
    row("write_blob", &["Content/Write"]),
    row("abort_write", &["Content/Abort"]),
    row("fetch", &["Transfer/Transfer"]),
    row("label_blob", &["Content/Update"]),
    row("stat", &["Snapshots/Stat"]),
    row("has_record", &["Snapshots/Commit"]).with("nri-unpack nothing"),
    row("snapshots", &["Snapshots/List"]),
    row("prepare", &["Snapshots/Prepare"]),
    row("view", &["Snapshots/View"]),
    row("mounts", &["Snapshots/Mounts"]),
    row("inodes", &["Snapshots/Usage"]),
    row("commit", &["Snapshots/Commit"]).without("nri-unpack nothing"),
    row("remove", &["Snapshots/Remove"]),
    row("label_snapshot", &["Snapshots/Update"]),
    row("apply", &["Diff/Apply"]),
    row("create_lease", &["Leases/Create"]),
    row("delete_lease", &["Leases/Delete"]),
    row("leases", &["Leases/List"]),
    row("lease_resources", &["Leases/ListResources"]),
    row("hold", &["Leases/AddResource"]),
    row("release", &["Leases/DeleteResource"]),
    row("events", &["Events/Subscribe"]),
    row("snapshotters", &["Introspection/Plugins"]).with("snapshotter.v1"),
    row("plugins", &["Introspection/Plugins"]).without("snapshotter.v1"),
    row("version", &["Version/Version"]),
    row("cri_config", &["RuntimeService/Status"]),
    row(
        "cri_state_bytes",
        &[
            "RuntimeService/ListPodSandbox",
            "RuntimeService/ListContainers",
        ],
    )
    .only_in(Run::Doctor),
    // `doctor` lists the pods for this as well: the calls of both methods are equal.
    row("pod_annotation", &["RuntimeService/ListPodSandbox"]).only_in(Run::Doctor),
    row("image_file_system", &["ImageService/ImageFsInfo"]),
    // The calls of `cri_state_bytes` are among them.
    row("cri_pods", &["RuntimeService/ListPodSandbox"]).only_in(Run::Doctor),
    row(
        "cri_containers",
        &[
            "RuntimeService/ListPodSandbox",
            "RuntimeService/ListContainers",
        ],
    )
    .only_in(Run::Launched),
];

/// Returns the names of the trait's methods that call containerd.
fn methods() -> BTreeSet<&'static str> {
    let (_, body) = TRAIT.split_once("pub trait Containerd").unwrap_or_default();
    let methods = body.split("async fn ").skip(1);
    let methods = methods.filter_map(|method| method.split_once('('));
    methods.map(|(name, _)| name).collect()
}

#[test]
fn each_method_has_a_row() {
    let (methods, rows) = (methods(), TABLE.map(|row| row.method));
    assert!(methods.len() > 30, "{methods:?}");
    let rows: BTreeSet<_> = rows.into_iter().collect();
    let without: Vec<_> = methods.difference(&rows).collect();
    assert!(
        without.is_empty(),
        "methods of the trait without a row: {without:?}"
    );
    let stale: Vec<_> = rows.difference(&methods).collect();
    assert!(stale.is_empty(), "rows without a method: {stale:?}");
}

/// A node whose calls are kept by run.
struct Bench {
    node: Node,
    calls: Vec<(Run, Call)>,
    seen: usize,
}

impl Bench {
    async fn start() -> Result<Self> {
        let mut options = Options::new(Version::V2_1);
        options.remotes = vec![Remote::Nydus];
        let mut node = Node::start_with(Version::V2_1, options).await?;
        node.tap = Some(Tap::start(&node.lab)?);
        Ok(Self {
            node,
            calls: vec![],
            seen: 0,
        })
    }

    fn tap(&self) -> Result<&Tap> {
        self.node.tap.as_ref().context("no tap")
    }

    /// Keeps the calls since the last time as those of this run.
    fn ran(&mut self, run: Run) -> Result<()> {
        let calls = self.tap()?.calls();
        let new = calls.into_iter().skip(self.seen);
        let new: Vec<_> = new.map(|call| (run, call)).collect();
        self.seen += new.len();
        self.calls.extend(new);
        Ok(())
    }

    /// Lets containerd unpack the image for a container, without labels.
    async fn unpack_unlabelled(&mut self, image: &Image, handler: &str) -> Result<()> {
        let pod = self.node.cri.run_pod(handler, &[]).await?;
        let created = self.node.cri.create_container(&pod, image.name(), &[], &[]);
        created.await?;
        self.node.cri.remove_pod(&pod).await?;
        Ok(())
    }

    /// A lease to sweep, an image with blobs, one with labels to add, and one whose guest has to pull it.
    async fn ensure(&mut self) -> Result<()> {
        // A crash has left a lease.
        let left = ["leases", "create", "--id", "nri-unpack-left"];
        self.node.lab.ctr(&left).await?;
        let missing = of_its_own("missing", 1);
        self.node.store.put_image(&missing).await?;
        ensure!(self.node.ensure_ready(&missing, EROFS)? == "unpacked");

        let unlabelled = of_its_own("unlabelled", 1);
        self.node.lab.import(&unlabelled).await?;
        self.unpack_unlabelled(&unlabelled, EROFS).await?;
        ensure!(self.node.ensure_ready(&unlabelled, EROFS)? == "relabelled");

        self.node.ensure_ready(&missing, NYDUS)?;
        self.unpack_unlabelled(&unlabelled, NYDUS).await?;
        ensure!(self.node.ensure_ready(&unlabelled, NYDUS)? == "replaced");
        Ok(())
    }

    /// Images without blobs: one is rebuilt, at the second attempt, and one is pulled.
    async fn ensure_without_blobs(&mut self) -> Result<()> {
        let rebuilt = of_its_own("rebuilt", 1);
        self.node.lab.import(&rebuilt).await?;
        self.lose_blobs(&rebuilt).await?;
        let writes = |call: &Call| call.path.ends_with("Content/Write");
        self.tap()?.fail_when(writes, Fault::AnswerLost);
        let words = ["ensure", rebuilt.name(), "--snapshotter", EROFS];
        ensure!(!self.node.command(&words)?.status.success());
        ensure!(self.tap()?.heal(), "nothing was written");
        ensure!(self.node.ensure_ready(&rebuilt, EROFS)? == "rebuilt");

        let pulled = of_its_own("pulled", 1);
        self.node.registry.push(&pulled).await?;
        self.node.store.put_image(&pulled).await?;
        self.lose_blobs(&pulled).await?;
        let (hooks, pulling) = (self.node.hooks, pulling(&self.node));
        self.node.hooks = pulling;
        ensure!(self.node.ensure_ready(&pulled, EROFS)? == "unpacked");
        self.node.hooks = hooks;
        Ok(())
    }

    /// nydus has lost what containerd has a record of, and the chain is not anchored.
    async fn ensure_lost(&mut self) -> Result<()> {
        let lost = of_its_own("missing", 1);
        // No garbage collection of what was removed before takes the record away.
        self.node.store.collect_garbage().await?;
        self.node.lose_nydus().await?;
        let anchor = "containerd.io/gc.ref.snapshot.nydus=";
        let words = ["content", "label", &lost.config.digest, anchor];
        self.node.lab.ctr(&words).await?;
        self.node.ensure_ready(&lost, NYDUS)?;
        Ok(())
    }

    async fn lose_blobs(&self, image: &Image) -> Result<()> {
        for layer in &image.layers {
            self.node.store.delete_content(&layer.digest).await?;
        }
        Ok(())
    }

    async fn serve(&mut self) -> Result<()> {
        self.node.serve("").await?;
        self.node
            .log
            .wait_for("reconcile finished", PATIENCE)
            .await?;
        let arriving = of_its_own("arriving", 3);
        self.node.pull(&arriving).await?;
        self.node.wait_image(&arriving, NYDUS).await?;
        let pod = self.node.cri.run_pod(EROFS, &[]).await?;
        let created = self
            .node
            .cri
            .create_container(&pod, arriving.name(), &[], &[]);
        created.await?;
        Ok(())
    }
}

/// Returns the calls of a plugin that containerd 1.7 launches: it gets no list of containers with its registration.
async fn launched() -> Result<Vec<(Run, Call)>> {
    let mut node = Node::start(Version::V1_7).await?;
    node.tap = Some(Tap::start(&node.lab)?);
    node.launch().await?;
    node.log.wait_for("containers listed", PATIENCE).await?;
    let calls = node.tap.as_ref().map(Tap::calls).unwrap_or_default();
    Ok(calls
        .into_iter()
        .map(|call| (Run::Launched, call))
        .collect())
}

/// Returns the configuration with which blobs are pulled, up to the beginning of the table `hooks`.
pub(super) fn pulling(node: &Node) -> &'static str {
    let hosts = node.lab.path("hosts");
    let pull = format!("missing_content = [\"pull\"]\n[pull]\nhosts = {hosts:?}\n[hooks]\n");
    pull.leak()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_method_is_called() -> Result<()> {
    let mut bench = Bench::start().await?;
    bench.ensure().await?;
    bench.ensure_without_blobs().await?;
    bench.ran(Run::Ensure)?;
    let (pod, name) = (
        bench.node.cri.run_pod(NYDUS, &[]).await?,
        of_its_own("missing", 1),
    );
    let container = bench.node.cri.create_container(&pod, name.name(), &[], &[]);
    container.await?;
    bench.node.command(&["check"])?;
    bench.ran(Run::Check)?;
    bench.node.command(&["doctor"])?;
    bench.ran(Run::Doctor)?;
    bench.node.cri.remove_pod(&pod).await?;
    bench.ensure_lost().await?;
    bench.ran(Run::Ensure)?;
    bench.serve().await?;
    bench.ran(Run::Serve)?;
    bench.calls.extend(launched().await?);

    let calls = &bench.calls;
    let missed = TABLE.iter().filter(|row| !row.is_met(calls));
    let missed: Vec<_> = missed.map(|row| row.method).collect();
    let is_known = |call: &Call| {
        let mut rows = TABLE.iter();
        rows.any(|row| row.paths.iter().any(|path| row.is_of(path, call)))
    };
    let unknown = calls.iter().filter(|(_, call)| !is_known(call));
    let unknown: BTreeSet<_> = unknown.map(|(_, call)| call.path.as_str()).collect();
    ensure!(
        missed.is_empty(),
        "never called: {missed:?}; called without a row: {unknown:?}"
    );
    ensure!(unknown.is_empty(), "called without a row: {unknown:?}");
    Ok(())
}
