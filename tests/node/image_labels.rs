//! Images that are made ready without `cri.*` labels, by the patterns of `image_labels`: the pause image on soci,
//! as the recipe has it, and on nydus.

use std::time::Instant;

use anyhow::{Result, ensure};
use lab::{Image, Options, PAUSE, Remote, Version, images};

use crate::support::{CRI_LABELS, DEFAULT_HOOKS, Node, PATIENCE};

const SOCI: &str = include_str!("../../examples/config/soci.toml");
const NYDUS: &str = "[snapshotters.nydus.image_labels]\n\"*/pause:*\" = \"none\"\n";

async fn the_pause_image_goes_without(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Soci, Remote::Nydus];
    // soci reaches no registry: it asks over https, by a name that leads to nothing that answers.
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
        let made = log.lines_with(&format!("image={PAUSE} snapshotter={snapshotter} "));
        ensure!(made.is_empty(), "not ready before the pod: {made:#?}");
        node.cri.remove_pod(&pod).await?;
    }
    // Neither the plugin nor containerd has led it to ask for the pause image.
    let asked = node
        .lab
        .remote(Remote::Soci)
        .log()
        .lines_with("registry.test/pause");
    ensure!(asked.is_empty(), "{asked:#?}");
    // All others have the labels.
    node.ensure_ready(&node.image.clone(), "nydus")?;
    node.assert_labelled("nydus").await?;
    node.assert_nothing_left("nydus").await
}

impl Node {
    async fn assert_without_labels(&self, snapshotter: &str, image: &Image) -> Result<()> {
        let chain = self.store.chain(snapshotter, image).await?;
        ensure!(chain.len() == image.layers.len(), "{chain:#?}");
        let is_bare = |s: &lab::Snapshot| !CRI_LABELS.iter().any(|l| s.labels.contains_key(*l));
        ensure!(chain.iter().all(is_bare), "{snapshotter}: {chain:#?}");
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_goes_without_on_2_1() -> Result<()> {
    the_pause_image_goes_without(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_pause_image_goes_without_on_1_7() -> Result<()> {
    the_pause_image_goes_without(Version::V1_7).await
}
