//! What could go wrong while a container is moved onto another chain does no harm: between the two
//! halves of a swap containerd has a container without a snapshot.

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use k8s_cri::v1::ContainerStatusRequest;
use lab::{Call, Held, Kind, Options, Pod, Registry, Remote, Tap, Version, images};
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::guest_pull::{NYDUS, start};
use crate::support::{APP, Node, ON_DEMAND, PATIENCE, RESOLVED};

const MOVED: &str = "container moved";

/// What the runtime waits for a hook: long enough for the first half on a busy machine; what comes after
/// is held up by the test.
const SHORT: Duration = Duration::from_secs(3);

/// The second half of a swap: what a flight prepares has another key.
fn puts_back(call: &Call) -> bool {
    call.path.ends_with("Snapshots/Prepare") && !call.message.contains("extract-")
}

/// A creation whose swap stands between its halves.
struct Halfway {
    pod: Pod,
    creation: JoinHandle<Result<String, tonic::Status>>,
    held: Held,
    key: String,
}

impl Node {
    /// The plugin serves, and speaks to containerd through a tap.
    async fn serve_tapped(&mut self) -> Result<()> {
        self.tap = Some(Tap::start(&self.lab)?);
        self.serve(ON_DEMAND).await
    }

    /// Begins a creation and stops its swap in the middle.
    async fn halfway(&mut self) -> Result<Halfway> {
        let mut held = self.tap.as_ref().context("tapped")?.hold(puts_back);
        let pod = self.cri.run_pod(NYDUS, &[]).await?;
        let (mut cri, of, image) = (self.cri.clone(), pod.clone(), self.image.name().to_owned());
        let creation =
            tokio::spawn(async move { cri.create_container(&of, &image, &[], &[]).await });
        let call = tokio::time::timeout(PATIENCE, held.came())
            .await
            .context("no swap")??;
        let is_id = |word: &&str| word.len() == 64;
        let words = call.message.split(|c: char| !c.is_ascii_hexdigit());
        let ids: Vec<_> = words.filter(is_id).collect();
        let key = ids.first().with_context(|| format!("{call:?}"))?;
        ensure!(!self.stands(key).await?, "{key} is there still");
        Ok(Halfway {
            pod,
            creation,
            held,
            key: (*key).to_owned(),
        })
    }

    /// Whether there is a container's snapshot of this key.
    async fn stands(&self, key: &str) -> Result<bool> {
        let snapshots = self.store.snapshots(NYDUS).await?;
        Ok(snapshots.iter().any(|s| s.key == key))
    }

    /// Creates another container, as the kubelet does after a failure: it gets the guest pull.
    ///
    /// The plugin replaces the chain as soon as the lost container is gone. containerd may be at the same chain
    /// then, find its layers removed, and fail: the kubelet tries again.
    async fn assert_next_is_right(&mut self, pod: &Pod) -> Result<()> {
        let image = self.image.name().to_owned();
        let next = match self.cri.create_container(pod, &image, &[], &[]).await {
            Err(e) if is_removed_below(&e) => {
                self.cri.create_container(pod, &image, &[], &[]).await?
            }
            next => next?,
        };
        self.assert_guest_pulls(&next).await?;
        self.lab.give_to_guest(&self.image)?;
        self.cri.start_container(&next).await?;
        ensure!(self.cri.cat(&next, "/data/three").await? == "three\n");
        Ok(())
    }

    /// Nothing of ours, and nothing of the container that was lost.
    async fn assert_no_trace_of(&self, lost: &str) -> Result<()> {
        self.assert_nothing_left(NYDUS).await?;
        self.store.collect_garbage().await?;
        ensure!(!self.stands(lost).await?, "{lost} is left");
        let snapshots = self.store.snapshots(NYDUS).await?;
        let active: Vec<_> = snapshots
            .iter()
            .filter(|s| s.kind != Kind::Committed)
            .collect();
        // The sandbox and the container that came next.
        ensure!(active.len() == 2, "{active:#?}");
        Ok(())
    }
}

/// Whether containerd's own unpack found a layer that was removed meanwhile.
pub(crate) fn is_removed_below(error: &tonic::Status) -> bool {
    let message = error.message();
    message.contains("failed to prepare extraction snapshot") && message.contains("does not exist")
}

/// The plugin dies between the two halves: containerd goes on without it, the container cannot be
/// started, and its successor is right.
async fn killed_between(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve_tapped().await?;
    let halfway = node.halfway().await?;
    let mut plugin = node.plugin.take().context("serving")?;
    plugin.kill();
    drop(halfway.held);
    let lost = halfway.creation.await??;
    ensure!(lost == halfway.key, "{lost}");
    let Err(error) = node.cri.start_container(&lost).await else {
        bail!("started from nothing");
    };
    let words = format!("snapshot {lost} does not exist");
    ensure!(error.message().contains(&words), "{error}");

    let before = node.log.lines_with(RESOLVED).len();
    plugin.restart()?;
    node.plugin = Some(plugin);
    node.wait_for_lines(RESOLVED, before + 1).await?;
    node.cri.remove_container(&lost).await?;
    node.assert_next_is_right(&halfway.pod).await?;
    node.assert_no_trace_of(&lost).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_on_2_1() -> Result<()> {
    killed_between(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn killed_between_on_1_7() -> Result<()> {
    killed_between(Version::V1_7).await
}

/// The second half takes longer than the hook may: the creation is rejected, whether containerd does
/// what it was asked for in the end or not, and its successor is right.
async fn late(version: Version) -> Result<()> {
    for arrives in [false, true] {
        let mut options = Options::new(version);
        options.remotes = vec![Remote::Nydus];
        options.request_timeout = SHORT;
        let (registry, image) = (Registry::start().await?, images::app(APP)?);
        let mut node = Node::start_on(version, options, registry, image).await?;
        node.serve_tapped().await?;
        let halfway = node.halfway().await?;
        let Err(error) = halfway.creation.await? else {
            bail!("created without a snapshot");
        };
        ensure!(
            error
                .message()
                .contains("its snapshot was lost in the swap"),
            "{error}"
        );
        if arrives {
            halfway.held.release();
        } else {
            drop(halfway.held);
        }
        node.assert_next_is_right(&halfway.pod).await?;
        node.assert_no_trace_of(&halfway.key).await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn late_on_2_1() -> Result<()> {
    late(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn late_on_1_7() -> Result<()> {
    late(Version::V1_7).await
}

/// containerd dies after the swap and before the start: the container is what it was made.
async fn containerd_killed_after_it(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve(ON_DEMAND).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    ensure!(node.log.lines_with(MOVED).len() == 1, "not swapped");
    node.lab.kill();
    node.restart_containerd().await?;
    node.assert_guest_pulls(&container).await?;
    node.store.collect_garbage().await?;
    node.assert_guest_pulls(&container).await?;
    node.lab.give_to_guest(&node.image)?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_killed_after_it_on_2_1() -> Result<()> {
    containerd_killed_after_it(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn containerd_killed_after_it_on_1_7() -> Result<()> {
    containerd_killed_after_it(Version::V1_7).await
}

/// Garbage is collected all the time while twenty containers are moved off a chain on which another
/// one runs.
async fn amid_collections(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let old = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.cri.start_container(&old).await?;
    let mounts = node.store.mounts(NYDUS, &old).await?;
    ensure!(mounts[0].kind == "overlay", "{mounts:?}");
    node.serve(ON_DEMAND).await?;

    let store = node.lab.store().await?;
    let collections = Arc::new(AtomicUsize::new(0));
    let counter = collections.clone();
    let collector = tokio::spawn(async move {
        while store.collect_garbage().await.is_ok() {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    });
    let creations = (0..20).map(|_| {
        let (mut cri, pod, image) = (node.cri.clone(), pod.clone(), image.clone());
        async move { cri.create_container(&pod, &image, &[], &[]).await }
    });
    let created = futures::future::join_all(creations).await;
    ensure!(!collector.is_finished(), "a collection has failed");
    collector.abort();
    let collections = collections.load(Ordering::Relaxed);
    ensure!(collections > 0, "no collection");

    let moved = node.log.lines_with(MOVED).len();
    ensure!(moved == 20, "{moved} of 20 swapped");
    for container in created {
        node.assert_guest_pulls(&container?).await?;
    }
    ensure!(node.store.mounts(NYDUS, &old).await? == mounts);
    ensure!(node.cri.cat(&old, "/data/three").await? == "three\n");
    node.assert_nothing_left(NYDUS).await
}

/// Garbage is collected at every point of a swap: each call that the plugin makes for a creation is
/// stopped in its turn, and goes on when a collection has run.
async fn collected_at_every_call(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve_tapped().await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let mut writes = 0;
    for n in 0.. {
        node.image = crate::after_pull::image(3, n);
        node.lab.import(&node.image).await?;
        let tap = node.tap.as_ref().context("tapped")?;
        let seen = AtomicUsize::new(0);
        let mut held =
            tap.hold(move |call| is_write(call) && seen.fetch_add(1, Ordering::Relaxed) == n);
        let (mut cri, of, image) = (node.cri.clone(), pod.clone(), node.image.name().to_owned());
        let creation =
            tokio::spawn(async move { cri.create_container(&of, &image, &[], &[]).await });
        let created = async {
            while !creation.is_finished() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let met = tokio::select! {
            call = held.came() => Some(call?),
            () = created => None,
        };
        let is_over = met.is_none();
        if met.is_some() {
            node.store.collect_garbage().await?;
            writes += 1;
        }
        // Also where the creation has made fewer: what replaces the old chain may make one more.
        held.release();
        let container = creation.await??;
        node.store.collect_garbage().await?;
        node.assert_guest_pulls(&container).await?;
        node.assert_nothing_left(NYDUS).await?;
        if is_over {
            break;
        }
    }
    // A lease, the private chain and its anchor; a lease, what it holds, Remove, Prepare.
    ensure!(writes >= 7, "{writes} calls only");
    Ok(())
}

/// What changes something.
fn is_write(call: &Call) -> bool {
    [
        "/Create",
        "/AddResource",
        "/Prepare",
        "/Remove",
        "/Update",
        "/Commit",
    ]
    .iter()
    .any(|method| call.path.ends_with(method))
}

#[tokio::test(flavor = "multi_thread")]
async fn collected_at_every_call_on_2_1() -> Result<()> {
    collected_at_every_call(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn collected_at_every_call_on_1_7() -> Result<()> {
    collected_at_every_call(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn amid_collections_on_2_1() -> Result<()> {
    amid_collections(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn amid_collections_on_1_7() -> Result<()> {
    amid_collections(Version::V1_7).await
}

/// What containerd has read from the image for a container: who runs it, by name, and what its volume
/// is filled with.
#[derive(Debug, PartialEq, Eq)]
struct Read {
    user: [u64; 2],
    volume: Vec<(OsString, Vec<u8>)>,
}

impl Node {
    async fn read_for(&mut self, container: &str) -> Result<Read> {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: true,
        };
        let status = self.cri.runtime.container_status(request).await?;
        let info = status.into_inner().info;
        let info: Value = serde_json::from_str(info.get("info").context("verbose")?)?;
        let spec = &info["runtimeSpec"];
        let user = ["uid", "gid"].map(|id| spec["process"]["user"][id].as_u64().unwrap_or(0));
        let mounts = spec["mounts"].as_array().context("mounts")?;
        let volume = mounts.iter().find(|mount| mount["destination"] == "/data");
        let source = volume.and_then(|volume| volume["source"].as_str());
        let mut files = Vec::new();
        for file in std::fs::read_dir(source.context("no volume")?)? {
            let file = file?;
            files.push((file.file_name(), std::fs::read(file.path())?));
        }
        Ok(Read {
            user,
            volume: files,
        })
    }
}

/// An image with a volume and a user of its own: the swap keeps what containerd has read of it.
async fn volume_and_user(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.image = images::service("registry.test/lab/service:1")?;
    node.lab.import(&node.image).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod("", &[]).await?;
    let usual = node.cri.create_container(&pod, &image, &[], &[]).await?;
    let expected = node.read_for(&usual).await?;
    ensure!(
        expected.user == [1234, 1235] && expected.volume == [("kept".into(), b"kept\n".to_vec())],
        "{expected:?}"
    );

    node.serve(ON_DEMAND).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    ensure!(node.log.lines_with(MOVED).len() == 1, "not swapped");
    node.assert_guest_pulls(&container).await?;
    let read = node.read_for(&container).await?;
    ensure!(read == expected, "{read:?}, not {expected:?}");

    node.lab.give_to_guest(&node.image)?;
    node.cri.start_container(&container).await?;
    let ids = node.cri.exec_sync(&container, &["id", "-u"]).await?;
    ensure!(ids.stdout == "1234\n", "{ids:?}");
    ensure!(node.cri.cat(&container, "/data/kept").await? == "kept\n");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_and_user_on_2_1() -> Result<()> {
    volume_and_user(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_and_user_on_1_7() -> Result<()> {
    volume_and_user(Version::V1_7).await
}
