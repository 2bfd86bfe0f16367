//! Each decision of a hook is one JSON line in the log, with the same keys.

use anyhow::{Context, Result, ensure};
use lab::{Log, Plugin, Version, images};
use serde_json::Value;

use crate::guest_pull::{self, NYDUS};
use crate::support::{APP, Node, ON_DEMAND, PATIENCE, PROGRAM, RESOLVED, handler};

/// The keys of a decision's line.
const KEYS: [&str; 9] = [
    "pod",
    "container",
    "image",
    "snapshotter",
    "state",
    "action",
    "verdict",
    "hook",
    "why",
];

/// Returns all lines, parsed.
fn lines(log: &Log) -> Result<Vec<Value>> {
    let text = log.text();
    let parsed = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    parsed.collect()
}

/// Returns the decisions, and checks that each has all keys.
fn decisions(log: &Log) -> Result<Vec<Value>> {
    let mut decisions = lines(log)?;
    decisions.retain(|line| line.get("verdict").is_some());
    for line in &decisions {
        ensure!(KEYS.iter().all(|key| line[key].is_string()), "{line:#}");
        let took = line["took_ms"].as_f64();
        ensure!(took.is_some_and(|ms| ms > 0.0 && ms < 10_000.0), "{line:#}");
        ensure!(line["target"] == "nri_unpack::hooks", "{line:#}");
    }
    Ok(decisions)
}

/// Returns the only decision, and checks the values of these keys.
fn the_only_decision(log: &Log, expected: &[(&str, &str)]) -> Result<Value> {
    let decisions = decisions(log)?;
    let [line] = &decisions[..] else {
        anyhow::bail!("not exactly one decision: {decisions:#?}");
    };
    for (key, value) in expected {
        ensure!(line[key] == *value, "{key} is not {value}: {line:#}");
    }
    Ok(line.clone())
}

/// Checks that no line has a level above debug.
fn assert_quiet(log: &Log) -> Result<()> {
    let lines = lines(log)?;
    ensure!(
        lines
            .iter()
            .all(|line| line["level"] == "DEBUG" || line["level"] == "TRACE"),
        "{lines:#?}"
    );
    Ok(())
}

impl Node {
    async fn serve_with_json_log(&mut self, more: &str) -> Result<()> {
        let config = self.config(more) + "format = \"json\"\n";
        let plugin = Plugin::start(&self.lab, PROGRAM, &config)?;
        self.log = plugin.log().clone();
        self.plugin = Some(plugin);
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        self.log.wait_for("reconcile finished", PATIENCE).await?;
        Ok(())
    }
}

async fn each_decision_has_all_keys(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.serve_with_json_log("").await?;
    let handler = handler(version);
    let pod = node.cri.run_pod(handler, &[]).await?;
    let name = format!(
        "lab/{}",
        pod.config.metadata.clone().unwrap_or_default().name
    );

    let log = node.log.from_now();
    node.cri.create_container(&pod, APP, &[], &[]).await?;
    let line = the_only_decision(
        &log,
        &[
            ("level", "INFO"),
            ("message", "image made ready"),
            ("pod", &name),
            ("image", APP),
            ("snapshotter", handler),
            ("state", "unlabelled"),
            ("action", "relabelled"),
            ("verdict", "made_ready"),
            ("hook", "CreateContainer"),
            ("why", "5 of 5 layers relabelled"),
        ],
    )?;
    let container = line["container"].as_str().unwrap_or_default();
    ensure!(container.starts_with("container-"), "{line:#}");

    let ready = [
        ("level", "DEBUG"),
        ("snapshotter", handler),
        ("state", "ready"),
        ("action", "none"),
        ("verdict", "ready"),
    ];
    let log = node.log.from_now();
    node.cri.create_container(&pod, APP, &[], &[]).await?;
    the_only_decision(&log, &ready)?;
    assert_quiet(&log)?;

    // Another process made the image ready: the plugin has to inspect it first.
    let other = images::many_layers("registry.test/lab/other:1", 2)?;
    node.registry.push(&other).await?;
    node.cri.pull_image(other.name()).await?;
    node.ensure_ready(&other, handler)?;
    let log = node.log.from_now();
    node.cri
        .create_container(&pod, other.name(), &[], &[])
        .await?;
    the_only_decision(&log, &ready)?;
    assert_quiet(&log)?;

    let log = node.log.from_now();
    let annotation = ("nri-unpack/images", "registry.test/lab/gone:1");
    node.cri.run_pod(handler, &[annotation]).await?;
    the_only_decision(
        &log,
        &[
            ("level", "WARN"),
            ("container", ""),
            ("image", "registry.test/lab/gone:1"),
            ("state", "unknown"),
            ("action", "none"),
            ("verdict", "let_pass"),
            ("hook", "RunPodSandbox"),
        ],
    )?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn each_decision_has_all_keys_on_2_1() -> Result<()> {
    each_decision_has_all_keys(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn each_decision_has_all_keys_on_1_7() -> Result<()> {
    each_decision_has_all_keys(Version::V1_7).await
}

/// The log lines of a moved container and of a rejected one.
#[tokio::test(flavor = "multi_thread")]
async fn a_moved_and_a_rejected_container_are_logged() -> Result<()> {
    for (swap, action, verdict) in [(true, "swapped", "moved"), (false, "none", "rejected")] {
        let mut node = guest_pull::start(Version::V2_1).await?;
        let config = format!("swap = {swap}\n{ON_DEMAND}");
        node.serve_with_json_log(&config).await?;
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        let log = node.log.from_now();
        let created = node.cri.create_container(&pod, APP, &[], &[]).await;
        ensure!(created.is_ok() == swap, "{created:?}");
        the_only_decision(
            &log,
            &[
                ("snapshotter", NYDUS),
                ("state", "unlabelled"),
                ("action", action),
                ("verdict", verdict),
            ],
        )?;
    }
    Ok(())
}
