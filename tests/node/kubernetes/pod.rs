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

/// Where the plugin's container logs to.
const LOG: &str = "plugin-in-pod.log";

/// The plugin, serving in its pod.
struct Deployed {
    manifests: Manifests,
    container: String,
    /// Where it serves its metrics, instead of a port that only one test could have.
    address: String,
}

impl Node {
    /// As the base has it.
    async fn deploy(&mut self) -> Result<Deployed> {
        let mut manifests = Manifests::of("base")?;
        let probe = manifests.container()?.readiness_probe.as_ref();
        let (listen, _) = kubelet::asks(manifests.container()?, probe)?;
        let (taken, address) = free_port().await?;
        drop(taken);
        let config = manifests.config()?.replace(&listen, &address);
        // How full the tests' disk is must not matter, nor how slow their machine is.
        let more = "[unpack]\nmin_free = \"0%\"\n[log]\nlevel = \"debug\"\n";
        manifests.set_config(format!("{config}\n{}\n{more}", self.hooks));
        let pod = self.plugin_pod(&manifests).await?;
        let container = self.plugin_container(&manifests, &pod, LOG).await?;
        self.log = Log::new(self.lab.path(LOG));
        self.log.wait_for(RESOLVED, PATIENCE).await?;
        Ok(Deployed {
            manifests,
            container,
            address,
        })
    }

    /// Brings the image, and runs the sandbox.
    async fn plugin_pod(&mut self, manifests: &Manifests) -> Result<Pod> {
        let name = manifests.container()?.image.as_deref();
        let image = recipe::image(name.context("no image")?)?;
        self.lab.import(&image).await?;
        self.lab.share_mounts()?;
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

    /// Runs the program beside the plugin, as `kubectl exec` does.
    async fn exec(&mut self, plugin: &Deployed, arguments: &[&str]) -> Result<String> {
        let command = [&["nri-unpack"], arguments].concat();
        let exec = self.cri.exec_sync(&plugin.container, &command).await?;
        ensure!(exec.code <= 1, "{command:?}: {exec:?}");
        Ok(exec.stdout)
    }

    /// The process of a container, as this machine numbers it.
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

    /// The exit status of a container, when it has ended.
    async fn ended(&mut self, container: &str) -> Result<i32> {
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
    /// Asks what the kubelet asks, until all is well.
    async fn answers(&self, probe: Option<&Probe>) -> Result<()> {
        let (_, path) = kubelet::asks(self.manifests.container()?, probe)?;
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

    async fn is_alive_and_ready(&self) -> Result<()> {
        let container = self.manifests.container()?;
        self.answers(container.liveness_probe.as_ref()).await?;
        self.answers(container.readiness_probe.as_ref()).await
    }
}

/// The image of a pod of this version's handler is labelled, before and after a restart of containerd,
/// and the plugin ends by itself.
async fn main_job(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let plugin = node.deploy().await?;
    plugin.is_alive_and_ready().await?;
    let handlers = node.exec(&plugin, &["handlers"]).await?;
    // containerd 2 does not tell its default snapshotter in its status.
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
    plugin.is_alive_and_ready().await?;

    let grace = plugin.manifests.pod()?.termination_grace_period_seconds;
    let request = StopContainerRequest {
        container_id: plugin.container.clone(),
        timeout: grace.context("no grace period")?,
    };
    node.cri.runtime.stop_container(request).await?;
    ensure!(node.ended(&plugin.container).await? == 0);
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

/// The blobs are gone, as `discard_unpacked_layers` leaves it: the layers come from overlayfs, whole.
#[tokio::test(flavor = "multi_thread")]
async fn layers_are_rebuilt() -> Result<()> {
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

/// Without one of the capabilities a layer is not rebuilt, rather than rebuilt in part.
#[tokio::test(flavor = "multi_thread")]
async fn each_capability_is_needed() -> Result<()> {
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
        let status = node.ended(&container).await?;
        let said = Log::new(node.lab.path(&log)).text();
        ensure!(
            status == 1 && said.contains("rebuild: "),
            "{log}: {status}\n{said}"
        );
    }
    *manifests.capabilities()? = all;
    let container = node
        .plugin_container(&manifests, &pod, "with-all.log")
        .await?;
    ensure!(node.ended(&container).await? == 0);
    assert_as_source(&node, handler(version)).await?;
    Ok(())
}

/// What is unmounted on the node must not stay in use because the plugin's container has it as well.
#[tokio::test(flavor = "multi_thread")]
async fn nothing_stays_mounted_in_it() -> Result<()> {
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
    ensure!(is_mounted()?, "containerd's root is not what the pod has");
    run(&mut Command::new("umount"))?;
    ensure!(!is_mounted()?, "it is still mounted");
    Ok(())
}
