//! `doctor`: each test causes a fault of a node. The fault is found under its ID, with the documented exit code
//! and JSON; after its remedy the finding is gone.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use lab::{Options, PAUSE, Plugin, Remote, Version, images};
use serde_json::Value;

use crate::support::{Node, PATIENCE, PROGRAM, handler};

/// The findings by ID.
pub(crate) type Found = BTreeMap<String, Value>;

impl Node {
    /// Runs `doctor` with the configuration of the other commands.
    pub(crate) fn examine(&self) -> Result<(Option<i32>, Found)> {
        self.examine_with(&self.config(""), &[])
    }

    /// Like [`Self::examine`], with this configuration.
    pub(crate) fn examine_with(
        &self,
        config: &str,
        arguments: &[&str],
    ) -> Result<(Option<i32>, Found)> {
        let file = self.lab.path("doctor.toml");
        std::fs::write(&file, config)?;
        let mut command = Command::new(PROGRAM);
        command.args(["doctor", "--output", "json", "--config"]);
        let output = command.arg(file).args(arguments).output()?;
        let report: Value = serde_json::from_slice(&output.stdout)
            .with_context(|| format!("doctor: {output:?}"))?;
        let version = &report["containerd"]["version"];
        ensure!(
            version.is_null() == (output.status.code() == Some(3)),
            "{report:#}"
        );
        let findings = report["findings"].as_array().context("findings")?;
        println!("{:?}: {report:#}", output.status.code());
        let by_id = |finding: &Value| {
            for key in ["severity", "found", "means"] {
                ensure!(finding[key].is_string(), "{key}: {finding:#}");
            }
            let remedy = &finding["remedy"];
            ensure!(
                remedy["say"].is_string()
                    && remedy["lines"].is_array()
                    && remedy["commands"].is_array(),
                "{finding:#}"
            );
            let id = finding["id"].as_str().context("an id")?;
            Ok((id.to_owned(), finding.clone()))
        };
        let found = findings.iter().map(by_id).collect::<Result<_>>()?;
        Ok((output.status.code(), found))
    }

    /// Returns a configuration of the commands that reads a changed copy of containerd's file.
    fn config_with_changed_file(
        &self,
        change: impl Fn(String) -> String,
        more: &str,
    ) -> Result<String> {
        let text = std::fs::read_to_string(self.lab.config())?;
        let changed = self.lab.path("changed.toml");
        std::fs::write(&changed, change(text))?;
        let original = format!("{:?}", self.lab.config());
        let config = self.config(more);
        Ok(config.replace(&original, &format!("{changed:?}")))
    }
}

pub(crate) fn has(found: &Found, id: &str, severity: &str, words: &str) -> Result<()> {
    let finding = found
        .get(id)
        .with_context(|| format!("no {id}: {found:#?}"))?;
    ensure!(finding["severity"] == severity, "{finding:#}");
    ensure!(
        finding.to_string().contains(words),
        "no «{words}»: {finding:#}"
    );
    Ok(())
}

/// A healthy node gives no finding but notes. Then the plugin runs twice, then not at all, and then containerd
/// is down.
async fn healthy_and_faulty_node(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let pause = images::pause(&[PAUSE])?;
    let began = std::time::Instant::now();
    while node.state_of(&pause, handler(version)).await? != "ready"
        || node.state_of(&pause, "native").await? != "ready"
    {
        ensure!(began.elapsed() < PATIENCE, "the pause image is not ready");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (code, found) = node.examine()?;
    ensure!(code == Some(0) && found.is_empty(), "{code:?}: {found:#?}");
    let text = node.command(&["doctor"])?;
    let text = String::from_utf8_lossy(&text.stdout).into_owned();
    ensure!(text.ends_with("\nnothing is wrong\n"), "{text}");

    let second = Plugin::start(&node.lab, PROGRAM, &node.config(""))?;
    let pid = second.pid().context("a pid")?.to_string();
    let (code, found) = node.examine()?;
    ensure!(code == Some(1) && found.len() == 1, "{found:#?}");
    has(&found, "second-instance", "error", &pid)?;
    drop(second);

    node.plugin.take();
    let (code, found) = node.examine()?;
    ensure!(code == Some(1) && found.len() == 1, "{found:#?}");
    has(&found, "plugin-absent", "warning", "systemctl")?;

    node.lab.kill();
    let (code, found) = node.examine()?;
    ensure!(code == Some(3), "{code:?}");
    has(
        &found,
        "containerd-down",
        "error",
        "systemctl start containerd",
    )?;
    let (code, found) = node.examine_with(
        &node.config(""),
        &["--containerd-socket", "/nowhere/c.sock"],
    )?;
    ensure!(code == Some(3), "{code:?}");
    has(
        &found,
        "containerd-socket-missing",
        "error",
        "/nowhere/c.sock",
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_node_has_no_findings_on_2_1() -> Result<()> {
    healthy_and_faulty_node(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_healthy_node_has_no_findings_on_1_7() -> Result<()> {
    healthy_and_faulty_node(Version::V1_7).await
}

/// Faults in the configuration of containerd and of the plugin. containerd need not be restarted to show them.
#[tokio::test(flavor = "multi_thread")]
async fn configuration_faults_are_found() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let nri = |text: String| text.replace("disable = false", "disable = true");
    let connections =
        |text: String| text.replace("disable_connections = false", "disable_connections = true");
    let socket = node.lab.nri_socket().display().to_string();
    let elsewhere = |text: String| text.replace(&socket, "/nowhere/nri.sock");
    let discards = |text: String| {
        text.replace(
            "discard_unpacked_layers = false",
            "discard_unpacked_layers = true",
        )
    };
    let same = |text: String| text;
    let handlers = "[handlers]\nkata = \"zfs9\"\nvm = \"devmapper\"\n";
    type Change<'a> = &'a dyn Fn(String) -> String;
    let disabled =
        |text: String| format!("disabled_plugins = [\"io.containerd.nri.v1.nri\"]\n{text}");
    let unpacks = |text: String| {
        let table = "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]";
        format!("{text}\n{table}\nplatform = \"linux\"\nsnapshotter = \"native\"\n")
    };
    // CRI pulls by itself then, and not by the transfer service.
    let locally = |text: String| {
        let key = "discard_unpacked_layers = false";
        unpacks(text.replace(key, &format!("{key}\nuse_local_image_pull = true")))
    };
    let cases: [(Change<'_>, &str, &[[&str; 3]]); 9] = [
        (&locally, "", &[]),
        (
            &disabled,
            "",
            &[["nri-off", "error", "disabled_plugins in"]],
        ),
        (
            &unpacks,
            "",
            &[[
                "transfer-unpack-elsewhere",
                "error",
                "snapshotter = \\\"overlayfs\\\"",
            ]],
        ),
        (
            &nri,
            "",
            &[[
                "nri-off",
                "error",
                "[plugins.\\\"io.containerd.nri.v1.nri\\\"]",
            ]],
        ),
        (
            &connections,
            "",
            &[[
                "nri-connections-off",
                "error",
                "disable_connections = false",
            ]],
        ),
        (
            &elsewhere,
            "",
            &[["nri-socket-elsewhere", "error", "/nowhere/nri.sock"]],
        ),
        (
            &discards,
            "",
            &[["layers-discarded", "note", "io.containerd.cri.v1.images"]],
        ),
        (
            &discards,
            "[unpack]\nmissing_content = []\n",
            &[["layers-discarded", "warning", "not found"]],
        ),
        (
            &same,
            handlers,
            &[
                ["snapshotter-unknown", "error", "[proxy_plugins.zfs9]"],
                ["snapshotter-failed", "error", "devmapper"],
                ["handler-unknown", "warning", "vm"],
            ],
        ),
    ];
    for (change, more, expected) in cases {
        let (code, found) =
            node.examine_with(&node.config_with_changed_file(change, more)?, &[])?;
        ensure!(code == Some(1), "{code:?}");
        for [id, severity, words] in expected {
            has(&found, id, severity, words)?;
        }
        // Two more findings: the pause image is missing, and the plugin does not run.
        ensure!(found.len() == 2 + expected.len(), "{found:#?}");
    }

    let config = node
        .config("")
        .replace("wait = \"8s\"", "wait = \"9950ms\"");
    let (_, found) = node.examine_with(&config, &[])?;
    has(
        &found,
        "request-timeout-short",
        "warning",
        "plugin_request_timeout = ",
    )?;
    let config = node
        .config("")
        .replace("wait = \"8s\"", "wait = \"9900ms\"");
    let (_, found) = node.examine_with(&config, &[])?;
    ensure!(!found.contains_key("request-timeout-short"), "{found:#?}");

    // A process listened on this socket and has ended.
    let dead = node.lab.socket_path("dead.sock")?;
    drop(std::os::unix::net::UnixListener::bind(&dead)?);
    let dead = dead.display().to_string();
    let config = node.config_with_changed_file(|text| text.replace(&socket, &dead), "")?;
    for (arguments, id) in [
        (["--nri-socket", &dead], "nri-socket-dead"),
        (
            ["--nri-socket", "/nowhere/nri.sock"],
            "nri-socket-elsewhere",
        ),
    ] {
        let (_, found) = node.examine_with(&config, &arguments)?;
        has(&found, id, "error", arguments[1])?;
    }
    std::fs::remove_file(&dead)?;
    let (_, found) = node.examine_with(&config, &["--nri-socket", &dead])?;
    has(&found, "nri-socket-missing", "error", &dead)
}

/// Faults of a remote snapshotter: its labels, its process. Also the effect of `--fix`.
async fn remote_snapshotter_faults(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    let node = Node::start_with(version, options).await?;
    let lease = "nri-unpack-1-1-1";
    node.lab.ctr(&["leases", "create", "--id", lease]).await?;

    // This collects everything that could still change the database.
    node.store.collect_garbage().await?;
    let before = node.lab.database()?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, "pause-not-ready", "error", "is missing in nydus")?;
    has(
        &found,
        "annotations-off",
        "note",
        "disable_snapshot_annotations = false",
    )?;
    has(&found, "leftovers", "warning", "(leases: 1, ")?;
    ensure!(node.lab.database()? == before, "something was written");

    let (code, found) = node.examine_with(&node.config(""), &["--fix"])?;
    // The plugin still does not run.
    ensure!(code == Some(1), "{code:?}");
    has(&found, "leftovers", "warning", "(leases: 1)")?;
    has(&found, "pause-not-ready", "error", "is ready in nydus")?;
    ensure!(!node.store.leases().await?.contains_key(lease));
    let (_, mut found) = node.examine()?;
    // Only containerd 1.7 pulls for a handler that a pod names.
    let fails = found.remove("handler-pull-fails");
    ensure!(fails.is_some() == (version == Version::V1_7), "{fails:#?}");
    ensure!(
        found.keys().eq(["annotations-off", "plugin-absent"].iter()),
        "{found:#?}"
    );

    node.lab.remote(Remote::Nydus).kill();
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, "snapshotter-silent", "error", "nydus.sock")
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_snapshotter_faults_are_found_on_2_1() -> Result<()> {
    remote_snapshotter_faults(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn remote_snapshotter_faults_are_found_on_1_7() -> Result<()> {
    remote_snapshotter_faults(Version::V1_7).await
}

/// Content was deleted from the disk, which containerd does not know. The remedy helps.
async fn deleted_content(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    options.remotes = vec![Remote::Nydus];
    let node = Node::start_with(version, options).await?;
    let name = node.image.name().to_owned();
    node.ensure_ready(&node.image, "nydus")?;
    node.store.collect_garbage().await?;
    let before = node.lab.database()?;
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key("snapshots-lost"), "{found:#?}");
    // `doctor` looks for the pause image, which nydus does not have.
    ensure!(node.lab.database()? == before, "something was written");
    let nydus = node.lab.remote(Remote::Nydus);
    nydus.kill();
    std::fs::remove_dir_all(node.lab.path("nydus"))?;
    nydus.restart().await?;
    // containerd reconnects by itself, one second after the first failed call.
    let began = std::time::Instant::now();
    while node.examine()?.1.contains_key("snapshotter-silent") {
        ensure!(
            began.elapsed() < PATIENCE,
            "containerd does not reach nydus"
        );
    }
    let before = node.store.metadata().await?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, "snapshots-lost", "error", &name)?;
    let changes = before.changes(&node.store.metadata().await?);
    ensure!(changes.is_empty(), "{changes:#?}");
    ensure!(node.state_of(&node.image, "nydus").await? == "lost");
    let commands = found["snapshots-lost"]["remedy"]["commands"].as_array();
    for command in commands.context("commands")? {
        let words: Vec<_> = command.as_str().context("text")?.split(' ').collect();
        match words[..] {
            ["nri-unpack", ref more @ ..] => {
                let done = node.command(more)?;
                ensure!(done.status.success(), "{done:?}");
            }
            _ => anyhow::bail!("{command}"),
        }
    }
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key("snapshots-lost"), "{found:#?}");

    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_content_is_found_on_2_1() -> Result<()> {
    deleted_content(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn deleted_content_is_found_on_1_7() -> Result<()> {
    deleted_content(Version::V1_7).await
}

/// Images with a wrong state.
async fn image_faults(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let pod = node.cri.run_pod("native", &[]).await?;
    let name = node.image.name().to_owned();
    node.cri.create_container(&pod, &name, &[], &[]).await?;
    node.cri.remove_pod(&pod).await?;
    let (code, found) = node.examine()?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, "images-unlabelled", "warning", &name)?;
    node.ensure_ready(&node.image, "native")?;
    let (_, found) = node.examine()?;
    ensure!(!found.contains_key("images-unlabelled"), "{found:#?}");

    node.store.delete_content(&node.image.config.digest).await?;
    let (_, found) = node.examine()?;
    has(&found, "images-unavailable", "warning", "content fetch")
}

#[tokio::test(flavor = "multi_thread")]
async fn image_faults_are_found_on_2_1() -> Result<()> {
    image_faults(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn image_faults_are_found_on_1_7() -> Result<()> {
    image_faults(Version::V1_7).await
}
