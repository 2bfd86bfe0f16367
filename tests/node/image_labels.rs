//! Images that match `image_labels` become ready without `cri.*` labels: the pause image on soci, as in the
//! recipe, and on nydus.

use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{Image, Options, PAUSE, Remote, Version, images};

use crate::support::{CRI_LABELS, DEFAULT_HOOKS, Node, PATIENCE};

const SOCI: &str = include_str!("../../examples/config/soci.toml");
const NYDUS: &str = "[snapshotters.nydus.image_labels]\n\"*/pause:*\" = \"none\"\n";

async fn the_pause_image_gets_no_labels(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Soci, Remote::Nydus];
    // soci reaches no registry: it uses https, with a name that resolves to a host without a listener.
    let mut node = Node::start_with(version, options).await?;
    node.hooks = DEFAULT_HOOKS;
    let pause = images::pause(&[PAUSE])?;
    node.serve(&format!("{SOCI}\n{NYDUS}")).await?;
    for remote in [Remote::Soci, Remote::Nydus] {
        let snapshotter = remote.name();
        node.log
            .wait_for(
                &format!("image is ready ahead image={PAUSE} snapshotter={snapshotter} "),
                PATIENCE,
            )
            .await?;
        node.assert_without_labels(snapshotter, &pause).await?;
        let log = node.log.from_now();
        let began = Instant::now();
        let pod = node.cri.run_pod(snapshotter, &[]).await?;
        println!(
            "{version:?}: sandbox on {snapshotter} in {:?}",
            began.elapsed()
        );
        node.assert_without_labels(snapshotter, &pause).await?;
        let unpacked = log.lines_with(&format!("image={PAUSE} snapshotter={snapshotter} "));
        ensure!(
            unpacked.is_empty(),
            "unpacked for the pod, not ahead: {unpacked:#?}"
        );
        node.cri.remove_pod(&pod).await?;
    }
    // Neither the plugin nor containerd made soci request the pause image.
    let requested = node
        .lab
        .remote(Remote::Soci)
        .log()
        .lines_with("registry.test/pause");
    ensure!(requested.is_empty(), "{requested:#?}");
    // All other images have the labels.
    node.ensure_ready(&node.image.clone(), "nydus")?;
    node.assert_labelled("nydus").await?;
    node.assert_nothing_left("nydus").await
}

impl Node {
    async fn assert_without_labels(&self, snapshotter: &str, image: &Image) -> Result<()> {
        let chain = self.store.chain(snapshotter, image).await?;
        ensure!(chain.len() == image.layers.len(), "{chain:#?}");
        let is_unlabelled =
            |s: &lab::Snapshot| !CRI_LABELS.iter().any(|l| s.labels.contains_key(*l));
        ensure!(chain.iter().all(is_unlabelled), "{snapshotter}: {chain:#?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_gets_no_labels_on_2_1() -> Result<()> {
    the_pause_image_gets_no_labels(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_gets_no_labels_on_1_7() -> Result<()> {
    the_pause_image_gets_no_labels(Version::V1_7).await
}
