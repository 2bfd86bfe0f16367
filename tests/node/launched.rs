//! A plugin that containerd launches: what it does with existing containers, how it ends, which configuration
//! the commands read, and what `doctor` finds in its files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use lab::{Version, images};
use serde_json::Value;

use crate::support::{Node, PATIENCE, PROGRAM, handler};

const CONF: &str = "nri/conf.d/10-nri-unpack.conf";

impl Node {
    /// Runs a command without `--config`, with containerd's configuration at its default path and no
    /// configuration of the plugin there.
    fn command_without_config(&self, arguments: &[&str]) -> Result<Output> {
        let script = "mount -t tmpfs none /etc && mkdir /etc/containerd && \
                      cp \"$1\" /etc/containerd/config.toml && shift && exec \"$@\"";
        let output = Command::new("unshare")
            .args(["--mount", "sh", "-c", script, "sh"])
            .arg(self.lab.config())
            .arg(PROGRAM)
            .args(arguments)
            .output();
        output.context("running unshare")
    }

    fn doctor_finding(&self, id: &str) -> Result<Option<Value>> {
        let output = self.command_without_config(&["doctor", "--output", "json"])?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("doctor: {output:?}"))?;
        let mut findings = report["findings"].as_array().into_iter().flatten();
        Ok(findings.find(|finding| finding["id"] == id).cloned())
    }
}

async fn launched(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let handler = handler(version);
    let pod = node.cri.run_pod(handler, &[]).await?;
    let name = node.image.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    ensure!(node.assert_labelled(handler).await.is_err());
    node.launch().await?;
    node.wait_labelled(handler).await?;

    // The commands and `doctor` read the plugin's configuration, and name the file.
    let conf = node.lab.path(CONF);
    let usual = node.config("");
    let excluded = format!("[snapshotters.{handler}]\nexclude = [\"*\"]\n");
    fs::write(&conf, node.config(&excluded))?;
    let absent = images::many_layers("registry.test/lab/absent:1", 4)?;
    node.lab.import(&absent).await?;
    let absent = absent.name();
    let output = node.command_without_config(&["ensure", absent, "--handler", handler])?;
    let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
    ensure!(stderr.contains(&*conf.to_string_lossy()), "{output:?}");
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(printed.contains("is excluded from"), "{output:?}");
    let own = node.lab.path("own.toml");
    fs::write(&own, &usual)?;
    let own = own.display().to_string();
    let words = ["ensure", absent, "--handler", handler, "--config", &own];
    let output = node.command_without_config(&words)?;
    ensure!(
        output.status.success() && output.stderr.is_empty(),
        "--config overrules: {output:?}"
    );

    fs::write(&conf, "[hooks]\nwiat = \"1s\"\n")?;
    let output = node.command_without_config(&["check"])?;
    ensure!(output.status.code() == Some(2), "{output:?}");
    let found = node.doctor_finding("plugin-config-wrong")?;
    let found = found.context("the broken configuration")?.to_string();
    ensure!(found.contains(CONF) && found.contains("wiat"), "{found}");
    fs::write(&conf, &usual)?;
    ensure!(node.doctor_finding("plugin-config-wrong")?.is_none());

    let misnamed = node.lab.path("nri/plugins/hook.sh");
    fs::write(&misnamed, "#!/bin/sh\n")?;
    ensure!(node.doctor_finding("plugin-misnamed")?.is_none());
    fs::set_permissions(&misnamed, fs::Permissions::from_mode(0o755))?;
    let found = node.doctor_finding("plugin-misnamed")?;
    let found = found.context("the badly named plugin")?;
    ensure!(found["severity"] == "error", "{found:#}");
    let remedy = found["remedy"]["commands"][0].as_str();
    let remedy = remedy.context("a remedy")?;
    let status = Command::new("sh").args(["-c", remedy]).status()?;
    ensure!(status.success(), "{remedy}: {status}");
    ensure!(node.doctor_finding("plugin-misnamed")?.is_none());

    fs::write(&conf, usual.replace("config.toml", "nowhere.toml"))?;
    let file = conf.display().to_string();
    let words = ["doctor", "--output", "json", "--config", &file];
    let output = node.command_without_config(&words)?;
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(printed.contains("containerd-config-missing"), "{printed}");

    // The plugin ends with containerd, without an error.
    node.restart_containerd().await?;
    let ended = "the session with containerd ended";
    node.log.wait_for(ended, PATIENCE).await?;
    let errors = node.log.lines_with(" ERROR ");
    ensure!(errors.is_empty(), "{errors:#?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launched_plugin_works_on_1_7() -> Result<()> {
    launched(Version::V1_7).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_launched_plugin_works_on_2_1() -> Result<()> {
    launched(Version::V2_1).await
}
