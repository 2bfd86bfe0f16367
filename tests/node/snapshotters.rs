//! A chain that `ensure` made has the same files as the default snapshotter's: a container starts from it, and
//! its files are equal. Remote snapshotters mount its layers.

use anyhow::{Result, ensure};
use lab::{Handler, Image, Layer, Options, Registry, Remote, Version, images};

use crate::rebuild::{self, nasty, tree};
use crate::support::{Node, PATIENCE};

/// Type, mode, owner, name and content digest of every file. Directories are omitted: their size depends on the
/// file system, and `mkfs.erofs` sets its own mode for directories that a layer does not list, also in
/// containerd's unpack.
const LISTING: &str = "cd / && find bin data etc root tmp var ! -type d | while read -r f; do \
    stat -c '%F %a %u:%g %s %n' \"$f\"; [ -L \"$f\" ] || sha256sum \"$f\"; done";

async fn files_equal_those_of_the_default(version: Version, snapshotters: &[&str]) -> Result<()> {
    let mut options = Options::new(version);
    options.handlers = snapshotters.iter().map(|s| Handler::new(s, s)).collect();
    let mut node = Node::start_with(version, options).await?;
    let expected = node.listing("").await?;
    ensure!(
        expected.lines().count() > 30 && expected.contains("data/three"),
        "{expected}"
    );
    for snapshotter in snapshotters {
        let ensured = node.command(&["ensure", node.image.name(), "--snapshotter", snapshotter])?;
        ensure!(ensured.status.success(), "{ensured:?}");
        node.assert_labelled(snapshotter).await?;
        let listing = node.listing(snapshotter).await?;
        ensure!(
            listing == expected,
            "{snapshotter}:\n{listing}\nexpected:\n{expected}"
        );
    }
    // The image [`NASTY`] has everything that is hard to unpack; its files are read from the mounts.
    node.image = nasty::image(rebuild::NASTY)?;
    node.lab.import(&node.image).await?;
    let expected = tree::of(&node, "overlayfs").await?;
    for snapshotter in snapshotters {
        let row = rebuild::ensured(&node, snapshotter)?;
        ensure!(row["action"] == "unpacked", "{row:#}");
        let unpacked = tree::of(&node, snapshotter).await?;
        let causes = rebuild::from_overlayfs(snapshotter);
        rebuild::assert_equal(snapshotter, &unpacked, &expected, causes)?;
    }
    Ok(())
}

impl Node {
    /// Runs a container of the image; returns the listing of its files.
    async fn listing(&mut self, handler: &str) -> Result<String> {
        let image = self.image.name().to_owned();
        let pod = self.cri.run_pod(handler, &[]).await?;
        let container = self.cri.create_container(&pod, &image, &[], &[]).await?;
        self.cri.start_container(&container).await?;
        let exec = self
            .cri
            .exec_sync(&container, &["sh", "-c", LISTING])
            .await?;
        ensure!(exec.code == 0, "{}", exec.stderr);
        self.cri.remove_pod(&pod).await?;
        let mut lines: Vec<_> = exec.stdout.lines().collect();
        lines.sort_unstable();
        Ok(lines.join("\n"))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn local_snapshotters_have_equal_files_on_2_1() -> Result<()> {
    files_equal_those_of_the_default(Version::V2_1, &["erofs", "native", "blockfile"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn local_snapshotters_have_equal_files_on_1_7() -> Result<()> {
    files_equal_those_of_the_default(Version::V1_7, &["native", "blockfile"]).await
}

/// soci mounts a layer with labels from the registry, and unpacks a layer without labels.
async fn soci_mounts(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Soci];
    let registry = Registry::start_with_tls().await?;
    let image = images::app(&registry.image("lab/app:1"))?;
    let mut node = Node::start_on(version, options, registry, image).await?;
    let layer = Layer::new().file("f", 0o644, "not lazy\n");
    let plain = Image::builder(node.registry.image("lab/plain:1"));
    let plain = plain.layer(layer).command(&["/none"]).build();
    node.registry.push(&plain).await?;
    node.cri.pull_image(plain.name()).await?;
    for image in [node.image.name(), plain.name()] {
        node.lab.publish_soci_index(image).await?;
    }

    let pod = node.cri.run_pod("soci", &[]).await?;
    let name = plain.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    let chain = node.store.chain("soci", &plain).await?;
    ensure!(chain.len() == 1, "{chain:#?}");
    let lazy = node.lazy_mounts()?;
    ensure!(lazy.is_empty(), "without labels: {lazy:#?}");

    let ensured = node.command(&["ensure", node.image.name(), "--handler", "soci"])?;
    ensure!(ensured.status.success(), "{ensured:?}");
    node.assert_labelled("soci").await?;
    let lazy = node.lazy_mounts()?;
    ensure!(lazy.len() == node.image.layers.len(), "{lazy:#?}");
    let expected = node.listing("").await?;
    ensure!(node.listing("soci").await? == expected);

    // With the plugin, an image that has an index is mounted before a pod asks for it, from a registry on a
    // non-default port.
    let next = images::own_layers(&node.registry.image("lab/next:1"), 2)?;
    node.registry.push(&next).await?;
    node.cri.pull_image(next.name()).await?;
    node.lab.publish_soci_index(next.name()).await?;
    node.cri.remove_image(next.name()).await?;
    node.store.collect_garbage().await?;
    node.serve("").await?;
    node.wait_reconciled("soci").await?;
    node.cri.pull_image(next.name()).await?;
    let shared = next.layers.len() - 2;
    node.wait_named_in("soci", &next, shared).await?;
    node.wait_lazy_mounts(node.image.layers.len() + 2).await?;
    node.assert_nothing_left("soci").await
}

impl Node {
    /// Waits until this many layers are mounted from a registry, without temporary mounts.
    pub(crate) async fn wait_lazy_mounts(&self, layers: usize) -> Result<()> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let lazy = self.lazy_mounts()?;
            if lazy.len() == layers {
                return Ok(());
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "not {layers}: {lazy:#?}"
            );
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    /// Returns the layers that are mounted from a registry.
    fn lazy_mounts(&self) -> Result<Vec<String>> {
        let dir = self.lab.path("").display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo")?;
        let lazy = |mount: &&str| mount.contains(&dir) && mount.contains("fuse.rawBridge");
        Ok(mounts.lines().filter(lazy).map(str::to_owned).collect())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn soci_mounts_on_2_1() -> Result<()> {
    soci_mounts(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn soci_mounts_on_1_7() -> Result<()> {
    soci_mounts(Version::V1_7).await
}
