//! The annotation `nri-unpack/mode: skip` is written by the author of a pod. On a snapshotter that rejects what is not
//! ready, it counts only in the namespaces that the configuration names.

use anyhow::{Context, Result, ensure};
use lab::{Image, Version};

use crate::after_pull::image;
use crate::guest_pull::{NYDUS, start};
use crate::left_alone::{MAY_SKIP, SKIP};
use crate::support::{Node, ON_DEMAND, PATIENCE};

const IGNORED: &str = "nri-unpack/mode: skip does not count in this namespace";

impl Node {
    /// Pulls an image and creates a container of it in a pod that says `skip`. Returns whether its guest pulls the image.
    async fn skipping_pod_is_guest_pulled(&mut self, image: &Image) -> Result<bool> {
        self.registry.push(image).await?;
        self.cri.pull_image(image.name()).await?;
        let pod = self.cri.run_pod(NYDUS, &[SKIP]).await?;
        let name = image.name();
        let container = self.cri.create_container(&pod, name, &[], &[]).await?;
        let mounts = self.store.mounts(NYDUS, &container).await?;
        self.cri.remove_pod(&pod).await?;
        let mut kinds = mounts.iter().map(|mount| mount.kind.as_str());
        Ok(kinds.any(|kind| kind == "fuse.nydus-overlayfs"))
    }
}

async fn a_tenant_does_not_skip(version: Version) -> Result<()> {
    let mut node = start(version).await?;
    node.serve(ON_DEMAND).await?;
    ensure!(node.skipping_pod_is_guest_pulled(&image(3, 0)).await?);
    ensure!(node.log.lines_with(IGNORED).len() == 1);

    let log = node.log.from_now();
    let allowed = node.config(&format!("{MAY_SKIP}{ON_DEMAND}"));
    node.plugin.as_ref().context("serving")?.reload(&allowed)?;
    log.wait_for("the configuration was read again", PATIENCE)
        .await?;
    ensure!(!node.skipping_pod_is_guest_pulled(&image(3, 1)).await?);
    ensure!(log.lines_with(IGNORED).is_empty());
    node.assert_nothing_left(NYDUS).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_does_not_skip_on_2_1() -> Result<()> {
    a_tenant_does_not_skip(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tenant_does_not_skip_on_1_7() -> Result<()> {
    a_tenant_does_not_skip(Version::V1_7).await
}
