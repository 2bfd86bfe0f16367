//! nydus-snapshotter that is restarted in another mode while the plugin runs, and an image that says of itself that the
//! guest pulls it.

use anyhow::{Result, ensure};
use lab::{Image, Layer, Options, Remote, Version};
use tokio::time::{Instant, sleep};

use crate::guest_pull::{NYDUS, start, start_with};
use crate::support::{Node, ON_DEMAND, PATIENCE};

/// The label with which nydus-snapshotter marks a layer that the guest pulls.
const PROXIED: &str = "containerd.io/snapshot/nydus-proxy-mode";

/// The mode in which the guest pulls.
const PROXY: &str = "proxy";

/// A mode in which the host unpacks, without a daemon for each image.
const ON_HOST: &str = "nodev";

impl Node {
    /// Restarts nydus-snapshotter in this mode, on the same state, and waits until containerd has reached it.
    async fn restart_nydus(&self, mode: &str) -> Result<()> {
        let path = self.lab.path("nydus.toml");
        let config = std::fs::read_to_string(&path)?;
        let lines = config
            .lines()
            .map(|line| match line.starts_with("fs_driver") {
                true => format!("fs_driver = {mode:?}"),
                false => line.to_owned(),
            });
        std::fs::write(&path, lines.collect::<Vec<_>>().join("\n"))?;
        let nydus = self.lab.remote(Remote::Nydus);
        nydus.kill();
        nydus.restart().await?;
        let deadline = Instant::now() + PATIENCE;
        while self.store.snapshots(NYDUS).await.is_err() {
            ensure!(Instant::now() < deadline, "nydus cannot be reached");
            sleep(std::time::Duration::from_millis(50)).await;
        }
        Ok(())
    }

    async fn proxied_layers(&self, image: &Image) -> Result<usize> {
        let chain = self.store.chain(NYDUS, image).await?;
        let proxied = chain.iter().filter(|s| s.labels.contains_key(PROXIED));
        Ok(proxied.count())
    }
}

/// The host's unpack, which was ready, is not what a guest may run; and empty layers are not what the host may run.
async fn the_mode_of_a_restarted_nydus_is_found_out(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.restart_nydus(ON_HOST).await?;
    node.serve(ON_DEMAND).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    // The host unpacks, and the plugin adds the labels: the chain is ready.
    let first = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.wait_labelled(NYDUS).await?;
    ensure!(node.proxied_layers(&node.image).await? == 0);
    let second = node.cri.create_container(&pod, &image, &[], &[]).await?;
    for container in [&first, &second] {
        node.cri.start_container(container).await?;
        ensure!(node.cri.cat(container, "/data/three").await? == "three\n");
    }

    node.restart_nydus(PROXY).await?;
    let third = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.assert_guest_pulls(&third).await?;
    ensure!(node.log.lines_with("container moved").len() == 1);
    node.cri.remove_pod(&pod).await?;
    node.wait_for_lines("is replaced", 1).await?;
    ensure!(node.state_of(&node.image, NYDUS).await? == "ready");
    ensure!(node.proxied_layers(&node.image).await? > 0);

    node.restart_nydus(ON_HOST).await?;
    ensure!(node.ensure_ready(&node.image, NYDUS)? == "replaced");
    ensure!(node.proxied_layers(&node.image).await? == 0);
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");
    let found = node
        .log
        .lines_with("found out whether the guest pulls images");
    ensure!(found.len() == 3, "{found:#?}");
    node.assert_nothing_left(NYDUS).await
}

/// containerd's own labelled pull makes a label of each annotation. One such image makes no other image look unlabelled
/// where the host unpacks, nor itself broken.
async fn an_annotation_marks_no_layer(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.snapshot_annotations = true;
    options.pull_by_handler = true;
    options.remotes = vec![Remote::Nydus];
    let mut node = start_with(version, options).await?;
    node.restart_nydus(ON_HOST).await?;
    let file = |name| Layer::new().file(name, 0o644, "not for a guest\n");
    let marked = Image::builder("registry.test/lab/marked:1");
    let marked = marked.layer(file("low").annotate(PROXIED, "true"));
    let marked = marked.layer(file("high")).command(&["/none"]).build();
    node.registry.push(&marked).await?;
    for handler in [NYDUS, "native"] {
        node.cri.pull_image_for(marked.name(), handler).await?;
        let labels = node.store.chain(handler, &marked).await?;
        ensure!(labels[0].labels.contains_key(PROXIED), "{labels:#?}");
        ensure!(node.ensure_ready(&node.image, handler)? == "unpacked");
        for image in [&node.image, &marked] {
            let state = node.state_of(image, handler).await?;
            ensure!(state == "ready", "{} in {handler}: {state}", image.name());
        }
    }
    // What the plugin unpacks does not get the label at all.
    let ours = Image::builder("registry.test/lab/ours:1");
    let ours = ours.layer(file("own").annotate(PROXIED, "true"));
    let ours = ours.command(&["/none"]).build();
    node.registry.push(&ours).await?;
    node.cri.pull_image(ours.name()).await?;
    ensure!(node.ensure_ready(&ours, NYDUS)? == "unpacked");
    ensure!(node.proxied_layers(&ours).await? == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_marks_no_layer_on_2_1() -> Result<()> {
    an_annotation_marks_no_layer(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn an_annotation_marks_no_layer_on_1_7() -> Result<()> {
    an_annotation_marks_no_layer(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_of_a_restarted_nydus_is_found_out_on_2_1() -> Result<()> {
    the_mode_of_a_restarted_nydus_is_found_out(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_mode_of_a_restarted_nydus_is_found_out_on_1_7() -> Result<()> {
    the_mode_of_a_restarted_nydus_is_found_out(Version::V1_7).await
}

/// The name says nydus, but the host unpacks: a container whose image is not ready in time is only slow.
async fn nydus_on_the_host_rejects_nothing(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.hooks = "[hooks]\nwait = \"1ms\"";
    node.restart_nydus(ON_HOST).await?;
    node.serve(ON_DEMAND).await?;
    let found = "found out whether the guest pulls images";
    node.log.wait_for(found, PATIENCE).await?;
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(NYDUS, &[]).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.cri.start_container(&container).await?;
    ensure!(node.log.lines_with("verdict=let_pass").len() == 1);

    // A guest must not run it.
    node.restart_nydus(PROXY).await?;
    let next = node.cri.create_container(&pod, &image, &[], &[]).await;
    ensure!(
        next.is_err(),
        "a container on the host's unpack was allowed"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_the_host_rejects_nothing_on_2_1() -> Result<()> {
    nydus_on_the_host_rejects_nothing(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn nydus_on_the_host_rejects_nothing_on_1_7() -> Result<()> {
    nydus_on_the_host_rejects_nothing(Version::V1_7).await
}
