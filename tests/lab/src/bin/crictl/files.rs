//! The files of `runp` and `create`, with the keys that the scripts here use. An unknown key is an error, which
//! crictl would ignore: it is a mistake.

use std::collections::HashMap;

use anyhow::{Context, Result, bail};
use k8s_cri::v1;
use serde::Deserialize;
use serde::de::DeserializeOwned;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Pod {
    metadata: PodMetadata,
    #[serde(default)]
    labels: HashMap<String, String>,
    #[serde(default)]
    annotations: HashMap<String, String>,
    linux: Option<PodLinux>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodMetadata {
    name: String,
    namespace: String,
    uid: String,
    #[serde(default)]
    attempt: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PodLinux {
    #[serde(default)]
    cgroup_parent: String,
    #[serde(default)]
    security_context: SecurityContext,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct SecurityContext {
    #[serde(default)]
    namespace_options: NamespaceOptions,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct NamespaceOptions {
    /// CRI's number: 2 is the node's namespace.
    #[serde(default)]
    network: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Container {
    metadata: ContainerMetadata,
    image: Image,
    #[serde(default)]
    command: Vec<String>,
    linux: Option<ContainerLinux>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainerMetadata {
    name: String,
    #[serde(default)]
    attempt: u32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Image {
    image: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ContainerLinux {}

/// Reads a `pod-config.json`.
pub(crate) fn pod(path: &str) -> Result<v1::PodSandboxConfig> {
    let pod: Pod = read(path).context("load podSandboxConfig")?;
    if pod.metadata.name.is_empty() || pod.metadata.namespace.is_empty() {
        bail!("load podSandboxConfig: name or namespace is not in metadata");
    }
    let linux = pod.linux.map(|linux| v1::LinuxPodSandboxConfig {
        cgroup_parent: linux.cgroup_parent,
        security_context: Some(v1::LinuxSandboxSecurityContext {
            namespace_options: Some(v1::NamespaceOption {
                network: linux.security_context.namespace_options.network,
                ..Default::default()
            }),
            ..Default::default()
        }),
        ..Default::default()
    });
    Ok(v1::PodSandboxConfig {
        metadata: Some(v1::PodSandboxMetadata {
            name: pod.metadata.name,
            namespace: pod.metadata.namespace,
            uid: pod.metadata.uid,
            attempt: pod.metadata.attempt,
        }),
        labels: pod.labels,
        annotations: pod.annotations,
        linux,
        ..Default::default()
    })
}

/// Reads a `container-config.json`.
pub(crate) fn container(path: &str) -> Result<v1::ContainerConfig> {
    let container: Container = read(path)?;
    let Image { image } = container.image;
    if image.is_empty() {
        bail!("image field is not set in image");
    }
    Ok(v1::ContainerConfig {
        metadata: Some(v1::ContainerMetadata {
            name: container.metadata.name,
            attempt: container.metadata.attempt,
        }),
        image: Some(v1::ImageSpec {
            user_specified_image: image.clone(),
            image,
            ..Default::default()
        }),
        command: container.command,
        linux: container
            .linux
            .map(|ContainerLinux {}| v1::LinuxContainerConfig::default()),
        ..Default::default()
    })
}

fn read<T: DeserializeOwned>(path: &str) -> Result<T> {
    let text = std::fs::read(path).with_context(|| format!("config at {path} not found"))?;
    Ok(serde_json::from_slice(&text)?)
}
