//! The two capabilities that the unit and the manifests leave to the plugin: what each is needed for, and that no other is.

use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, Plugin, Version};

use crate::support::{Node, PATIENCE, handler, write_script};

/// Those of the unit, in the words of `setpriv`.
const READ_ANY_FILE: &str = "+dac_read_search";
const SEE_OVERLAYFS: &str = "+sys_admin";

/// Both as a set of bits, which `/proc` shows.
const BOTH: u64 = 1 << 2 | 1 << 21;

impl Node {
    /// Runs `ensure` as root with these capabilities and no other.
    fn ensure_with(
        &self,
        snapshotter: &str,
        capabilities: &[&str],
        image: &Image,
    ) -> Result<Output> {
        let ensure = self.command_of(&["ensure", image.name(), "--snapshotter", snapshotter])?;
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
    let below = Layer::new().file("dir/hidden", 0o644, format!("hidden {n}\n"));
    let above = Layer::new().file("secret", 0, format!("{n}\n"));
    Image::builder(format!("registry.test/capabilities/app:{n}"))
        .command(&["/none"])
        .layer(below)
        .layer(above)
        .build()
}

async fn a_rebuild_needs_both_and_an_unpack_needs_none(version: Version) -> Result<()> {
    let node = Node::start(version).await?;
    let snapshotter = handler(version);
    for (n, capabilities) in [&[][..], &[READ_ANY_FILE], &[SEE_OVERLAYFS]]
        .into_iter()
        .enumerate()
    {
        let image = image(n);
        node.unpacked_without_blobs(&image).await?;
        let output = node.ensure_with(snapshotter, capabilities, &image)?;
        ensure!(
            output.status.code() == Some(1),
            "{capabilities:?}: {output:?}"
        );
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(text.contains("unavailable"), "{capabilities:?}: {text}");
        node.nothing_left(snapshotter).await?;
        let output = node.ensure_with(snapshotter, &[READ_ANY_FILE, SEE_OVERLAYFS], &image)?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        ensure!(
            output.status.success() && text.contains("rebuilt"),
            "{output:?}"
        );
    }
    let plain = image(10);
    node.store.put_image(&plain).await?;
    let output = node.ensure_with(snapshotter, &[], &plain)?;
    ensure!(output.status.success(), "{output:?}");
    ensure!(node.state_of(&plain, snapshotter).await? == "ready");
    node.nothing_left(snapshotter).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_needs_both_and_an_unpack_needs_none_on_2_1() -> Result<()> {
    a_rebuild_needs_both_and_an_unpack_needs_none(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_rebuild_needs_both_and_an_unpack_needs_none_on_1_7() -> Result<()> {
    a_rebuild_needs_both_and_an_unpack_needs_none(Version::V1_7).await
}

/// Returns the value of a line of a process's status.
pub(crate) fn of_status(status: &str, name: &str) -> Result<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix(name));
    let value = line.and_then(|line| line.strip_prefix(':'));
    let value = value.with_context(|| format!("{name}: {status}"))?;
    Ok(u64::from_str_radix(value.trim(), 16)?)
}

/// Checks that a process has both capabilities and no other, and cannot get more.
pub(crate) fn check_privileges(status: &str) -> Result<()> {
    for (set, expected) in [
        ("CapPrm", BOTH),
        ("CapEff", BOTH),
        ("CapBnd", BOTH),
        ("CapInh", 0),
        ("CapAmb", 0),
        ("NoNewPrivs", 1),
    ] {
        let found = of_status(status, set)?;
        ensure!(found == expected, "{set}: {found:x}, not {expected:x}");
    }
    Ok(())
}

/// The plugin with the capabilities of the unit: ahead, in a hook with and without blobs, and for a container that it moves.
async fn the_plugin_works_with_both_and_no_other(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let wrapper = node.lab.path("wrapper");
    let program = node.program.display();
    let text = format!(
        "#!/bin/sh\nexec setpriv --bounding-set=-all,{READ_ANY_FILE},{SEE_OVERLAYFS} --inh-caps=-all --no-new-privs \
         {program} \"$@\"\n"
    );
    write_script(&wrapper, &text)?;
    node.program = wrapper;
    let [ahead, asked_for] = [image(20), image(21)];
    node.unpacked_without_blobs(&ahead).await?;
    node.serve("").await?;
    let pid = node.plugin.as_ref().and_then(Plugin::pid);
    let pid = pid.context("the plugin does not run")?;
    check_privileges(&std::fs::read_to_string(format!("/proc/{pid}/status"))?)?;

    node.unpacked_without_blobs(&asked_for).await?;
    for image in [node.image.clone(), ahead, asked_for] {
        let annotation = [("nri-unpack/images", image.name())];
        let pod = node.cri.run_pod(handler, &annotation).await?;
        node.cri
            .create_container(&pod, image.name(), &[], &[])
            .await?;
        let chain = node.store.chain(handler, &image).await?;
        ensure!(chain.len() == image.layers.len(), "{}", image.name());
        node.image = image;
        node.wait_labelled(handler).await?;
    }
    let rebuilt = node.log.lines_with("rebuilt");
    ensure!(!rebuilt.is_empty(), "nothing was rebuilt");
    // Under the same limits: sockets are found, processes are read, and nothing is denied.
    for arguments in [
        &["doctor"][..],
        &["check"],
        &["handlers"],
        &["purge", "--dry-run"],
    ] {
        let output = node.command(arguments)?;
        let text = [&output.stdout[..], &output.stderr].concat();
        let text = String::from_utf8_lossy(&text);
        ensure!(!text.contains("not permitted"), "{arguments:?}: {text}");
    }
    for words in ["not permitted", "ermission denied"] {
        let lines = node.log.lines_with(words);
        ensure!(lines.is_empty(), "{lines:?}");
    }
    node.log.wait_for("reconcile finished", PATIENCE).await?;
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_works_with_both_and_no_other_on_2_1() -> Result<()> {
    the_plugin_works_with_both_and_no_other(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_plugin_works_with_both_and_no_other_on_1_7() -> Result<()> {
    the_plugin_works_with_both_and_no_other(Version::V1_7).await
}
