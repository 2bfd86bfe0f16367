//! Each state of an image's chain is caused as on a real node, and `check` names it. `ensure` makes the image
//! ready, and a second `ensure` changes nothing.

use anyhow::{Context, Result, ensure};
use lab::images::Builder;
use lab::{Image, Layer, Options, Remote, Version};

use crate::support::Node;

/// The causes of the states, each with the state's name and with the actions of `ensure`: in a snapshotter that
/// unpacks and in one that leaves images to the guest.
const STATES: [(Cause, &str, [&str; 2]); 11] = [
    (Cause::Imported, "missing", ["unpacked", "unpacked"]),
    (Cause::Discarded, "unavailable", ["rebuilt", "-"]),
    (Cause::Discarded, "missing", ["-", "unpacked"]),
    (Cause::BaseReady, "partial", ["unpacked", "unpacked"]),
    (Cause::Fallback, "unlabelled", ["relabelled", "replaced"]),
    (
        Cause::BaseReadyAndFallback,
        "unlabelled",
        ["relabelled", "-"],
    ),
    (Cause::BaseReadyAndFallback, "mixed", ["-", "replaced"]),
    (Cause::ChildReady, "foreign", ["relabelled", "relabelled"]),
    (Cause::PulledAgain, "unanchored", ["anchored", "anchored"]),
    (Cause::ConfigLost, "unavailable", ["unpacked", "unpacked"]),
    (Cause::Ready, "ready", ["none", "none"]),
];

/// The cause of the state of an image in a snapshotter.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// The image was unpacked for the default snapshotter only.
    Imported,
    /// The same, and the blobs of the layers are missing.
    Discarded,
    /// An image from which this one is built is ready.
    BaseReady,
    /// containerd has unpacked it for a container, without labels.
    Fallback,
    /// The same, on top of an image from which this one is built.
    BaseReadyAndFallback,
    /// An image that is built from this one is ready.
    ChildReady,
    /// The image was ready and was removed, while a container kept its layers. Then it was pulled again.
    PulledAgain,
    /// The config is missing, and only another pull restores it.
    ConfigLost,
    /// `ensure` has made it ready.
    Ready,
}

/// Returns the base image, with one own layer for each cause and snapshotter.
fn image(name: &str, layers: usize) -> Image {
    let layer = |n: usize| Layer::new().file(&format!("f{n}"), 0o644, format!("{n} of {name}\n"));
    let image = Image::builder(format!("registry.test/{name}-{layers}:1")).command(&["/none"]);
    (0..layers).map(layer).fold(image, Builder::layer).build()
}

impl Node {
    /// Causes the state; returns the image.
    async fn create_state(&mut self, cause: Cause, snapshotter: &str) -> Result<Image> {
        let name = format!("{snapshotter}/{cause:?}").to_lowercase();
        let (base, child) = (image(&name, 2), image(&name, 4));
        self.lab.import(&child).await?;
        match cause {
            Cause::Imported => {}
            Cause::Discarded => {
                for layer in &child.layers {
                    self.store.delete_content(&layer.digest).await?;
                }
            }
            Cause::Fallback => self.let_containerd_unpack(&child, snapshotter).await?,
            Cause::BaseReady | Cause::BaseReadyAndFallback => {
                self.lab.import(&base).await?;
                self.ensure_ready(&base, snapshotter)?;
                if let Cause::BaseReadyAndFallback = cause {
                    self.let_containerd_unpack(&child, snapshotter).await?;
                }
            }
            Cause::ChildReady => {
                self.lab.import(&base).await?;
                self.ensure_ready(&child, snapshotter)?;
                return Ok(base);
            }
            Cause::PulledAgain => {
                self.ensure_ready(&child, snapshotter)?;
                let pod = self.cri.run_pod(snapshotter, &[]).await?;
                self.cri
                    .create_container(&pod, child.name(), &[], &[])
                    .await?;
                self.cri.remove_image(child.name()).await?;
                self.store.collect_garbage().await?;
                self.lab.import(&child).await?;
            }
            Cause::ConfigLost => self.store.delete_content(&child.config.digest).await?,
            Cause::Ready => drop(self.ensure_ready(&child, snapshotter)?),
        }
        Ok(child)
    }

    async fn let_containerd_unpack(&mut self, image: &Image, snapshotter: &str) -> Result<()> {
        let pod = self.cri.run_pod(snapshotter, &[]).await?;
        self.cri
            .create_container(&pod, image.name(), &[], &[])
            .await?;
        Ok(self.cri.remove_pod(&pod).await?)
    }

    /// Checks that the image stays ready, and that neither `check` nor `ensure` writes anything, not even
    /// temporarily.
    async fn assert_nothing_written(&self, image: &Image, snapshotter: &str) -> Result<()> {
        // This collects everything that could still change the database.
        self.store.collect_garbage().await?;
        let (metadata, database) = (self.store.metadata().await?, self.lab.database()?);
        ensure!(self.state_of(image, snapshotter).await? == "ready");
        ensure!(self.ensure_ready(image, snapshotter)? == "none");
        let changes = metadata.changes(&self.store.metadata().await?);
        ensure!(changes.is_empty(), "{changes:#?}");
        ensure!(self.lab.database()? == database, "the database was changed");
        Ok(())
    }
}

/// `ensure` makes each state ready; a second `ensure` changes nothing.
async fn each_state_becomes_ready(version: Version, snapshotter: &str) -> Result<()> {
    let guest_pulls = snapshotter == Remote::Nydus.name();
    let mut options = Options::new(version);
    if guest_pulls {
        options.remotes = vec![Remote::Nydus];
    }
    let mut node = Node::start_with(version, options).await?;
    for (cause, state, actions) in STATES {
        let action = actions[usize::from(guest_pulls)];
        if action == "-" {
            continue;
        }
        node.assert_ensured(cause, state, action, snapshotter)
            .await
            .with_context(|| format!("{cause:?} in {snapshotter}"))?;
    }
    node.assert_nothing_left(snapshotter).await
}

impl Node {
    async fn assert_ensured(
        &mut self,
        cause: Cause,
        state: &str,
        action: &str,
        snapshotter: &str,
    ) -> Result<()> {
        let image = self.create_state(cause, snapshotter).await?;
        let now = self.state_of(&image, snapshotter).await?;
        ensure!(now == state, "{now}");
        if let Cause::ConfigLost = cause {
            let row = self.row(&["ensure", image.name(), "--snapshotter", snapshotter])?;
            let error = row["error"].as_str().unwrap_or_default();
            ensure!(
                row["state"] == state && error.contains(&image.config.digest),
                "{row:#}"
            );
            self.lab.import(&image).await?;
        }
        let done = self.ensure_ready(&image, snapshotter)?;
        ensure!(done == action, "{done}");
        self.assert_nothing_written(&image, snapshotter).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_becomes_ready_in_erofs_on_2_1() -> Result<()> {
    each_state_becomes_ready(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_becomes_ready_in_nydus_on_2_1() -> Result<()> {
    each_state_becomes_ready(Version::V2_1, "nydus").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_becomes_ready_in_native_on_1_7() -> Result<()> {
    each_state_becomes_ready(Version::V1_7, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_state_becomes_ready_in_nydus_on_1_7() -> Result<()> {
    each_state_becomes_ready(Version::V1_7, "nydus").await
}
