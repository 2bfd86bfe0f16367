//! What a hook decides is one line with the same keys, as a program reads it.

use anyhow::{Context, Result, ensure};
use lab::{Log, Plugin, Version, images};
use serde_json::Value;

use crate::guest_pull::{self, NYDUS};
use crate::support::{APP, Node, ON_DEMAND, PATIENCE, PROGRAM, RESOLVED, handler};

/// The keys that the line of each decision has.
const WORDS: [&str; 9] = [
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

/// All lines, parsed.
fn lines(log: &Log) -> Result<Vec<Value>> {
    let text = log.text();
    let parsed = text
        .lines()
        .map(|line| serde_json::from_str(line).with_context(|| line.to_owned()));
    parsed.collect()
}

/// The decisions among them, each with all of its keys.
fn decisions(log: &Log) -> Result<Vec<Value>> {
    let mut decisions = lines(log)?;
    decisions.retain(|line| line.get("verdict").is_some());
    for line in &decisions {
        ensure!(WORDS.iter().all(|key| line[key].is_string()), "{line:#}");
        let took = line["took_ms"].as_f64();
        ensure!(took.is_some_and(|ms| ms > 0.0 && ms < 10_000.0), "{line:#}");
        ensure!(line["target"] == "nri_unpack::hooks", "{line:#}");
    }
    Ok(decisions)
}

/// That there is one decision, and what these keys of it hold.
fn the_only(log: &Log, expected: &[(&str, &str)]) -> Result<Value> {
    let decisions = decisions(log)?;
    let [line] = &decisions[..] else {
        anyhow::bail!("not one decision: {decisions:#?}");
    };
    for (key, value) in expected {
        ensure!(line[key] == *value, "{key} is not {value}: {line:#}");
    }
    Ok(line.clone())
}

/// That nothing was said above debug.
fn is_quiet(log: &Log) -> Result<()> {
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
    async fn serve_in_json(&mut self, more: &str) -> Result<()> {
        let config = self.config(more) + "format = \"json\"\n";
        let plugin = Plugin::start(&self.lab, PROGRAM, &config)?;
        self.log = plugin.log().clone();
        self.plugin = Some(plugin);
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        self.log.wait_for("reconcile finished", PATIENCE).await?;
        Ok(())
    }
}

async fn every_decision_has_its_keys(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.serve_in_json("").await?;
    let handler = handler(version);
    let pod = node.cri.run_pod(handler, &[]).await?;
    let name = format!(
        "lab/{}",
        pod.config.metadata.clone().unwrap_or_default().name
    );

    let log = node.log.from_now();
    node.cri.create_container(&pod, APP, &[], &[]).await?;
    let line = the_only(
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
    the_only(&log, &ready)?;
    is_quiet(&log)?;

    // Made ready by another process: the plugin has to look first.
    let other = images::many_layers("registry.test/lab/other:1", 2)?;
    node.registry.push(&other).await?;
    node.cri.pull_image(other.name()).await?;
    node.ensure_ready(&other, handler)?;
    let log = node.log.from_now();
    node.cri
        .create_container(&pod, other.name(), &[], &[])
        .await?;
    the_only(&log, &ready)?;
    is_quiet(&log)?;

    let log = node.log.from_now();
    let annotation = ("nri-unpack/images", "registry.test/lab/gone:1");
    node.cri.run_pod(handler, &[annotation]).await?;
    the_only(
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
async fn every_decision_has_its_keys_on_2_1() -> Result<()> {
    every_decision_has_its_keys(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_decision_has_its_keys_on_1_7() -> Result<()> {
    every_decision_has_its_keys(Version::V1_7).await
}

/// A container that was moved, and one that was rejected since it must not be.
#[tokio::test(flavor = "multi_thread")]
async fn a_swap_and_a_rejection() -> Result<()> {
    for (swap, action, verdict) in [(true, "swapped", "moved"), (false, "none", "rejected")] {
        let mut node = guest_pull::start(Version::V2_1).await?;
        let config = format!("swap = {swap}\n{ON_DEMAND}");
        node.serve_in_json(&config).await?;
        let pod = node.cri.run_pod(NYDUS, &[]).await?;
        let log = node.log.from_now();
        let created = node.cri.create_container(&pod, APP, &[], &[]).await;
        ensure!(created.is_ok() == swap, "{created:?}");
        the_only(
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
