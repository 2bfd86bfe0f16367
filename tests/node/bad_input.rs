//! Bad input gets an error that names the faulty thing and the remedy. No lease or snapshot remains, and the
//! plugin keeps running.

use std::process::Command;

use anyhow::{Result, ensure};
use lab::{Flaw, Image, Layer, Version, images};

use crate::support::{LaunchedBy, Node, PROGRAM, handler};

/// Runs the program; returns its exit code, and the text of both streams.
fn run(arguments: &[&str]) -> Result<(Option<i32>, String)> {
    let output = Command::new(PROGRAM).args(arguments).output()?;
    Ok((output.status.code(), text(&output)))
}

fn text(output: &std::process::Output) -> String {
    let both = [&output.stdout[..], &output.stderr[..]].concat();
    String::from_utf8_lossy(&both).into_owned()
}

#[test]
fn a_bad_configuration_is_named_by_file_line_and_key() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.toml");
    for (content, words) in [
        (
            "[hooks]\nwiat = \"1s\"\n",
            "config.toml:2:1: hooks.wiat: unknown field",
        ),
        (
            "[hooks]\nswap = \"yes\"\n",
            "config.toml:2:8: hooks.swap: invalid type",
        ),
        (
            "[nri]\nindex = \"7\"\n",
            "config.toml:2:9: nri.index: plugin index \"7\" must be two digits",
        ),
        ("[nri\n", "config.toml:1"),
    ] {
        std::fs::write(&file, content)?;
        let path = file.to_str().expect("UTF-8");
        for command in [
            &["config", "--check", path][..],
            &["run", "--config", path],
            &["check", "--config", path],
        ] {
            let (code, printed) = run(command)?;
            ensure!(
                code == Some(2) && printed.contains(words),
                "{command:?}: {code:?}: {printed}"
            );
        }
    }
    let (code, printed) = run(&["config", "--check", "/nowhere.toml"])?;
    ensure!(
        code == Some(2) && printed.contains("/nowhere.toml"),
        "{printed}"
    );
    Ok(())
}

#[test]
fn the_default_configuration_is_valid() -> Result<()> {
    let (code, text) = run(&["config", "--default"])?;
    ensure!(code == Some(0));
    let dir = tempfile::tempdir()?;
    let file = dir.path().join("config.toml");
    std::fs::write(&file, text)?;
    let (code, printed) = run(&["config", "--check", file.to_str().expect("UTF-8")])?;
    ensure!(code == Some(0), "{printed}");
    Ok(())
}

#[test]
fn commands_exit_with_3_without_containerd() -> Result<()> {
    for command in [
        &["check"][..],
        &["handlers"],
        &["ensure", "a:1", "--snapshotter", "erofs"],
        &["check", "a:1", "--snapshotter", "erofs"],
    ] {
        let socket = ["--containerd-socket", "/nowhere/containerd.sock"];
        let (code, printed) = run(&[command, &socket].concat())?;
        ensure!(
            code == Some(3) && printed.contains("/nowhere/containerd.sock"),
            "{command:?}: {code:?}: {printed}"
        );
    }
    Ok(())
}

#[test]
fn wrong_usage_exits_with_2() -> Result<()> {
    for (arguments, words) in [
        (&["ensure", "a:1"][..], "--snapshotter"),
        (&["ensure", "--snapshotter", "erofs"], "<IMAGE>"),
        (
            &["check", "--handler", "a", "--snapshotter", "b"],
            "cannot be used with",
        ),
        (
            &["check", "--namespace", "a b"],
            "\"a b\" is not a containerd namespace",
        ),
        (
            &["check", "--containerd-socket", "x"],
            "the path is not absolute",
        ),
        (&["frobnicate"], "frobnicate"),
        (&[], "Usage"),
    ] {
        let (code, printed) = run(arguments)?;
        ensure!(
            code == Some(2) && printed.contains(words),
            "{arguments:?}: {code:?}: {printed}"
        );
    }
    Ok(())
}

/// The plugin waits for a socket that does not exist, and logs this once.
#[tokio::test(flavor = "multi_thread")]
async fn the_daemon_waits_for_its_socket() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    node.lab.kill();
    let mut plugin = lab::Plugin::start(&node.lab, PROGRAM, &node.config(""))?;
    node.log = plugin.log().clone();
    node.wait_for_lines("trying again", 1).await?;
    // At debug.
    node.wait_for_lines("cannot connect", 3).await?;
    ensure!(
        node.log.lines_with("trying again").len() == 1,
        "not logged exactly once"
    );
    node.lab.restart().await?;
    node.wait_for_lines(crate::support::RESOLVED, 1).await?;
    let ended = plugin.stop().await?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn missing_things_are_named() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    for (arguments, code, words) in [
        (
            &["ensure", "nope:1", "--handler", "erofs"][..],
            1,
            "image nope:1 is not in containerd's image store: pull it first",
        ),
        (
            &["check", "nope:1", "--handler", "erofs"],
            1,
            "image nope:1 is not in containerd's image store: pull it first",
        ),
        (
            &["ensure", crate::support::APP, "--snapshotter", "zfs9"],
            2,
            "containerd has no snapshotter zfs9; it has ",
        ),
        (
            &["check", "--handler", "kata"],
            2,
            "runtime handler \"kata\" is not known (known: erofs, native, runc)",
        ),
        (
            &["check", "--snapshotter", "devmapper"],
            1,
            "snapshotter devmapper did not start",
        ),
    ] {
        let output = node.command(arguments)?;
        let printed = text(&output);
        ensure!(
            output.status.code() == Some(code) && printed.contains(words),
            "{arguments:?}: {output:?}"
        );
    }
    Ok(())
}

/// Broken images: the log of a pod's hook and `ensure` name each of them, and the next pod is served.
async fn each_broken_image_is_named(version: Version) -> Result<()> {
    let mut node = Node::serving(version, LaunchedBy::Itself).await?;
    let handler = handler(version);
    for (name, flaw, words) in [
        ("truncated", Flaw::ManifestTruncated, "manifest sha256:"),
        (
            "mismatched",
            Flaw::DiffIdMissing,
            "layers, but its config sha256:",
        ),
        ("wrong", Flaw::WrongDiffId(1), "unpacks to sha256:"),
        (
            "absent",
            Flaw::LayerMissing(1),
            "its blob is not in the content store",
        ),
    ] {
        let name = format!("registry.test/broken/{name}:1");
        // These images share no blob.
        let layer =
            |n: usize| Layer::new().file(&format!("f{n}"), 0o644, format!("{n} of {name}\n"));
        let image = Image::builder(&name)
            .layer(layer(1))
            .layer(layer(2))
            .layer(layer(3));
        let (sound, image) = (image.clone().build(), image.flaw(flaw).build());
        node.store.put_image(&image).await?;

        let ensured = node.command(&["ensure", &name, "--handler", handler])?;
        let printed = text(&ensured);
        ensure!(ensured.status.code() == Some(1), "{ensured:?}");
        ensure!(
            printed.contains(&name) && printed.contains(words),
            "{flaw:?}: {printed}"
        );

        let pod = node
            .cri
            .run_pod(handler, &[("nri-unpack/images", &name)])
            .await?;
        node.wait_for_lines(words, 1).await?;
        node.cri.remove_pod(&pod).await?;
        node.assert_nothing_left(handler).await?;

        // The remedy of the message helps.
        node.registry.push(&sound).await?;
        match flaw {
            Flaw::LayerMissing(_) => {
                ensure!(printed.contains("content fetch --hosts-dir"), "{printed}");
                node.fetch(&name).await?;
            }
            _ => {
                ensure!(printed.contains("push"), "{printed}");
                node.cri.pull_image(&name).await?;
            }
        }
        node.ensure_ready(&sound, handler)?;
        node.image = sound;
    }
    assert_changed_config_is_named(&mut node, handler).await?;
    let good = images::app("registry.test/lab/good:1")?;
    node.store.put_image(&good).await?;
    node.cri
        .run_pod(handler, &[("nri-unpack/images", good.name())])
        .await?;
    node.image = good;
    node.assert_labelled(handler).await
}

/// The config of the node's image is changed on disk.
async fn assert_changed_config_is_named(node: &mut Node, handler: &str) -> Result<()> {
    let digest = &node.image.config.digest;
    let content = node.lab.path("root/io.containerd.content.v1.content");
    let blob = content.join("blobs").join(digest.replace(':', "/"));
    std::fs::write(blob, "{}")?;
    let name = node.image.name().to_owned();
    let refused = node.command(&["ensure", &name, "--handler", handler])?;
    let printed = text(&refused);
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    let remedy = format!("`crictl rmi {name}` and `crictl pull {name}`");
    for words in ["its 2 bytes do not match this digest", &remedy] {
        ensure!(printed.contains(words), "{words}: {printed}");
    }
    node.cri.remove_image(&name).await?;
    node.cri.pull_image(&name).await?;
    node.ensure_ready(&node.image, handler)?;
    Ok(())
}

impl Node {
    /// Fetches the missing content of an image, as the messages advise.
    async fn fetch(&self, name: &str) -> Result<()> {
        let hosts = self.lab.path("hosts").display().to_string();
        let command = ["content", "fetch", "--hosts-dir", &hosts, name];
        self.lab.ctr(&command).await?;
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_broken_image_is_named_on_2_1() -> Result<()> {
    each_broken_image_is_named(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_broken_image_is_named_on_1_7() -> Result<()> {
    each_broken_image_is_named(Version::V1_7).await
}

/// A plugin that containerd launched with a bad configuration stays in standby. containerd and its pods keep
/// running.
#[tokio::test(flavor = "multi_thread")]
async fn containerd_runs_with_a_badly_configured_plugin() -> Result<()> {
    for version in Version::ALL {
        let mut node = Node::start(version).await?;
        let link = node.lab.path("nri/plugins/10-nri-unpack");
        std::os::unix::fs::symlink(PROGRAM, link)?;
        let config = node.lab.path("nri/conf.d/10-nri-unpack.conf");
        std::fs::write(config, "[hooks]\nwiat = \"1s\"\n")?;
        node.restart_containerd().await?;
        let pod = node.cri.run_pod(handler(version), &[]).await?;
        node.cri
            .create_container(&pod, crate::support::APP, &[], &[])
            .await?;
        let log = node.lab.log().text();
        ensure!(
            log.contains("nri-unpack"),
            "containerd did not launch the plugin"
        );
        ensure!(
            !log.contains("failed to start pre-installed NRI plugin"),
            "{log}"
        );
    }
    Ok(())
}
