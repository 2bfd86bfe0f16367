//! What a node has when its work is done: every image, ready and labelled, each container in use as it was, and nothing
//! that neither an image nor a container has.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use containerd_client::services::v1::DeleteRequest;
use k8s_cri::v1::{ContainerState, ListContainersRequest, ListPodSandboxRequest};
use lab::{Image, PAUSE, Pod, Snapshot, images, namespaced};
use tokio::time::Instant;

use super::{Bench, Counts};
use crate::guest_pull::{NYDUS, is_unlabelled};
use crate::pods::LAYERS;
use crate::resources::Resources;
use crate::support::Node;

/// The plugin tries again after some seconds, and later after a minute.
pub(super) const LONGEST: Duration = Duration::from_secs(90);

/// The sum of each file of a container's root file system.
const SUMS: &str = "find / -xdev -type f -exec sha256sum {} +";

/// A container that runs all the time.
pub(super) struct InUse {
    handler: &'static str,
    pub(super) image: Image,
    pod: Pod,
    pub(super) container: String,
    started_at: i64,
    sums: BTreeSet<String>,
    snapshot: Option<Snapshot>,
}

impl InUse {
    pub(super) async fn start(node: &mut Node, handler: &'static str) -> Result<Self> {
        let image = images::own_layers(&format!("registry.test/used/app:{handler}1"), LAYERS)?;
        if handler == NYDUS {
            node.lab.give_to_guest(&image)?;
        }
        node.pull(&image).await?;
        let pod = node.cri.run_pod(handler, &[]).await?;
        let created = node.cri.create_container(&pod, image.name(), &[], &[]);
        let container = created.await?;
        node.cri.start_container(&container).await?;
        let mut in_use = Self {
            handler,
            image,
            pod,
            container,
            started_at: 0,
            sums: BTreeSet::new(),
            snapshot: None,
        };
        (in_use.started_at, in_use.sums, in_use.snapshot) = in_use.now(node).await?;
        ensure!(in_use.sums.len() > LAYERS, "{:?}", in_use.sums);
        Ok(in_use)
    }

    /// Returns when it was started, the sums of its files, and its snapshot. nydus-snapshotter cannot tell the mounts any more
    /// after its restart.
    async fn now(&self, node: &mut Node) -> Result<(i64, BTreeSet<String>, Option<Snapshot>)> {
        let status = node.cri.container_status(&self.container).await?;
        ensure!(
            status.state == ContainerState::ContainerRunning as i32,
            "{status:?}"
        );
        let read = node.cri.exec_sync(&self.container, &["sh", "-c", SUMS]);
        let read = read.await?;
        ensure!(read.code == 0, "{read:?}");
        let snapshotter = match self.handler {
            "" => "overlayfs",
            handler => handler,
        };
        let snapshots = node.store.snapshots(snapshotter).await?;
        let snapshot = snapshots.into_iter().find(|it| it.key == self.container);
        ensure!(snapshot.is_some(), "its snapshot is gone");
        let sums = read.stdout.lines().map(str::to_owned).collect();
        Ok((status.started_at, sums, snapshot))
    }

    async fn assert_unharmed(&self, node: &mut Node) -> Result<()> {
        let (started_at, sums, snapshot) = self.now(node).await?;
        ensure!(started_at == self.started_at, "was started again");
        let changed: Vec<_> = sums.symmetric_difference(&self.sums).collect();
        ensure!(changed.is_empty(), "files are not as before: {changed:#?}");
        ensure!(
            snapshot == self.snapshot,
            "{snapshot:?}, not {:?}",
            self.snapshot
        );
        Ok(())
    }
}

impl Bench {
    /// Waits until the node is at rest. Counts the leases that containerd has left.
    pub(super) async fn wait_at_rest(
        &mut self,
        counts: &mut Counts,
        timeout: Duration,
    ) -> Result<()> {
        let deadline = Instant::now() + timeout;
        loop {
            match self.look(counts).await {
                Err(e) if Instant::now() > deadline => return Err(e),
                Err(_) => tokio::time::sleep(Duration::from_millis(200)).await,
                Ok(()) => return Ok(()),
            }
        }
    }

    /// Returns an error with what is not as it should be.
    pub(super) async fn look(&mut self, counts: &mut Counts) -> Result<()> {
        let node = &mut self.node;
        node.cri = node.lab.cri().await?;
        node.store = node.lab.store().await?;
        let kept: Vec<_> = self.in_use.iter().map(|it| it.pod.id.as_str()).collect();
        node.remove_pods_except(&kept).await?;
        for in_use in &self.in_use {
            let unharmed = in_use.assert_unharmed(node).await;
            unharmed.with_context(|| format!("the container of «{}»", in_use.handler))?;
        }
        // A lease of a call that containerd did not finish holds a chain, and the plugin replaces it only afterwards.
        self.assert_no_leases(counts).await?;
        self.assert_images().await?;
        self.assert_no_leases(counts).await?;
        let (images, snapshotters) = (self.images()?, self.snapshotters());
        let node = &mut self.node;
        node.store.collect_garbage().await?;
        for snapshotter in snapshotters.into_iter().chain(["overlayfs"]) {
            node.assert_no_snapshot_but_of(&images, snapshotter).await?;
        }
        let writes = node.unfinished_blobs().await?;
        ensure!(writes.is_empty(), "unfinished blobs: {writes:?}");
        self.assert_mounts().await?;
        Resources::by(&self.node)?.assert_as(&self.held)
    }

    /// Returns the snapshotters of the handlers, but the default one.
    fn snapshotters(&self) -> Vec<&'static str> {
        let handlers = self.handlers.iter().copied();
        handlers.filter(|name| !name.is_empty()).collect()
    }

    /// Returns the images that the node has.
    fn images(&self) -> Result<Vec<Image>> {
        let mut all = vec![images::pause(&[PAUSE])?, self.node.image.clone()];
        all.extend(self.in_use.iter().map(|it| it.image.clone()));
        all.extend(self.last.iter().cloned());
        Ok(all)
    }

    /// Checks that no image is lost, and that each is ready and labelled in each snapshotter.
    async fn assert_images(&self) -> Result<()> {
        let (node, all) = (&self.node, self.images()?);
        let (records, blobs) = (node.store.images().await?, node.blobs().await?);
        for image in &all {
            ensure!(
                records.get(image.name()) == Some(&image.target.digest),
                "{} is lost: {records:#?}",
                image.name()
            );
            let missing: Vec<_> = image.blobs.iter().map(|blob| &blob.digest).collect();
            let missing: Vec<_> = missing.iter().filter(|it| !blobs.contains(**it)).collect();
            ensure!(missing.is_empty(), "{} lacks {missing:?}", image.name());
        }
        let digests: BTreeSet<_> = all.iter().map(|image| &image.target.digest).collect();
        let ids: BTreeSet<_> = all.iter().map(|image| &image.config.digest).collect();
        let more = records
            .iter()
            .find(|(name, digest)| !digests.contains(digest) && !ids.contains(name));
        ensure!(more.is_none(), "was removed: {more:?}");
        let states = self.states()?;
        for snapshotter in self.snapshotters() {
            for image in &all {
                let key = (image.name().to_owned(), snapshotter.to_owned());
                let state = states.get(&key).map(String::as_str);
                ensure!(state == Some("ready"), "{key:?} is {state:?}");
                self.assert_own_labels(snapshotter, image, &all).await?;
            }
        }
        Ok(())
    }

    /// Returns the states that `check` reports, by image and snapshotter.
    fn states(&self) -> Result<BTreeMap<(String, String), String>> {
        let command = || self.node.command(&["check", "--output", "json"]);
        let output = tokio::task::block_in_place(command)?;
        let report: serde_json::Value =
            serde_json::from_slice(&output.stdout).with_context(|| format!("check: {output:?}"))?;
        let text = |row: &serde_json::Value, key: &str| row[key].as_str().map(str::to_owned);
        let rows = report["images"].as_array().context("no images")?.iter();
        let rows = rows.map(|row| {
            let key = (text(row, "name")?, text(row, "snapshotter")?);
            Some((key, text(row, "state")?))
        });
        rows.collect::<Option<_>>().context("a row lacks a key")
    }

    /// Checks the labels of the layers that no other image has, and the anchor.
    async fn assert_own_labels(
        &self,
        snapshotter: &str,
        image: &Image,
        all: &[Image],
    ) -> Result<()> {
        let others = all.iter().filter(|other| other.name() != image.name());
        let others: BTreeSet<_> = others.flat_map(Image::chain_ids).collect();
        let shared = image.chain_ids();
        let shared = shared.iter().filter(|id| others.contains(*id)).count();
        // During the pull only the digest is known, and a plugin that was killed then has not replaced it by the tag.
        let repository = image.name().rsplit_once(':').map_or("", |(name, _)| name);
        let by_digest = format!("{repository}@{}", image.target.digest);
        let names = [image.name(), &by_digest];
        // containerd was killed in its own unpack. Above such a layer the labelled ones are the guest's
        // (`guest_pull::a_layer_of_an_unfinished_unpack_stays`).
        let may_lack = |layer: &Snapshot| {
            let may_lack = snapshotter == NYDUS && is_unlabelled(layer);
            if may_lack {
                println!("{}: {layer:?} is of an unfinished unpack", image.name());
            }
            may_lack
        };
        let node = &self.node;
        node.assert_labels(snapshotter, image, shared, &names, may_lack)
            .await
            .context(snapshotter.to_owned())?;
        let labels = node.store.content_labels(&image.config.digest).await?;
        let anchor = labels.get(&format!("containerd.io/gc.ref.snapshot.{snapshotter}"));
        ensure!(
            anchor.map(String::as_str) == Some(image.top()),
            "{} in {snapshotter}: the anchor is {anchor:?}",
            image.name()
        );
        Ok(())
    }

    /// Checks that the plugin has no lease. Then nothing is at work, and leases of containerd's are those of calls that it
    /// did not finish. They would expire after a day.
    async fn assert_no_leases(&self, counts: &mut Counts) -> Result<()> {
        let store = &self.node.store;
        let leases = store.leases().await?;
        let ours: Vec<_> = leases.keys().collect();
        let ours: Vec<_> = ours
            .iter()
            .filter(|id| id.starts_with("nri-unpack"))
            .collect();
        ensure!(ours.is_empty(), "leases are left: {ours:?}");
        for id in leases.into_keys() {
            let request = DeleteRequest { id, sync: false };
            store.client.leases().delete(namespaced(request)).await?;
            counts.leases_of_containerd += 1;
        }
        Ok(())
    }

    /// Checks that there are no more mounts than before. containerd's erofs snapshotter mounts layers that were used until
    /// they are removed.
    async fn assert_mounts(&self) -> Result<()> {
        let (of_layers, mounts): (Vec<_>, Vec<_>) = self
            .mounts()?
            .into_iter()
            .partition(|point| point.contains("/io.containerd.snapshotter.v1.erofs/"));
        let mut more = mounts.iter().filter(|it| !self.mounts.contains(it));
        let more = more.next();
        ensure!(more.is_none(), "mounts are left: {more:?}");
        if self.handlers.contains(&"erofs") {
            let layers = self.node.store.snapshots("erofs").await?.len();
            ensure!(
                of_layers.len() <= layers,
                "mounts are left, for {layers} layers: {of_layers:#?}"
            );
        }
        Ok(())
    }

    /// Returns the mount points in the directory of the node.
    pub(super) fn mounts(&self) -> Result<Vec<String>> {
        let dir = self.node.lab.path("");
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let mounts = mounts.lines().filter_map(|line| line.split(' ').nth(4));
        let mounts = mounts.filter(|point| point.starts_with(&*dir.to_string_lossy()));
        Ok(mounts.map(str::to_owned).collect())
    }
}

impl Node {
    /// Checks that each snapshot is a layer of one of these images, is of a pod or a container, or is below such a one.
    pub(crate) async fn assert_no_snapshot_but_of(
        &mut self,
        images: &[Image],
        snapshotter: &str,
    ) -> Result<()> {
        let cri = &mut self.cri.runtime;
        let pods = cri.list_pod_sandbox(ListPodSandboxRequest::default());
        let pods = pods.await?.into_inner().items.into_iter();
        let containers = cri.list_containers(ListContainersRequest::default());
        let containers = containers.await?.into_inner().containers.into_iter();
        let mut owned: BTreeSet<_> = pods.map(|pod| pod.id).collect();
        owned.extend(containers.map(|container| container.id));
        // A private chain stays as long as its image.
        let private = |id: String| ["", "host-"].map(|of| format!("nri-unpack-private-{of}{id}"));
        let chains: Vec<_> = images.iter().flat_map(Image::chain_ids).collect();
        owned.extend(chains.iter().cloned().flat_map(private));
        owned.extend(chains);
        let snapshots = self.store.snapshots(snapshotter).await?;
        loop {
            let count = owned.len();
            let below = snapshots.iter().filter(|it| owned.contains(&it.key));
            let below: Vec<_> = below.map(|it| it.parent.clone()).collect();
            owned.extend(below);
            if owned.len() == count {
                break;
            }
        }
        let left = snapshots.iter().filter(|it| !owned.contains(&it.key));
        let left: Vec<_> = left.collect();
        ensure!(
            left.is_empty(),
            "{snapshotter}: snapshots are left: {left:#?}"
        );
        Ok(())
    }
}
