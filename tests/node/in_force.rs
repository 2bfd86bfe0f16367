//! What is in force comes from the running containerd; its files count where it says nothing.

use anyhow::{Context, Result, ensure};
use lab::{Options, Plugin, Remote, Version};
use serde_json::Value;

use crate::support::{Node, PATIENCE, PROGRAM, RESOLVED};

impl Node {
    /// What `handlers` reports where containerd's file is said to be this one, and what it exits with.
    fn handlers_by(&self, file: &str) -> Result<(Option<i32>, Value)> {
        self.report_by(file, "handlers")
    }

    fn report_by(&self, file: &str, command: &str) -> Result<(Option<i32>, Value)> {
        let usual = format!("{:?}", self.lab.config());
        let config = self.config("").replace(&usual, &format!("{file:?}"));
        let path = self.lab.path("in-force.toml");
        std::fs::write(&path, config)?;
        let path = path.display().to_string();
        let mut program = std::process::Command::new(crate::support::PROGRAM);
        let output = program
            .args([command, "--output", "json", "--config", &path])
            .output()?;
        let report = serde_json::from_slice(&output.stdout);
        let report = report.with_context(|| format!("{command}: {output:?}"))?;
        Ok((output.status.code(), report))
    }
}

/// The snapshotter of a handler and where that was read.
fn row<'a>(report: &'a Value, handler: &str) -> Option<(&'a str, &'a str)> {
    let rows = report["handlers"].as_array()?;
    let row = rows.iter().find(|row| row["handler"] == handler)?;
    Some((row["snapshotter"].as_str()?, row["origin"].as_str()?))
}

fn finding<'a>(report: &'a Value, id: &str) -> Option<&'a Value> {
    let findings = report["findings"].as_array()?;
    findings.iter().find(|finding| finding["id"] == id)
}

async fn the_running_containerd_counts(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    // The default snapshotter is another one, and the file is not where it is looked for.
    let text = std::fs::read_to_string(node.lab.config())?;
    let usual = "snapshotter = \"overlayfs\"";
    ensure!(text.matches(usual).count() == 1, "{text}");
    std::fs::write(
        node.lab.config(),
        text.replace(usual, "snapshotter = \"native\""),
    )?;
    node.restart_containerd().await?;
    let origin = match version {
        Version::V1_7 => "CRI status",
        Version::V2_1 => "CRI image file system",
    };
    let (code, report) = node.handlers_by("/nowhere/config.toml")?;
    ensure!(
        row(&report, "runc") == Some(("native", origin)),
        "{report:#}"
    );
    ensure!(report["default_snapshotter"] == "native", "{report:#}");
    ensure!(code == Some(0), "{code:?}: {report:#}");

    // The file says other than containerd, and imports what this process does not see.
    let changed = node.lab.path("changed.toml");
    std::fs::write(&changed, &text)?;
    let changed = changed.display().to_string();
    let (code, report) = node.handlers_by(&changed)?;
    ensure!(code == Some(0), "{report:#}");
    ensure!(
        row(&report, "runc") == Some(("native", origin)),
        "{report:#}"
    );
    let (_, report) = node.report_by(&changed, "doctor")?;
    let differs = finding(&report, "containerd-config-differs").context("a difference")?;
    ensure!(differs["severity"] == "warning", "{differs:#}");
    let words = ["native in the running containerd", "overlayfs in", &changed];
    let found = differs["found"].as_str().context("text")?;
    ensure!(words.iter().all(|word| found.contains(word)), "{differs:#}");

    let text = format!("imports = [\"/nowhere/kata-deploy.toml\"]\n{text}");
    std::fs::write(&changed, text)?;
    let (code, report) = node.handlers_by(&changed)?;
    ensure!(code == Some(0), "{report:#}");
    ensure!(report["problems"] == Value::Array(vec![]), "{report:#}");
    let (_, report) = node.report_by(&changed, "doctor")?;
    let unread = finding(&report, "containerd-config").context("a file")?;
    ensure!(unread["severity"] == "note", "{unread:#}");
    ensure!(
        unread.to_string().contains("/nowhere/kata-deploy.toml"),
        "{unread:#}"
    );
    ensure!(
        finding(&report, "containerd-config-differs").is_none(),
        "{report:#}"
    );
    Ok(())
}

/// A plugin with mounts of its own, as in a container: its log names what containerd imports and it does not see.
async fn what_is_imported_and_not_seen_is_said(version: Version) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;

    const FOLDER: &str = "/nowhere/conf.d/*.toml, a folder that does not exist for this process";
    let node = Node::start(version).await?;
    let text = std::fs::read_to_string(node.lab.config())?;
    let imports = "imports = [\"/nowhere/conf.d/*.toml\", \"/nowhere/kata-deploy.toml\"]\n";
    let changed = node.lab.path("changed.toml");
    std::fs::write(&changed, format!("{imports}{text}"))?;
    let usual = format!("{:?}", node.lab.config());
    let config = node.config("").replace(&usual, &format!("{changed:?}"));
    let apart = node.lab.path("apart");
    let script = format!("#!/bin/sh\nexec unshare --mount {PROGRAM} \"$@\"\n");
    std::fs::write(&apart, script)?;
    std::fs::set_permissions(&apart, std::fs::Permissions::from_mode(0o755))?;
    let apart = apart.display().to_string();
    for (program, is_seen) in [(PROGRAM, true), (&apart, false)] {
        let plugin = Plugin::start(&node.lab, program, &config)?;
        plugin.log().wait_for(RESOLVED, PATIENCE).await?;
        let named = "/nowhere/kata-deploy.toml: No such file";
        plugin.log().wait_for(named, PATIENCE).await?;
        if !is_seen {
            plugin.log().wait_for(FOLDER, PATIENCE).await?;
        }
        // The plugin has registered, so the line would be there.
        plugin
            .log()
            .wait_for("reconcile finished", PATIENCE)
            .await?;
        let said = !plugin.log().lines_with(FOLDER).is_empty();
        ensure!(said != is_seen, "{program}: {}", plugin.log().text());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_and_not_seen_is_said_on_2_1() -> Result<()> {
    what_is_imported_and_not_seen_is_said(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_imported_and_not_seen_is_said_on_1_7() -> Result<()> {
    what_is_imported_and_not_seen_is_said(Version::V1_7).await
}

/// A proxy plugin that exports no `root` is the default snapshotter, and says itself whether it gets labels.
async fn a_proxy_without_root(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(version, options).await?;
    let text = std::fs::read_to_string(node.lab.config())?;
    let text = text.replacen("snapshotter = \"overlayfs\"", "snapshotter = \"nydus\"", 1);
    let exports = "[proxy_plugins.nydus.exports]\nenable_remote_snapshot_annotations = \"true\"\n";
    std::fs::write(node.lab.config(), format!("{text}\n{exports}"))?;
    node.restart_containerd().await?;
    let (code, report) = node.handlers_by("/nowhere/config.toml")?;
    ensure!(report["default_snapshotter"] == "nydus", "{report:#}");
    ensure!(code == Some(0), "{report:#}");
    let file = node.lab.config().display().to_string();
    let (_, report) = node.report_by(&file, "doctor")?;
    let rootless = finding(&report, "snapshotter-without-root").context("no root")?;
    ensure!(rootless["severity"] == "warning", "{rootless:#}");
    // The transfer service, which asks for the export, pulls from 2.1 on.
    let is_labelled = version == Version::V2_1;
    let unlabelled = finding(&report, "annotations-off").is_some();
    ensure!(unlabelled != is_labelled, "{report:#}");

    // What it advises.
    let root = "root = \"/var/lib/nydus\"\n";
    std::fs::write(node.lab.config(), format!("{text}\n{exports}{root}"))?;
    node.restart_containerd().await?;
    let (_, report) = node.handlers_by("/nowhere/config.toml")?;
    ensure!(report["default_snapshotter"] == "nydus", "{report:#}");
    let (_, report) = node.report_by(&file, "doctor")?;
    ensure!(
        finding(&report, "snapshotter-without-root").is_none(),
        "{report:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_root_on_2_1() -> Result<()> {
    a_proxy_without_root(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_root_on_1_7() -> Result<()> {
    a_proxy_without_root(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_containerd_counts_on_2_1() -> Result<()> {
    the_running_containerd_counts(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_containerd_counts_on_1_7() -> Result<()> {
    the_running_containerd_counts(Version::V1_7).await
}
