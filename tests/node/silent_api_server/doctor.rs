//! `doctor` beside an API server that does not answer: it ends, names that, and has all other findings.

use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::{Ignored, Mode, Version};
use serde_json::Value;
use tokio::time::Instant;

use super::Silence;
use crate::bound::CLASS;
use crate::faults::api_server::DOCTOR;
use crate::startup_taint::{TAINT, kubernetes_node, taint};
use crate::support::{Node, handler};

/// The longest time of the command: its limit for the API server is eight seconds.
const LONGEST: Duration = Duration::from_secs(8 + 6);

#[tokio::test(flavor = "multi_thread")]
async fn doctor_ends_and_names_it() -> Result<()> {
    let version = Version::V2_1;
    let node = Node::start(version).await?;
    let requests = DOCTOR
        .into_iter()
        .flat_map(|kind| [Mode::Silent, Mode::HalfSilent].map(|mode| Silence::Request(kind, mode)));
    let connections = [Ignored::Connect, Ignored::Accept, Ignored::Handshake];
    // The findings without Kubernetes.
    let others = findings(node.command(&["doctor", "--output", "json"])?.stdout)?;
    ensure!(!others.is_empty(), "there is nothing to be found");
    let mut running = vec![];
    for silence in requests.chain(connections.map(Silence::Connection)) {
        let server = silence.server().await?;
        server.put_class(CLASS, handler(version));
        server.put_node(kubernetes_node(&[taint(TAINT, "NoSchedule")])?);
        let met = silence.begin(&server)?;
        let config = node.lab.path(&format!("doctor-{}.toml", running.len()));
        std::fs::write(&config, node.config(&node.at(&server)?))?;
        let mut command = std::process::Command::new(&node.program);
        command
            .args(["doctor", "--output", "json", "--config"])
            .arg(config);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        running.push((silence, server, met, Instant::now(), command.spawn()?));
    }
    for (silence, _server, met, began, child) in running {
        let ended = tokio::task::spawn_blocking(|| child.wait_with_output());
        let output = ended.await??;
        let took = began.elapsed();
        let found = findings(output.stdout).with_context(|| format!("{silence:?}"))?;
        println!("{silence:?}: {took:?}");
        ensure!(took < LONGEST, "{silence:?}: {took:?}");
        let is_met = met.is_none_or(|met| met.load(std::sync::atomic::Ordering::Relaxed));
        ensure!(is_met, "{silence:?}: not asked for");
        let named: Vec<_> = found
            .iter()
            .filter(|(id, _)| id == "kubernetes-unreachable")
            .collect();
        ensure!(
            named.len() == 1 && named[0].1.contains("does not answer within 8s"),
            "{silence:?}: {found:#?}"
        );
        let missing: Vec<_> = others
            .iter()
            .filter(|(id, _)| !found.iter().any(|(it, _)| it == id))
            .collect();
        ensure!(missing.is_empty(), "{silence:?} without {missing:#?}");
    }
    Ok(())
}

/// Returns the id and the text of each finding.
fn findings(report: Vec<u8>) -> Result<Vec<(String, String)>> {
    let report: Value = serde_json::from_slice(&report)?;
    let findings = report["findings"].as_array().context("no findings")?;
    let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
    let both = findings
        .iter()
        .map(|it| (text(it, "id"), text(it, "found")));
    Ok(both.collect())
}
