//! The plugin's pod on a real containerd: its image by the recipe, its container by the manifests.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{ContainerState, ContainerStatusRequest, StopContainerRequest};
use k8s_openapi::api::core::v1::Probe;
use lab::{Log, Pod, Version};
use serde_json::Value;
use tokio::net::TcpStream;

use super::manifests::Manifests;
use super::{kubelet, recipe};
use crate::metrics::{free_port, get};
use crate::rebuild::{NASTY, assert_as_source, discarded};
use crate::support::{Node, PATIENCE, RESOLVED, handler};

/// The log file of the plugin's container.
const LOG: &str = "plugin-in-pod.log";

/// The plugin that runs in its pod.
pub(super) struct Deployed {
    pub(super) manifests: Manifests,
    pub(super) container: String,
    /// Its metrics socket, instead of a port, which only one test could use.
    address: String,
}

impl Node {
    /// Deploys the base variant, and waits until it serves.
    pub(super) async fn deploy(&mut self) -> Result<Deployed> {
        let deployed = self.deploy_manifests(Manifests::of("base")?).await?;
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        Ok(deployed)
    }

    /// Starts the pod of these manifests.
    pub(super) async fn deploy_manifests(&mut self, mut manifests: Manifests) -> Result<Deployed> {
        let probe = manifests.container()?.readiness_probe.as_ref();
        let (listen, _) = kubelet::probe_target(manifests.container()?, probe)?;
        let (taken, address) = free_port().await?;
        drop(taken);
        let config = manifests.config()?.replace(&listen, &address);
        // The free space and the speed of the test machine must not matter.
        let more = "[unpack]\nmin_free = \"0%\"\n[log]\nlevel = \"debug\"\n";
        manifests.set_config(format!("{config}\n{}\n{more}", self.hooks));
        let pod = self.plugin_pod(&manifests).await?;
        let container = self.plugin_container(&manifests, &pod, LOG).await?;
        self.log = Log::new(self.lab.path(LOG));
        Ok(Deployed {
            manifests,
            container,
            address,
        })
    }

    /// Imports the image, and runs the sandbox.
    pub(super) async fn plugin_pod(&mut self, manifests: &Manifests) -> Result<Pod> {
        let name = manifests.container()?.image.as_deref();
        let image = recipe::image(name.context("no image")?)?;
        self.lab.import(&image).await?;
        if self.lab.node_root().is_none() {
            self.lab.share_mounts()?;
        }
        ensure!(manifests.pod()?.host_network == Some(true));
        let annotations = manifests.annotations();
        Ok(self.cri.run_pod("", &annotations).await?)
    }

    async fn plugin_container(
        &mut self,
        manifests: &Manifests,
        pod: &Pod,
        log: &str,
    ) -> Result<String> {
        let request = kubelet::request(manifests, &self.lab, pod, log)?;
        let created = self.cri.runtime.create_container(request).await?;
        let container = created.into_inner().container_id;
        self.cri.start_container(&container).await?;
        Ok(container)
    }

    /// Runs the program in the plugin's container, as `kubectl exec` does.
    async fn exec(&mut self, plugin: &Deployed, arguments: &[&str]) -> Result<String> {
        let command = [&["nri-unpack"], arguments].concat();
        let exec = self.cri.exec_sync(&plugin.container, &command).await?;
        ensure!(exec.code <= 1, "{command:?}: {exec:?}");
        Ok(exec.stdout)
    }

    /// Returns the process ID of a container on this machine.
    async fn pid(&mut self, container: &str) -> Result<u64> {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: true,
        };
        let status = self.cri.runtime.container_status(request).await?;
        let info = status.into_inner().info;
        let info: Value = serde_json::from_str(info.get("info").context("no information")?)?;
        info["pid"].as_u64().context("no pid")
    }

    /// Waits until a container has ended; returns its exit code.
    pub(super) async fn wait_for_exit(&mut self, container: &str) -> Result<i32> {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let status = self.cri.container_status(container).await?;
            if status.state() == ContainerState::ContainerExited {
                return Ok(status.exit_code);
            }
            ensure!(
                tokio::time::Instant::now() < deadline,
                "it runs: {status:?}"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Deployed {
    /// Repeats the kubelet's probe until it succeeds.
    async fn wait_for_probe(&self, probe: Option<&Probe>) -> Result<()> {
        let (_, path) = kubelet::probe_target(self.manifests.container()?, probe)?;
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let answer = match TcpStream::connect(&self.address).await {
                Ok(stream) => get(stream, &path, "*/*").await,
                Err(e) => Err(e.into()),
            };
            match answer {
                Ok((200, _, _)) => return Ok(()),
                answer => ensure!(tokio::time::Instant::now() < deadline, "{path}: {answer:?}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    async fn assert_alive_and_ready(&self) -> Result<()> {
        let container = self.manifests.container()?;
        self.wait_for_probe(container.liveness_probe.as_ref())
            .await?;
        self.wait_for_probe(container.readiness_probe.as_ref())
            .await
    }
}

/// The image of a pod of this version's handler is labelled, before and after a restart of containerd. The
/// plugin ends on SIGTERM.
async fn main_job(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let plugin = node.deploy().await?;
    plugin.assert_alive_and_ready().await?;
    let handlers = node.exec(&plugin, &["handlers"]).await?;
    // containerd 2 does not report its default snapshotter in its status.
    let from = match version {
        Version::V1_7 => "CRI status",
        Version::V2_1 => "CRI image file system",
    };
    ensure!(handlers.contains(from), "{handlers}");
    let findings = node.exec(&plugin, &["doctor", "--output", "json"]).await?;
    ensure!(!findings.contains("rebuild-unreadable"), "{findings}");

    let handler = handler(version);
    let image = node.image.name().to_owned();
    let pod = node.cri.run_pod(handler, &[]).await?;
    let container = node.cri.create_container(&pod, &image, &[], &[]).await?;
    node.wait_labelled(handler).await?;
    node.assert_nothing_left(handler).await?;
    node.cri.start_container(&container).await?;
    ensure!(node.cri.cat(&container, "/data/three").await? == "three\n");

    let log = node.log.from_now();
    node.restart_containerd().await?;
    log.wait_for(RESOLVED, PATIENCE).await?;
    plugin.assert_alive_and_ready().await?;

    let grace = plugin.manifests.pod()?.termination_grace_period_seconds;
    let request = StopContainerRequest {
        container_id: plugin.container.clone(),
        timeout: grace.context("no grace period")?,
    };
    node.cri.runtime.stop_container(request).await?;
    ensure!(node.wait_for_exit(&plugin.container).await? == 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn erofs_on_2_1() -> Result<()> {
    main_job(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn native_on_1_7() -> Result<()> {
    main_job(Version::V1_7).await
}

/// The blobs are missing, as with `discard_unpacked_layers`: the layers are rebuilt from overlayfs, completely.
#[tokio::test(flavor = "multi_thread")]
async fn layers_are_rebuilt_in_the_pod() -> Result<()> {
    let version = Version::V2_1;
    let handler = handler(version);
    let mut node = discarded(version, handler).await?;
    node.deploy().await?;
    let annotations = [("nri-unpack/images", NASTY)];
    let pod = node.cri.run_pod(handler, &annotations).await?;
    node.wait_labelled(handler).await?;
    for snapshot in node.store.chain(handler, &node.image).await? {
        let from = snapshot.labels.get("nri-unpack/rebuilt-from");
        ensure!(from.is_some(), "{snapshot:#?}");
    }
    node.assert_nothing_left(handler).await?;
    assert_as_source(&node, handler).await?;
    node.cri.create_container(&pod, NASTY, &[], &[]).await?;
    Ok(())
}

/// If one of the capabilities is missing, a layer is not rebuilt at all, instead of incompletely.
#[tokio::test(flavor = "multi_thread")]
async fn rebuilding_needs_each_capability() -> Result<()> {
    let version = Version::V2_1;
    let mut node = discarded(version, handler(version)).await?;
    let mut manifests = Manifests::of("base")?;
    let pod = node.plugin_pod(&manifests).await?;
    let all = manifests.capabilities()?.clone();
    ensure!(!all.is_empty());
    let arguments = ["ensure", NASTY, "--handler", handler(version)];
    manifests.set_arguments(&arguments)?;
    for missing in &all {
        let held = all.iter().filter(|held| *held != missing);
        *manifests.capabilities()? = held.cloned().collect();
        let log = format!("without-{missing}.log");
        let container = node.plugin_container(&manifests, &pod, &log).await?;
        let status = node.wait_for_exit(&container).await?;
        let log_text = Log::new(node.lab.path(&log)).text();
        ensure!(
            status == 1 && log_text.contains("rebuild: "),
            "{log}: {status}\n{log_text}"
        );
    }
    *manifests.capabilities()? = all;
    let container = node
        .plugin_container(&manifests, &pod, "with-all.log")
        .await?;
    ensure!(node.wait_for_exit(&container).await? == 0);
    assert_as_source(&node, handler(version)).await?;
    Ok(())
}

/// A file system that is unmounted on the node must not stay in use by the plugin's container.
#[tokio::test(flavor = "multi_thread")]
async fn unmounted_file_systems_are_released() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let place = node.lab.root().join("another-container");
    std::fs::create_dir(&place)?;
    let run = |command: &mut Command| -> Result<()> {
        let output = command.arg(&place).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(())
    };
    run(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]))?;
    let plugin = node.deploy().await?;
    let table = format!("/proc/{}/mountinfo", node.pid(&plugin.container).await?);
    let is_mounted = || -> Result<bool> {
        let table = std::fs::read_to_string(&table)?;
        Ok(table.contains(&*place.display().to_string()))
    };
    ensure!(is_mounted()?, "containerd's root is not visible in the pod");
    run(&mut Command::new("umount"))?;
    ensure!(!is_mounted()?, "it is still mounted in the pod");
    Ok(())
}
