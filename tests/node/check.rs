//! `check` shows what can be looked at, also where one of several snapshotters does not work.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use lab::{Options, Remote, Version};
use serde_json::Value;

use crate::support::Node;

/// The snapshotters of the rows of a report.
fn places(output: &Output) -> Result<Vec<String>> {
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rows = report["images"].as_array().context("a report")?.iter();
    let places = rows.filter_map(|row| row["snapshotter"].as_str());
    Ok(places.map(str::to_owned).collect())
}

async fn start() -> Result<Node> {
    let mut options = Options::new(Version::V2_1);
    options.remotes = vec![Remote::Nydus];
    Node::start_with(Version::V2_1, options).await
}

/// The others' rows are there, and the status is that of a node on which something is wrong.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshotter_that_is_down_is_named() -> Result<()> {
    let node = start().await?;
    let image = node.image.name();
    for snapshotter in ["erofs", "native", "nydus"] {
        let ensured = node.command(&["ensure", image, "--snapshotter", snapshotter])?;
        ensure!(ensured.status.success(), "{ensured:?}");
    }
    let check = ["check", image, "--output", "json"];
    let all = node.command(&check)?;
    ensure!(
        all.status.success() && places(&all)? == ["erofs", "native", "nydus"],
        "{all:?}"
    );

    node.lab.remote(Remote::Nydus).kill();
    for (more, expected) in [
        (&[][..], &["erofs", "native"][..]),
        (&["--handler", "nydus"], &[]),
    ] {
        let checked = node.command(&[&check[..], more].concat())?;
        let said = String::from_utf8_lossy(&checked.stderr);
        ensure!(checked.status.code() == Some(1), "{checked:?}");
        ensure!(places(&checked)? == expected, "{checked:?}");
        ensure!(
            said.contains("snapshotter nydus does not answer: ")
                && said.contains("connection refused")
                && said.lines().count() == 1,
            "{said}"
        );
    }

    // All images, of which the first tells that it is down.
    let checked = node.command(&["check"])?;
    let said = String::from_utf8_lossy(&checked.stderr);
    ensure!(
        checked.status.code() == Some(1) && said.lines().count() == 1,
        "{checked:?}"
    );

    node.lab.kill();
    let checked = node.command(&check)?;
    ensure!(checked.status.code() == Some(3), "{checked:?}");
    Ok(())
}

/// A handler's snapshotter that containerd does not have, or that did not come up.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshotter_that_is_not_there_is_named() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let config = node.lab.path("handlers.toml");
    let handlers = "[handlers]\nkata = \"zfs9\"\nvm = \"devmapper\"\n";
    std::fs::write(&config, node.config(handlers))?;
    let config = config.to_str().context("a path")?;
    let checked = std::process::Command::new(crate::support::PROGRAM)
        .args(["check", node.image.name(), "--output", "json"])
        .args(["--config", config])
        .output()?;
    let said = String::from_utf8_lossy(&checked.stderr);
    ensure!(checked.status.code() == Some(1), "{checked:?}");
    ensure!(places(&checked)? == ["erofs", "native"], "{checked:?}");
    for words in [
        "containerd has no snapshotter zfs9",
        "snapshotter devmapper did not come up: ",
    ] {
        ensure!(said.contains(words), "{said}");
    }
    Ok(())
}
