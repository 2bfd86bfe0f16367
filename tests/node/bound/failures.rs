//! An API server that refuses, does not answer, sends garbage or cuts connections: the plugin works as without it, makes
//! few requests, and needs no processor. And what `doctor` says of it.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{ApiServer, Mode, Version};
use serde_json::Value;

use super::{CLASS, NODE, own_image, pod};
use crate::support::{Node, PATIENCE, handler};

/// How long the requests are counted.
const COUNTED: Duration = Duration::from_secs(4);

/// The limit of requests for each kind in this time: the pauses double from 0.1 s to 0.2 s on, with jitter.
const MAX_REQUESTS: usize = 2 * 2 * 7;

/// The limit of the time on a processor in this time, in a debug build on a machine that has much else to do: what tries
/// again without a pause needs seconds.
const MAX_TIME: Duration = Duration::from_millis(600);

/// Returns how long a process has been on a processor.
fn processor_time(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let (_, fields) = stat.rsplit_once(") ").context("no fields")?;
    let fields: Vec<_> = fields.split(' ').collect();
    // utime and stime, in hundredths of a second.
    let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
    Ok(Duration::from_millis(ticks * 10))
}

/// The plugin does what it does without the server: a hook serves a pod, and a command makes an image ready.
async fn works_as_without(node: &mut Node, handler: &str, n: usize) -> Result<()> {
    let image = |what: &str| own_image(&format!("registry.test/lab/{what}:{n}"));
    let (asked, ensured) = (image("asked"), image("ensured"));
    node.pull(&asked).await?;
    node.pull(&ensured).await?;
    let annotation = [("nri-unpack/images", asked.name())];
    let sandbox = node.cri.run_pod(handler, &annotation).await?;
    node.cri
        .create_container(&sandbox, asked.name(), &[], &[])
        .await?;
    node.wait_unpacked(handler, &asked).await?;
    node.ensure_ready(&ensured, handler)?;
    Ok(node.cri.remove_pod(&sandbox).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn no_failure_makes_the_plugin_worse() -> Result<()> {
    let version = Version::V2_1;
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    let server = ApiServer::start().await?;
    server.put_class(CLASS, handler);
    let config = node.watching(&server)?;
    for (n, (mode, word)) in [
        (Mode::Status(403), Some("403")),
        (Mode::Status(401), Some("401")),
        (Mode::Status(500), Some("500")),
        (Mode::WatchError(410), None),
        (Mode::CutWatch, Some("failed")),
        (Mode::Cut, Some("cannot be reached")),
        (Mode::Silent, None),
        (Mode::Garbage, Some("cannot be read")),
    ]
    .into_iter()
    .enumerate()
    {
        server.set(mode);
        let before = server.requests().len();
        node.serve(&config).await?;
        let log = node.log.clone();
        let pid = node.plugin.as_ref().and_then(lab::Plugin::pid);
        let pid = pid.context("the plugin does not run")?;
        server
            .wait_for_request(&["/api/v1/pods?"], PATIENCE)
            .await?;
        let began = processor_time(pid)?;
        tokio::time::sleep(COUNTED).await;
        let (took, made) = (
            processor_time(pid)? - began,
            server.requests().len() - before,
        );
        println!("{mode:?}: {made} requests, {took:?} on a processor in {COUNTED:?}");
        ensure!(
            (2..=MAX_REQUESTS).contains(&made),
            "{mode:?}: {made} requests"
        );
        ensure!(took < MAX_TIME, "{mode:?}: {took:?} on a processor");
        let said = log.lines_with("watch at the API server failed");
        let said: Vec<_> = said.iter().filter(|line| line.contains("WARN")).collect();
        match word {
            // Each of the two kinds says it once.
            Some(word) => ensure!(
                said.len() == 2 && said.iter().all(|line| line.contains(word)),
                "{mode:?}: {said:#?}"
            ),
            None => ensure!(said.is_empty(), "{mode:?}: {said:#?}"),
        }
        works_as_without(&mut node, handler, n).await?;
        node.plugin.as_mut().context("no plugin")?.stop().await?;
        std::fs::write(log.path(), "")?;
    }
    Ok(())
}

/// A server that fails for some seconds: what has changed meanwhile is found afterwards.
#[tokio::test(flavor = "multi_thread")]
async fn the_watch_goes_on_after_a_failure() -> Result<()> {
    let version = Version::V2_1;
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    let server = node.serve_watching(version, "").await?;
    for (n, mode) in [Mode::Cut, Mode::CutWatch, Mode::Status(500), Mode::Garbage]
        .into_iter()
        .enumerate()
    {
        let image = own_image(&format!("registry.test/lab/later:{n}"));
        node.pull(&image).await?;
        server.set(mode);
        server.cut();
        server.put_pod(pod(&n.to_string(), Some(CLASS), &[image.name()]));
        // The version of the watch is too old now: a list is needed.
        server.compact();
        tokio::time::sleep(Duration::from_millis(500)).await;
        server.set(Mode::Good);
        node.wait_unpacked(handler, &image).await?;
    }
    Ok(())
}

/// A quiet watch makes no requests and runs in no loop; bookmarks keep it young.
#[tokio::test(flavor = "multi_thread")]
async fn a_quiet_watch_makes_no_requests() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::start(version).await?;
    let server = node.serve_watching(version, "").await?;
    let of_handlers = ["/runtimeclasses?", "watch=true"];
    server.wait_for_request(&of_handlers, PATIENCE).await?;
    node.wait_reconciled(handler(version)).await?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pid = node.plugin.as_ref().and_then(lab::Plugin::pid);
    let pid = pid.context("the plugin does not run")?;
    let (began, before) = (processor_time(pid)?, server.requests().len());
    server.bookmark();
    tokio::time::sleep(COUNTED).await;
    let took = processor_time(pid)? - began;
    println!("{took:?} on a processor in {COUNTED:?}");
    ensure!(
        server.requests().len() == before,
        "{:#?}",
        server.requests()
    );
    ensure!(took < MAX_TIME, "{took:?} on a processor");
    Ok(())
}

/// Returns the ids of the findings of `doctor` about Kubernetes, with this configuration.
pub(crate) fn findings(node: &Node, more: &str) -> Result<Vec<(String, String)>> {
    let file = node.lab.path("doctor.toml");
    std::fs::write(&file, node.config(more))?;
    let mut command = Command::new(&node.program);
    let output = command
        .args(["doctor", "--output", "json", "--config"])
        .arg(&file)
        .output()?;
    let report: Value =
        serde_json::from_slice(&output.stdout).with_context(|| format!("{output:?}"))?;
    let findings = report["findings"].as_array().context("no findings")?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let findings = findings.iter().map(|finding| {
        let remedy = text(&finding["remedy"], "say");
        (
            text(finding, "id"),
            format!("{}; {remedy}", text(finding, "found")),
        )
    });
    Ok(findings
        .filter(|(id, _)| id.starts_with("kubernetes"))
        .collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn doctor_names_the_reason_and_the_remedy() -> Result<()> {
    let version = Version::V2_1;
    let mut node = Node::start(version).await?;
    let server = ApiServer::start().await?;
    server.put_class(CLASS, handler(version));
    server.put_pod(pod("1", None, &["r.example/app:1"]));
    let config = node.watching(&server)?;
    let found = findings(&node, &config)?;
    ensure!(found.is_empty(), "{found:?}");
    let assert = |config: &str, id: &str, words: &[&str]| -> Result<()> {
        let found = findings(&node, config)?;
        let [(of, text)] = &found[..] else {
            anyhow::bail!("{id}: {found:?}");
        };
        ensure!(
            of == id && words.iter().all(|word| text.contains(word)),
            "{id}: {found:?}"
        );
        Ok(())
    };
    server.set(Mode::Status(403));
    assert(
        &config,
        "kubernetes-forbidden",
        &["pods", "ClusterRole", "runtimeclasses"],
    )?;
    server.set(Mode::Status(401));
    assert(&config, "kubernetes-credentials", &["401", "renew"])?;
    server.set(Mode::Garbage);
    assert(&config, "kubernetes-unreachable", &["cannot be read"])?;
    server.set(Mode::Good);
    let on = "[kubernetes]\nwatch = \"on\"\n";
    assert(on, "kubernetes-credentials", &["kubernetes.kubeconfig"])?;
    let missing = "[kubernetes]\nkubeconfig = \"/nowhere/kubeconfig\"\n";
    assert(missing, "kubernetes-credentials", &["/nowhere/kubeconfig"])?;
    // A pod runs here, and the server has none on a node of that name.
    node.cri.run_pod("", &[]).await?;
    let another = config.replace(NODE, "another-node");
    let found = findings(&node, &another)?;
    ensure!(
        found.len() == 1 && found[0].0 == "kubernetes-node-unknown",
        "{found:?}"
    );
    drop(server);
    let found = findings(&node, &config)?;
    ensure!(
        found.len() == 1 && found[0].0 == "kubernetes-unreachable",
        "{found:?}"
    );
    Ok(())
}
