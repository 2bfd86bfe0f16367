//! Each state of an image's chain: come about as it does on a node, called by its word, left by
//! `ensure`, and left alone by the next one.

use anyhow::{Context, Result, ensure};
use lab::images::Builder;
use lab::{Image, Layer, Options, Remote, Version};

use crate::support::Node;

/// What the states come from, each with the word that `check` has for it, and with what `ensure` does
/// about it in a snapshotter that unpacks and in one that leaves images to the guest.
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

/// How an image comes to stand in a snapshotter as it does.
#[derive(Clone, Copy, Debug)]
enum Cause {
    /// Unpacked for the default snapshotter only.
    Imported,
    /// The same, and the layers' blobs are gone.
    Discarded,
    /// An image that it is built from is ready.
    BaseReady,
    /// containerd has unpacked it for a container, without labels.
    Fallback,
    /// The same over an image that it is built from.
    BaseReadyAndFallback,
    /// An image that is built from it is ready.
    ChildReady,
    /// It was ready, and went while a container kept its layers; then it came back.
    PulledAgain,
    /// Its configuration was lost, which only another pull brings back.
    ConfigLost,
    /// `ensure` has been there.
    Ready,
}

/// The lowest layers of an image that has one of its own for each of its causes and snapshotters.
fn image(name: &str, layers: usize) -> Image {
    let layer = |n: usize| Layer::new().file(&format!("f{n}"), 0o644, format!("{n} of {name}\n"));
    let image = Image::builder(format!("registry.test/{name}-{layers}:1")).command(&["/none"]);
    (0..layers).map(layer).fold(image, Builder::layer).build()
}

impl Node {
    /// Brings it about; answers the image.
    async fn bring_about(&mut self, cause: Cause, snapshotter: &str) -> Result<Image> {
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

    /// It stays ready, and neither `check` nor `ensure` writes anything, not even what it takes back.
    async fn assert_nothing_written(&self, image: &Image, snapshotter: &str) -> Result<()> {
        // It takes all that could still be on its way with it.
        self.store.collect_garbage().await?;
        let (metadata, database) = (self.store.metadata().await?, self.lab.database()?);
        ensure!(self.state_of(image, snapshotter).await? == "ready");
        ensure!(self.ensure_ready(image, snapshotter)? == "none");
        let changes = metadata.changes(&self.store.metadata().await?);
        ensure!(changes.is_empty(), "{changes:#?}");
        ensure!(self.lab.database()? == database, "written and taken back");
        Ok(())
    }
}

/// From each state to ready, and then nothing more.
async fn every_state(version: Version, snapshotter: &str) -> Result<()> {
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
        node.leaves(cause, state, action, snapshotter)
            .await
            .with_context(|| format!("{cause:?} in {snapshotter}"))?;
    }
    node.assert_nothing_left(snapshotter).await
}

impl Node {
    async fn leaves(
        &mut self,
        cause: Cause,
        state: &str,
        action: &str,
        snapshotter: &str,
    ) -> Result<()> {
        let image = self.bring_about(cause, snapshotter).await?;
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
async fn every_one_in_erofs_on_2_1() -> Result<()> {
    every_state(Version::V2_1, "erofs").await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_in_nydus_on_2_1() -> Result<()> {
    every_state(Version::V2_1, "nydus").await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_in_native_on_1_7() -> Result<()> {
    every_state(Version::V1_7, "native").await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_one_in_nydus_on_1_7() -> Result<()> {
    every_state(Version::V1_7, "nydus").await
}
