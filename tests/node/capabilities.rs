//! The two capabilities that the unit and the manifests leave to the plugin: what each is needed for, and that no other is.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, Version};

use crate::support::Node;

const EROFS: &str = "erofs";

/// Those of the unit, in the words of `setpriv`.
const READ_ANY_FILE: &str = "+dac_read_search";
const SEE_OVERLAYFS: &str = "+sys_admin";

impl Node {
    /// Runs `ensure` as root with these capabilities and no other.
    fn ensure_with(&self, capabilities: &[&str], image: &Image) -> Result<Output> {
        let ensure = self.command_of(&["ensure", image.name(), "--snapshotter", EROFS])?;
        let set = [&["-all"], capabilities].concat().join(",");
        let mut command = Command::new("setpriv");
        command
            .arg(format!("--bounding-set={set}"))
            .arg("--inh-caps=-all");
        command.arg(ensure.get_program()).args(ensure.get_args());
        command
            .output()
            .context("running setpriv, of the package util-linux")
    }

    /// Brings an image into overlayfs, and removes its blobs.
    async fn unpacked_without_blobs(&self, image: &Image) -> Result<()> {
        self.lab.import(image).await?;
        for layer in &image.layers {
            self.store.delete_content(&layer.digest).await?;
        }
        Ok(())
    }
}

/// A file that its owner, root, may not read, and a directory that hides what is below it.
fn image(n: usize) -> Image {
    let below = Layer::new().file("dir/hidden", 0o644, "hidden\n");
    let above = Layer::new().file("secret", 0, format!("{n}\n"));
    Image::builder(format!("registry.test/capabilities/app:{n}"))
        .command(&["/none"])
        .layer(below)
        .layer(above)
        .build()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_needs_both_and_an_unpack_needs_none() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    for (n, capabilities) in [&[][..], &[READ_ANY_FILE], &[SEE_OVERLAYFS]]
        .into_iter()
        .enumerate()
    {
        let image = image(n);
        node.unpacked_without_blobs(&image).await?;
        let output = node.ensure_with(capabilities, &image)?;
        ensure!(
            output.status.code() == Some(1),
            "{capabilities:?}: {output:?}"
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("unavailable"), "{capabilities:?}: {text}");
        node.nothing_left(EROFS).await?;
        let output = node.ensure_with(&[READ_ANY_FILE, SEE_OVERLAYFS], &image)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && text.contains("rebuilt"),
            "{output:?}"
        );
    }
    let plain = image(10);
    node.store.put_image(&plain).await?;
    let output = node.ensure_with(&[], &plain)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(node.state_of(&plain, EROFS).await? == "ready");
    node.nothing_left(EROFS).await
}
