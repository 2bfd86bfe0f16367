//! The plugin under Kubernetes: the manifests are valid. With the mounts and privileges that they give it, the
//! plugin works in a container on a real containerd.

mod chart;
mod components;
mod distributions;
mod host_path;
mod kubelet;
mod manifests;
mod pod;
mod purge;
mod recipe;

use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::apps::v1::DaemonSet;
use nri_unpack::config::Config;
use serde_json::Value;

use manifests::{Manifests, VARIANTS, checked, directory, documents, render};

/// A misspelt field and a value of a wrong type are found.
#[test]
fn fields_outside_the_schema_are_found() -> Result<()> {
    let documents = render("base")?;
    let mut documents = documents.iter().filter(|d| d["kind"] == "DaemonSet");
    let valid = documents.next().context("a DaemonSet")?;
    checked::<DaemonSet>(valid)?;
    let spec = "/spec/template/spec";
    let cases = [
        (spec, "hostNetworks", Value::Bool(true)),
        (spec, "hostNetwork", Value::from("yes")),
        (
            "/spec/template/spec/containers/0/securityContext",
            "readOnlyRootFileSystem",
            Value::Bool(true),
        ),
    ];
    for (place, name, value) in cases {
        let mut flawed = valid.clone();
        flawed.pointer_mut(place).context(place)?[name] = value;
        let Err(error) = checked::<DaemonSet>(&flawed) else {
            bail!("{name} was not found");
        };
        let error = error.to_string();
        ensure!(
            error.contains(name) || error.contains("expected a boolean"),
            "{name}: {error}"
        );
    }
    Ok(())
}

/// The paths of the configuration are mounted, and the mounts are paths of the node.
#[test]
fn paths_of_each_variant_are_mounted() -> Result<()> {
    for variant in VARIANTS {
        let manifests = Manifests::of(variant).context(variant)?;
        let config = Config::from_toml(manifests.config()?, variant)?;
        let container = manifests.container()?;
        let mut mounted = Vec::new();
        for mount in container.volume_mounts.iter().flatten() {
            let volume = manifests.volume(&mount.name)?;
            if let Some(host) = &volume.host_path {
                ensure!(host.path == mount.mount_path, "{variant}: {mount:?}");
                mounted.push(Path::new(&mount.mount_path));
            }
            ensure!(mount.read_only == Some(true), "{variant}: {mount:?}");
        }
        let paths = [
            config.containerd.socket.as_ref(),
            config.containerd.config.as_ref(),
            config.nri.socket.as_ref(),
            config.pull.hosts.as_ref(),
        ];
        for path in paths {
            let is_mounted = mounted.iter().any(|mount| path.starts_with(mount));
            ensure!(is_mounted, "{variant}: {} is not mounted", path.display());
        }
        let listen = config.metrics.listen.context("it does not listen")?;
        for probe in [&container.liveness_probe, &container.readiness_probe] {
            let (address, _) = kubelet::probe_target(container, probe.as_ref())?;
            ensure!(address == listen.to_string(), "{variant}: {address}");
        }
        let image = container.image.as_deref().unwrap_or_default();
        let tag = concat!(":", env!("CARGO_PKG_VERSION"));
        ensure!(image.ends_with(tag), "{variant}: {image}, not {tag}");
    }
    Ok(())
}

/// No schema of Prometheus' own kind exists here; the test checks that the labels and the port that it names
/// exist.
#[test]
fn the_pod_monitor_finds_the_pods() -> Result<()> {
    let manifests = Manifests::of("base")?;
    let text = std::fs::read_to_string(directory().join("podmonitor.yaml"))?;
    let [monitor] = &documents(&text)?[..] else {
        bail!("not one document");
    };
    let metadata = &manifests.daemon_set.metadata;
    let selector = &monitor["spec"]["selector"]["matchLabels"];
    ensure!(*selector == serde_json::to_value(&metadata.labels)?);
    ensure!(monitor["metadata"]["namespace"] == *metadata.namespace.as_ref().context("none")?);
    let port = &monitor["spec"]["podMetricsEndpoints"][0]["port"];
    let ports = manifests.container()?.ports.iter().flatten();
    let names: Vec<_> = ports.map(|port| port.name.as_deref()).collect();
    ensure!(names.contains(&port.as_str()), "{port} in {names:?}");
    Ok(())
}
