//! `check` shows everything that it can read, also if one of several snapshotters does not work.

use std::process::Output;

use anyhow::{Context, Result, ensure};
use lab::{Options, Remote, Version};
use serde_json::Value;

use crate::support::Node;

/// Returns the snapshotters of the rows of a report.
fn row_snapshotters(output: &Output) -> Result<Vec<String>> {
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let rows = report["images"].as_array().context("a report")?.iter();
    let row_snapshotters = rows.filter_map(|row| row["snapshotter"].as_str());
    Ok(row_snapshotters.map(str::to_owned).collect())
}

async fn start() -> Result<Node> {
    let mut options = Options::new(Version::V2_1);
    options.remotes = vec![Remote::Nydus];
    Node::start_with(Version::V2_1, options).await
}

/// The rows of the other snapshotters are shown, and the exit code is 1.
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
        all.status.success() && row_snapshotters(&all)? == ["erofs", "native", "nydus"],
        "{all:?}"
    );

    node.lab.remote(Remote::Nydus).kill();
    for (more, expected) in [
        (&[][..], &["erofs", "native"][..]),
        (&["--handler", "nydus"], &[]),
    ] {
        let checked = node.command(&[&check[..], more].concat())?;
        let printed = String::from_utf8_lossy(&checked.stderr);
        ensure!(checked.status.code() == Some(1), "{checked:?}");
        ensure!(row_snapshotters(&checked)? == expected, "{checked:?}");
        ensure!(
            printed.contains("snapshotter nydus does not answer: ")
                // The call may meet the end of the old connection before the socket has no listener.
                && ["connection refused", "EOF"].iter().any(|it| printed.contains(it))
                && printed.lines().count() == 1,
            "{printed}"
        );
    }

    // All images: the first call shows that the snapshotter is down.
    let checked = node.command(&["check"])?;
    let printed = String::from_utf8_lossy(&checked.stderr);
    ensure!(
        checked.status.code() == Some(1) && printed.lines().count() == 1,
        "{checked:?}"
    );

    node.lab.kill();
    let checked = node.command(&check)?;
    ensure!(checked.status.code() == Some(3), "{checked:?}");
    Ok(())
}

/// A handler's snapshotter that containerd does not have, or that did not start.
#[tokio::test(flavor = "multi_thread")]
async fn a_missing_snapshotter_is_named() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let config = node.lab.path("handlers.toml");
    let handlers = "[handlers]\nkata = \"zfs9\"\nvm = \"devmapper\"\n";
    std::fs::write(&config, node.config(handlers))?;
    let config = config.to_str().context("a path")?;
    let checked = std::process::Command::new(crate::support::PROGRAM)
        .args(["check", node.image.name(), "--output", "json"])
        .args(["--config", config])
        .output()?;
    let printed = String::from_utf8_lossy(&checked.stderr);
    ensure!(checked.status.code() == Some(1), "{checked:?}");
    ensure!(
        row_snapshotters(&checked)? == ["erofs", "native"],
        "{checked:?}"
    );
    for words in [
        "containerd has no snapshotter zfs9",
        "snapshotter devmapper did not start: ",
    ] {
        ensure!(printed.contains(words), "{printed}");
    }
    Ok(())
}

/// Columns and rows can be selected; JSON has all values in full.
#[tokio::test(flavor = "multi_thread")]
async fn rows_and_columns_can_be_selected() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let name = node.image.name().to_owned();
    node.ensure_ready(&node.image, "erofs")?;
    let shown = |arguments: &[&str], code: i32| -> Result<String> {
        let output = node.command(&[&["check"], arguments].concat())?;
        ensure!(
            output.status.code() == Some(code),
            "{arguments:?}: {output:?}"
        );
        Ok(String::from_utf8(output.stdout)?)
    };
    let all = shown(&[], 1)?;
    ensure!(
        all.ends_with(
            "\n\n2 images, 1 not ready in erofs: 1 missing\n2 images, 2 not ready in native: 2 missing\n"
        ),
        "{all}"
    );
    ensure!(!all.contains('\u{1b}'), "{all:?}");
    for (arguments, code, rows) in [
        (&["--state", "ready"][..], 0, 1),
        (&["--state", "missing"], 1, 3),
        (&["--state", "ready,missing"], 1, 4),
        (&["--state", "mixed"], 0, 0),
        (&["*/app:*"], 1, 2),
        (&["*/app:*", "--handler", "erofs"], 0, 1),
        (&["*/app:*", "*/pause:*"], 1, 4),
    ] {
        let report = shown(&[arguments, &["--output", "json"]].concat(), code)?;
        let report: Value = serde_json::from_str(&report)?;
        let found = report["images"].as_array().context("images")?.len();
        ensure!(found == rows, "{arguments:?}: {report:#}");
    }
    let digest = &node.image.manifest.digest;
    let wide = shown(&["--output", "wide"], 1)?;
    ensure!(wide.contains(digest) && wide.contains("MANIFEST"), "{wide}");

    // In a pipe the names are complete; the tests of `screens` check the output on a terminal.
    let by_digest = format!("{}@{digest}", name.trim_end_matches(":1"));
    for arguments in [&[&*by_digest][..], &[&by_digest, "--no-trunc"]] {
        let table = shown(arguments, 1)?;
        ensure!(table.contains(&by_digest), "{table}");
    }

    for (arguments, code, words) in [
        (&["*/nothing:*"][..], 1, "matches \"*/nothing:*\""),
        (&["a{b"], 2, "is not a pattern"),
        (&["--state", "bad"], 2, "write one of ready, missing"),
    ] {
        let output = node.command(&[&["check"], arguments].concat())?;
        let printed = String::from_utf8_lossy(&output.stderr);
        ensure!(
            output.status.code() == Some(code) && printed.contains(words),
            "{arguments:?}: {output:?}"
        );
    }
    Ok(())
}

/// A terminal gets colours and lines within its width, unless `NO_COLOR` is set.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_colours_and_lines_that_fit() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let config = node.lab.path("terminal.toml");
    std::fs::write(&config, node.config(""))?;
    let check = format!(
        "{} check --config {}",
        crate::support::PROGRAM,
        config.display()
    );
    let on_terminal = |columns: u16, before: &str, after: &str| -> Result<String> {
        let command = format!("stty cols {columns}; {before} {check} {after}");
        let output = std::process::Command::new("script")
            .args(["-qefc", &command, "/dev/null"])
            .env("TERM", "xterm")
            .env_remove("NO_COLOR")
            .output()?;
        Ok(String::from_utf8(output.stdout)?)
    };
    let coloured = on_terminal(200, "", "")?;
    ensure!(
        coloured.contains("\u{1b}[33mmissing\u{1b}[0m"),
        "{coloured:?}"
    );
    ensure!(coloured.contains("not unpacked here"), "{coloured:?}");
    let plain = on_terminal(64, "NO_COLOR=1", "")?;
    ensure!(!plain.contains('\u{1b}'), "{plain:?}");
    ensure!(plain.contains("not unpa…"), "{plain:?}");
    let table = plain.split("\r\n\r\n").next().unwrap_or_default();
    ensure!(
        table
            .lines()
            .all(|line| line.trim_end().chars().count() <= 64),
        "{plain:?}"
    );
    Ok(())
}
