//! nydus-snapshotter in proxy mode: the guest pulls the image, and the plugin must not let the host unpack it.

use anyhow::{Result, ensure};
use lab::nydus::GUEST_PULL;
use lab::{Image, Labels, Options, PAUSE, Remote, Snapshot, Version, images};

use crate::support::{CRI_LABELS, Node, ON_DEMAND, PATIENCE};

pub(crate) const NYDUS: &str = "nydus";

/// The label with which nydus-snapshotter marks a layer that the guest pulls.
const PROXIED: &str = "containerd.io/snapshot/nydus-proxy-mode";

fn is_proxied(snapshot: &Snapshot) -> bool {
    snapshot
        .labels
        .get(PROXIED)
        .is_some_and(|value| value == "true")
}

/// Whether this is a layer of an unpack of containerd's own.
pub(crate) fn is_unlabelled(snapshot: &Snapshot) -> bool {
    let mut labels = CRI_LABELS.iter().chain([&PROXIED]);
    !labels.any(|label| snapshot.labels.contains_key(*label))
}

/// Starts a node with nydus-snapshotter, without the plugin.
pub(crate) async fn start(version: Version) -> Result<Node> {
    start_with(version, Options::new(version)).await
}

/// Like [`start`], with these options of containerd.
pub(crate) async fn start_with(version: Version, mut options: Options) -> Result<Node> {
    options.remotes = vec![Remote::Nydus];
    Node::start_with(version, options).await
}

impl Node {
    /// Checks that the container's mount describes a guest pull of [`Node::image`].
    pub(crate) async fn assert_guest_pulls(&self, container: &str) -> Result<()> {
        self.assert_guest_pulls_image(container, &self.image).await
    }

    /// Like [`Self::assert_guest_pulls`], for the container or sandbox `key` of another image.
    pub(crate) async fn assert_guest_pulls_image(&self, key: &str, image: &Image) -> Result<()> {
        let mounts = self.store.mounts(NYDUS, key).await?;
        let [mount] = &mounts[..] else {
            anyhow::bail!("{key}: {mounts:?}");
        };
        let volume = mount.kata_volume()?;
        let top = image.layers.last().map(|layer| layer.digest.clone());
        ensure!(
            mount.kind == "fuse.nydus-overlayfs"
                && volume
                    .as_ref()
                    .is_some_and(|v| v.volume_type == GUEST_PULL
                        && v.labels.get(CRI_LABELS[2]) == top.as_ref()),
            "{key}: {mount:?}: {volume:?}"
        );
        Ok(())
    }

    /// Checks that the mounts of `key` are layers that the host unpacked.
    pub(crate) async fn assert_unpacked_on_host(&self, key: &str) -> Result<()> {
        for mount in self.store.mounts(NYDUS, key).await? {
            let volume = mount.kata_volume()?;
            ensure!(
                ["overlay", "bind"].contains(&mount.kind.as_str()) && volume.is_none(),
                "{key}: {mount:?}"
            );
        }
        Ok(())
    }

    pub(crate) async fn assert_proxied(&self) -> Result<()> {
        let chain = self.store.chain(NYDUS, &self.image).await?;
        let layers = self.image.layers.len();
        ensure!(
            chain.len() == layers && chain.iter().all(is_proxied),
            "{chain:#?}"
        );
        Ok(())
    }
}

/// Without the plugin, containerd's fallback unpacks the image and the pause image on the host. `ensure` leaves
/// both to the guest, also when their blobs are missing.
async fn ensure_needs_no_blob(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let (pause, image) = (images::pause(&[PAUSE])?, node.image.name().to_owned());
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    for key in [&pod.id, &container] {
        node.assert_unpacked_on_host(key).await?;
    }

    let mut node = start(version).await?;
    for layer in node.image.layers.iter().chain(&pause.layers) {
        node.store.delete_content(&layer.digest).await?;
    }
    let ensured = node.command(&["ensure", &image, PAUSE, "--handler", NYDUS])?;
    ensure!(ensured.status.success(), "{ensured:?}");
    node.assert_proxied().await?;
    node.assert_labelled(NYDUS).await?;
    node.assert_nothing_left(NYDUS).await?;
    node.store.collect_garbage().await?;
    node.assert_proxied().await?;

    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    node.assert_guest_pulls_image(&pod.id, &pause).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.assert_guest_pulls(&container).await?;
    for layer in node.image.layers.iter().chain(&pause.layers) {
        let blob = node.store.content_labels(&layer.digest).await;
        ensure!(blob.is_err(), "{} is in the content store", layer.digest);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ensure_needs_no_blob_on_2_1() -> Result<()> {
    ensure_needs_no_blob(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ensure_needs_no_blob_on_1_7() -> Result<()> {
    ensure_needs_no_blob(Version::V1_7).await
}

/// containerd's fallback unpacks the image on the host. The hook of that container moves it, so that its first
/// creation gets the guest pull.
async fn a_container_on_a_host_unpack_is_moved(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve(ON_DEMAND).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    ensure!(
        node.log.lines_with("container moved").len() == 1,
        "the hook did not move the container"
    );
    node.assert_guest_pulls(&container).await?;
    node.assert_nothing_left(NYDUS).await?;

    // Nothing uses the old chain any more: the plugin replaces it, and the next container uses the new chain.
    node.wait_for_lines("is replaced", 1).await?;
    node.assert_proxied().await?;
    let next = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.assert_guest_pulls(&next).await?;
    ensure!(
        node.log.lines_with("container moved").len() == 1,
        "another container was moved"
    );
    node.store.collect_garbage().await?;
    node.assert_guest_pulls(&container).await?;
    node.assert_guest_pulls(&next).await?;

    // Removing the image removes its chain and the private chain too.
    node.cri.remove_pod(&pod).await?;
    node.cri.remove_image(&image).await?;
    node.store.collect_garbage().await?;
    let chain = node.store.chain(NYDUS, &node.image).await?;
    ensure!(chain.is_empty(), "{chain:#?}");
    let all = node.store.snapshots(NYDUS).await?;
    let ours: Vec<_> = all
        .iter()
        .filter(|s| s.key.contains("nri-unpack"))
        .collect();
    ensure!(ours.is_empty(), "{ours:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_on_a_host_unpack_is_moved_on_2_1() -> Result<()> {
    a_container_on_a_host_unpack_is_moved(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_container_on_a_host_unpack_is_moved_on_1_7() -> Result<()> {
    a_container_on_a_host_unpack_is_moved(Version::V1_7).await
}

/// With `swap = false` the first creation is rejected, and the second one gets the guest pull.
async fn without_swap_the_first_creation_is_rejected(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve(&format!("swap = false\n{ON_DEMAND}")).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let rejected = node.cri.create_container(&pod, &image, &[], &[]).await;
    let Err(error) = rejected else {
        anyhow::bail!("a container on a host-unpacked chain was allowed");
    };
    ensure!(
        error
            .message()
            .contains("is unlabelled, and 1 containers, images or leases use it"),
        "{error}"
    );
    node.wait_for_lines("is replaced", 1).await?;
    node.assert_proxied().await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.assert_guest_pulls(&container).await?;
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_swap_the_first_creation_is_rejected_on_2_1() -> Result<()> {
    without_swap_the_first_creation_is_rejected(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_swap_the_first_creation_is_rejected_on_1_7() -> Result<()> {
    without_swap_the_first_creation_is_rejected(Version::V1_7).await
}

/// The snapshotter has a name without meaning. The plugin detects that the guest pulls, and rejects containers
/// as it does for nydus.
async fn a_guest_pull_is_detected_under_another_name(version: Version) -> Result<()> {
    const NAME: &str = "guest-pull";
    let mut node = start(version).await?;
    let config = std::fs::read_to_string(node.lab.config())?;
    let config = config
        .replace("[proxy_plugins.nydus]", &format!("[proxy_plugins.{NAME}]"))
        .replace(
            "snapshotter = \"nydus\"",
            &format!("snapshotter = {NAME:?}"),
        );
    std::fs::write(node.lab.config(), config)?;
    node.restart_containerd().await?;
    node.serve(&format!(
        "swap = false\n[snapshotters.{NAME}]\neager = \"none\"\n"
    ))
    .await?;
    let found = "found out whether the guest pulls images";
    node.log.wait_for(found, PATIENCE).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let Err(error) = node.cri.create_container(&pod, &image, &[], &[]).await else {
        anyhow::bail!("a container on a host-unpacked chain was allowed");
    };
    ensure!(error.message().contains("is unlabelled"), "{error}");
    node.wait_for_lines("is replaced", 1).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    let mounts = node.store.mounts(NAME, &container).await?;
    let volume = mounts
        .first()
        .map(lab::Mount::kata_volume)
        .transpose()?
        .flatten();
    ensure!(
        volume.is_some_and(|v| v.volume_type == GUEST_PULL),
        "{mounts:?}"
    );
    node.assert_nothing_left(NAME).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_pull_is_detected_under_another_name_on_2_1() -> Result<()> {
    a_guest_pull_is_detected_under_another_name(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_guest_pull_is_detected_under_another_name_on_1_7() -> Result<()> {
    a_guest_pull_is_detected_under_another_name(Version::V1_7).await
}

/// A container that used the old chain before the plugin started keeps running. New containers are moved, and
/// the old chain is replaced after that container is removed.
async fn a_chain_in_use_is_kept(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let old = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.cri.start_container(&old).await?;
    node.serve(ON_DEMAND).await?;
    let ensured = node.command(&["ensure", &image, "--handler", NYDUS])?;
    ensure!(ensured.status.code() == Some(1), "{ensured:?}");
    let new = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.assert_guest_pulls(&new).await?;
    ensure!(node.cri.cat(&old, "/data/three").await? == "three\n");

    node.cri.remove_container(&old).await?;
    let ensured = node.command(&["ensure", &image, "--handler", NYDUS, "--output", "json"])?;
    ensure!(ensured.status.success(), "{ensured:?}");
    node.assert_proxied().await?;
    node.assert_guest_pulls(&new).await?;
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_in_use_is_kept_on_2_1() -> Result<()> {
    a_chain_in_use_is_kept(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_chain_in_use_is_kept_on_1_7() -> Result<()> {
    a_chain_in_use_is_kept(Version::V1_7).await
}

/// containerd was killed in its own unpack and has left the lowest layer, without labels. The layers above are labelled, and
/// that is enough: a mount depends on the top layer alone. So the lowest one stays as it is, also for another image of it.
async fn a_layer_of_an_unfinished_unpack_stays(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    let image = node.image.clone();
    let (bottom, none) = (image.chain_ids()[0].clone(), Labels::new());
    let keeps = Labels::from([("containerd.io/gc.root".to_owned(), "1".to_owned())]);
    let store = &node.store;
    store.put_lease("unfinished", &none).await?;
    store
        .put_committed("unfinished", NYDUS, &bottom, "", &keeps)
        .await?;
    ensure!(node.state_of(&image, NYDUS).await? == "partial");
    let ensure = ["ensure", image.name(), "--handler", NYDUS];
    let ensured = node.command(&[&ensure[..], &["--output", "json"]].concat())?;
    ensure!(ensured.status.success(), "{ensured:?}");
    let report: serde_json::Value = serde_json::from_slice(&ensured.stdout)?;
    let kept = &report["results"][0]["layers_kept"];
    ensure!(kept == 1, "{report:#}");
    ensure!(node.state_of(&image, NYDUS).await? == "ready");

    node.serve(ON_DEMAND).await?;
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    for _ in 0..2 {
        let created = node.cri.create_container(&pod, image.name(), &[], &[]);
        let container = created.await?;
        node.assert_guest_pulls(&container).await?;
    }
    let chain = node.store.chain(NYDUS, &image).await?;
    ensure!(
        is_unlabelled(&chain[0]) && chain[1..].iter().all(is_proxied),
        "{chain:#?}"
    );
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_an_unfinished_unpack_stays_on_2_1() -> Result<()> {
    a_layer_of_an_unfinished_unpack_stays(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_layer_of_an_unfinished_unpack_stays_on_1_7() -> Result<()> {
    a_layer_of_an_unfinished_unpack_stays(Version::V1_7).await
}

/// Twenty containers are created at once, right after the pull. containerd's fallback unpacks on the host, and
/// the first creation of each container still gets the guest pull.
async fn twenty_creations_at_once_get_the_guest_pull(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve(ON_DEMAND).await?;
    for layers in [1, 10] {
        node.image = images::many_layers(&format!("registry.test/lab/many:{layers}"), layers)?;
        let image = node.image.name().to_owned();
        node.registry.push(&node.image).await?;
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        node.cri.pull_image(&image).await?;
        let creations = (0..20).map(|_| {
            let (mut cri, pod, image) = (node.cri.clone(), pod.clone(), image.clone());
            async move { cri.create_container(&pod, &image, &[], &[]).await }
        });
        for container in futures::future::join_all(creations).await {
            node.assert_guest_pulls(&container?).await?;
        }
        node.store.collect_garbage().await?;
        node.assert_nothing_left(NYDUS).await?;
        let ensured = node.command(&["ensure", &image, "--handler", NYDUS])?;
        ensure!(ensured.status.success(), "{ensured:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_creations_at_once_get_the_guest_pull_on_2_1() -> Result<()> {
    twenty_creations_at_once_get_the_guest_pull(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn twenty_creations_at_once_get_the_guest_pull_on_1_7() -> Result<()> {
    twenty_creations_at_once_get_the_guest_pull(Version::V1_7).await
}
