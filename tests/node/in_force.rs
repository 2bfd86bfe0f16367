//! The plugin takes the effective configuration from the running containerd; containerd's files count for keys
//! that containerd does not report.

use anyhow::{Context, Result, ensure};
use lab::{Options, Plugin, Remote, Version};
use serde_json::Value;

use crate::support::{Node, PATIENCE, PROGRAM, RESOLVED, write_script};

impl Node {
    /// Returns the exit code and the report of `handlers`, with `file` as containerd's configured file.
    fn handlers_with(&self, file: &str) -> Result<(Option<i32>, Value)> {
        self.report_with(file, "handlers")
    }

    fn report_with(&self, file: &str, command: &str) -> Result<(Option<i32>, Value)> {
        let original = format!("{:?}", self.lab.config());
        let config = self.config("").replace(&original, &format!("{file:?}"));
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

/// Returns the snapshotter of a handler, and the source of that value.
fn row<'a>(report: &'a Value, handler: &str) -> Option<(&'a str, &'a str)> {
    let rows = report["handlers"].as_array()?;
    let row = rows.iter().find(|row| row["handler"] == handler)?;
    Some((row["snapshotter"].as_str()?, row["origin"].as_str()?))
}

fn finding<'a>(report: &'a Value, id: &str) -> Option<&'a Value> {
    let findings = report["findings"].as_array()?;
    findings.iter().find(|finding| finding["id"] == id)
}

async fn the_running_containerd_has_precedence(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    // The default snapshotter is another one, and containerd's file does not exist at the configured path.
    let text = std::fs::read_to_string(node.lab.config())?;
    let original = "snapshotter = \"overlayfs\"";
    ensure!(text.matches(original).count() == 1, "{text}");
    std::fs::write(
        node.lab.config(),
        text.replace(original, "snapshotter = \"native\""),
    )?;
    node.restart_containerd().await?;
    let origin = match version {
        Version::V1_7 => "CRI status",
        Version::V2_1 => "CRI image file system",
    };
    let (code, report) = node.handlers_with("/nowhere/config.toml")?;
    ensure!(
        row(&report, "runc") == Some(("native", origin)),
        "{report:#}"
    );
    ensure!(report["default_snapshotter"] == "native", "{report:#}");
    ensure!(code == Some(0), "{code:?}: {report:#}");

    // The file differs from the running containerd, and imports a file that this process cannot see.
    let changed = node.lab.path("changed.toml");
    std::fs::write(&changed, &text)?;
    let changed = changed.display().to_string();
    let (code, report) = node.handlers_with(&changed)?;
    ensure!(code == Some(0), "{report:#}");
    ensure!(
        row(&report, "runc") == Some(("native", origin)),
        "{report:#}"
    );
    let (_, report) = node.report_with(&changed, "doctor")?;
    let differs = finding(&report, "containerd-config-differs").context("a difference")?;
    ensure!(differs["severity"] == "warning", "{differs:#}");
    let words = ["native in the running containerd", "overlayfs in", &changed];
    let found = differs["found"].as_str().context("text")?;
    ensure!(words.iter().all(|word| found.contains(word)), "{differs:#}");

    let text = format!("imports = [\"/nowhere/kata-deploy.toml\"]\n{text}");
    std::fs::write(&changed, text)?;
    let (code, report) = node.handlers_with(&changed)?;
    ensure!(code == Some(0), "{report:#}");
    ensure!(report["problems"] == Value::Array(vec![]), "{report:#}");
    let (_, report) = node.report_with(&changed, "doctor")?;
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

/// The plugin runs in a mount namespace of its own, as in a container. Its log names the imported files that it
/// cannot see.
async fn unseen_imports_are_logged(version: Version) -> Result<()> {
    const UNSEEN: &str = "/nowhere/conf.d/*.toml, a folder that does not exist for this process";
    let node = Node::start(version).await?;
    let text = std::fs::read_to_string(node.lab.config())?;
    let imports = "imports = [\"/nowhere/conf.d/*.toml\", \"/nowhere/kata-deploy.toml\"]\n";
    let changed = node.lab.path("changed.toml");
    std::fs::write(&changed, format!("{imports}{text}"))?;
    let original = format!("{:?}", node.lab.config());
    let config = node.config("").replace(&original, &format!("{changed:?}"));
    let wrapper = node.lab.path("apart");
    let script = format!("#!/bin/sh\nexec unshare --mount {PROGRAM} \"$@\"\n");
    write_script(&wrapper, &script)?;
    let wrapper = wrapper.display().to_string();
    for (program, is_seen) in [(PROGRAM, true), (&wrapper, false)] {
        let plugin = Plugin::start(&node.lab, program, &config)?;
        plugin.log().wait_for(RESOLVED, PATIENCE).await?;
        let named = "/nowhere/kata-deploy.toml: No such file";
        plugin.log().wait_for(named, PATIENCE).await?;
        if !is_seen {
            plugin.log().wait_for(UNSEEN, PATIENCE).await?;
        }
        // The plugin has finished a reconcile, so the line would be in the log.
        plugin
            .log()
            .wait_for("reconcile finished", PATIENCE)
            .await?;
        let is_logged = !plugin.log().lines_with(UNSEEN).is_empty();
        ensure!(is_logged != is_seen, "{program}: {}", plugin.log().text());
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn unseen_imports_are_logged_on_2_1() -> Result<()> {
    unseen_imports_are_logged(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn unseen_imports_are_logged_on_1_7() -> Result<()> {
    unseen_imports_are_logged(Version::V1_7).await
}

/// A proxy plugin without the export `root` is the default snapshotter. Its exports say whether it gets labels.
async fn a_proxy_plugin_without_root_is_found(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    let mut node = Node::start_with(version, options).await?;
    let text = std::fs::read_to_string(node.lab.config())?;
    let text = text.replacen("snapshotter = \"overlayfs\"", "snapshotter = \"nydus\"", 1);
    let exports = "[proxy_plugins.nydus.exports]\nenable_remote_snapshot_annotations = \"true\"\n";
    std::fs::write(node.lab.config(), format!("{text}\n{exports}"))?;
    node.restart_containerd().await?;
    let (code, report) = node.handlers_with("/nowhere/config.toml")?;
    ensure!(report["default_snapshotter"] == "nydus", "{report:#}");
    ensure!(code == Some(0), "{report:#}");
    let file = node.lab.config().display().to_string();
    let (_, report) = node.report_with(&file, "doctor")?;
    let rootless = finding(&report, "snapshotter-without-root").context("no root")?;
    ensure!(rootless["severity"] == "warning", "{rootless:#}");
    // The transfer service asks for the export; it pulls in containerd 2.1 and later.
    let is_labelled = version == Version::V2_1;
    let unlabelled = finding(&report, "annotations-off").is_some();
    ensure!(unlabelled != is_labelled, "{report:#}");

    // Apply the remedy of the finding.
    let root = "root = \"/var/lib/nydus\"\n";
    std::fs::write(node.lab.config(), format!("{text}\n{exports}{root}"))?;
    node.restart_containerd().await?;
    let (_, report) = node.handlers_with("/nowhere/config.toml")?;
    ensure!(report["default_snapshotter"] == "nydus", "{report:#}");
    let (_, report) = node.report_with(&file, "doctor")?;
    ensure!(
        finding(&report, "snapshotter-without-root").is_none(),
        "{report:#}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_plugin_without_root_is_found_on_2_1() -> Result<()> {
    a_proxy_plugin_without_root_is_found(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_plugin_without_root_is_found_on_1_7() -> Result<()> {
    a_proxy_plugin_without_root_is_found(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_containerd_has_precedence_on_2_1() -> Result<()> {
    the_running_containerd_has_precedence(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_running_containerd_has_precedence_on_1_7() -> Result<()> {
    the_running_containerd_has_precedence(Version::V1_7).await
}
