//! `ensure`: its dry run, its run for all images, and its stop in the middle.

use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use lab::{Call, Held, Options, Remote, Tap, Version, images};
use serde_json::Value;

use crate::after_pull;
use crate::support::{Node, PATIENCE, PROGRAM, handler};

/// The dry run shows the later steps, and writes nothing.
#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_shows_steps_and_writes_nothing() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let name = node.image.name();
    let plan = |code: i32| -> Result<Value> {
        let ensure = ["ensure", name, "--handler", "native", "--dry-run"];
        let output = node.command(&[&ensure[..], &["--output", "json"]].concat())?;
        ensure!(output.status.code() == Some(code), "{output:?}");
        let report: Value = serde_json::from_slice(&output.stdout)?;
        Ok(report["plans"][0].clone())
    };
    node.store.collect_garbage().await?;
    let before = node.lab.database()?;
    let shown = plan(1)?;
    ensure!(
        shown["state"] == "missing" && shown["error"].is_null(),
        "{shown:#}"
    );
    let steps = shown["steps"].as_array().context("steps")?;
    ensure!(steps.len() == node.image.layers.len() + 1, "{shown:#}");
    for (i, layer) in node.image.layers.iter().enumerate() {
        let step = &steps[i];
        ensure!(
            step["step"] == "unpack" && step["layer"] == i + 1,
            "{step:#}"
        );
        ensure!(step["digest"] == layer.digest.as_str(), "{step:#}");
    }
    ensure!(steps[steps.len() - 1]["step"] == "anchor", "{shown:#}");
    let text = node.command(&["ensure", name, "--handler", "native", "--dry-run"])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(text.contains("\n  1. unpack layer 1 (sha256:"), "{text}");
    ensure!(node.lab.database()? == before, "something was written");

    node.ensure_ready(&node.image, "native")?;
    let shown = plan(0)?;
    ensure!(shown["steps"] == Value::Array(vec![]), "{shown:#}");
    Ok(())
}

/// The dry run plans to replace a chain that the host unpacked where the guest pulls.
#[tokio::test(flavor = "multi_thread")]
async fn a_replacement_is_planned() -> Result<()> {
    let mut options = Options::new(Version::V2_1);
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(Version::V2_1, options).await?;
    let name = node.image.name().to_owned();
    // An image that is left to the guest shows that the snapshotter does guest pulls.
    node.command(&["ensure", lab::PAUSE, "--handler", "nydus"])?;
    let pod = node.cri.run_pod("nydus", &[]).await?;
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    let ensure = ["ensure", &name, "--handler", "nydus", "--dry-run"];
    let output = node.command(&[&ensure[..], &["--output", "json"]].concat())?;
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let steps = report["plans"][0]["steps"].as_array().context("steps")?;
    ensure!(
        steps.len() == 1 && steps[0]["step"] == "replace",
        "{report:#}"
    );
    Ok(())
}

/// All images become ready in the snapshotters of all handlers.
#[tokio::test(flavor = "multi_thread")]
async fn all_images_are_made_ready() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let all = node.command(&["ensure", "--all", "--output", "json"])?;
    ensure!(all.status.code() == Some(0), "{all:?}");
    let report: Value = serde_json::from_slice(&all.stdout)?;
    let rows = report["results"].as_array().context("results")?;
    ensure!(rows.len() == 4, "{report:#}");
    let check = node.command(&["check"])?;
    ensure!(check.status.code() == Some(0), "{check:?}");
    let usage = node.command(&["ensure", "--all", "a:1"])?;
    ensure!(usage.status.code() == Some(2), "{usage:?}");
    Ok(())
}

/// On Ctrl-C with a visible bar and a half unpacked layer, no lease and no extraction snapshot remains.
async fn stopped_by_ctrl_c(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.image = images::large("registry.test/lab/large:1", 12, 4 << 20)?;
    node.store.put_image(&node.image).await?;
    let config = node.lab.path("ensure.toml");
    std::fs::write(&config, node.config(""))?;
    let mut child = Command::new(PROGRAM)
        .args(["ensure", node.image.name(), "--handler", "native"])
        .args(["--output", "json", "--config"])
        .arg(&config)
        .stdout(Stdio::piped())
        .spawn()?;
    let began = Instant::now();
    loop {
        let snapshots = node.store.snapshots("native").await?;
        let begun = snapshots
            .iter()
            .any(|s| s.key.starts_with("extract-nri-unpack"));
        if begun && node.store.chain("native", &node.image).await?.len() >= 2 {
            break;
        }
        ensure!(began.elapsed() < PATIENCE, "no unpack began");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    let pid = child.id().to_string();
    Command::new("kill").args(["-s", "INT", &pid]).status()?;
    let signalled = Instant::now();
    let status = child.wait()?;
    ensure!(signalled.elapsed() < Duration::from_secs(10), "too slow");
    let output = child.wait_with_output()?;
    ensure!(status.code() == Some(1), "{status:?}");
    let report: Value = serde_json::from_slice(&output.stdout)?;
    let row = &report["results"][0];
    ensure!(
        row["state"] == "partial" && row["error"].is_string(),
        "{row:#}"
    );
    let leases = node.store.leases().await?;
    ensure!(
        !leases.keys().any(|id| id.starts_with("nri-unpack")),
        "{leases:?}"
    );
    let snapshots = node.store.snapshots("native").await?;
    ensure!(
        !snapshots.iter().any(|s| s.key.contains("nri-unpack")),
        "{snapshots:?}"
    );
    ensure!(node.ensure_ready(&node.image, "native")? == "unpacked");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_nothing_on_2_1() -> Result<()> {
    stopped_by_ctrl_c(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_leaves_nothing_on_1_7() -> Result<()> {
    stopped_by_ctrl_c(Version::V1_7).await
}

/// A terminal gets a progress bar with layers, bytes and rate.
#[tokio::test(flavor = "multi_thread")]
async fn a_terminal_gets_a_progress_bar() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let large = images::large("registry.test/lab/large:1", 6, 4 << 20)?;
    node.store.put_image(&large).await?;
    let config = node.lab.path("ensure.toml");
    std::fs::write(&config, node.config(""))?;
    let command = format!(
        "stty rows 40 cols 120; {PROGRAM} ensure {} --handler native --config {}",
        large.name(),
        config.display()
    );
    let output = Command::new("script")
        .args(["-qefc", &command, "/dev/null"])
        .env("TERM", "xterm")
        .output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{printed:?}");
    let all = large.layers.len();
    // The last drawn bar may show the last layer but one: the bar is removed when the work has ended.
    let mut bars = (1..=all).map(|ready| format!(" {ready}/{all} layers  "));
    let is_drawn = bars.any(|bar| printed.contains(&bar)) && printed.contains("MiB/s");
    ensure!(is_drawn, "{printed:?}");
    ensure!(
        printed.contains(&format!(": ready, unpacked ({all} layers")),
        "{printed:?}"
    );
    // A bar never takes more than one line.
    ensure!(!printed.contains("\u{1b}[1A"), "{printed:?}");
    // Without a terminal only the line of the result is printed.
    let output = node.command(&["ensure", large.name(), "--handler", "erofs"])?;
    ensure!(output.stderr.is_empty(), "{output:?}");
    Ok(())
}

/// More images than are made ready at the same time.
const MANY: usize = 30;

/// `ensure --all` reads the lists of images and snapshots once for all images, and begins a bounded number.
async fn all_from_one_listing(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    for n in 0..MANY {
        node.store.put_image(&after_pull::image(1, n)).await?;
    }
    node.tap = Some(Tap::start(&node.lab)?);
    let tap = node.tap.as_ref().context("no tap")?;
    let held: Vec<_> = (0..2 * MANY)
        .map(|_| tap.hold(|call| call.path.ends_with("Diff/Apply")))
        .collect();
    let all = ["ensure", "--all", "--snapshotter", handler];
    let before = tap.calls().len();
    let mut command = node.command_of(&all)?.spawn()?;
    let count = |calls: &[Call], method: &str| {
        let of = calls.iter().filter(|call| call.path.ends_with(method));
        of.count()
    };
    // All that it begins is held then.
    tap.quiet(before, Duration::from_secs(1), PATIENCE).await?;
    let begun = count(&tap.calls(), "Leases/Create");
    held.into_iter().for_each(Held::release);
    let status = tokio::task::spawn_blocking(move || command.wait()).await??;
    ensure!(status.success(), "{status}");
    ensure!((1..=16).contains(&begun), "{begun} images at the same time");

    let before = tap.calls().len();
    let output = node.command(&all)?;
    ensure!(output.status.success(), "{output:?}");
    let calls = tap.calls().split_off(before);
    let images = count(&calls, "Images/List") + count(&calls, "Images/Get");
    let snapshots = count(&calls, "Snapshots/List") + count(&calls, "Snapshots/Stat");
    println!(
        "{version:?}: {begun} of {MANY} images at the same time; all ready: {images} calls for images, {snapshots} for snapshots"
    );
    ensure!(
        images <= 3 && snapshots <= 3,
        "{images} calls for images, {snapshots} for snapshots"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_from_one_listing_on_1_7() -> Result<()> {
    all_from_one_listing(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn all_from_one_listing_on_2_1() -> Result<()> {
    all_from_one_listing(Version::V2_1).await
}
