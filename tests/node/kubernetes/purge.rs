//! `purge` in a pod, from the image and the manifests of the plugin: it has to see the processes of the node.

use anyhow::{Context, Result, ensure};
use k8s_cri::v1::{NamespaceMode, RunPodSandboxRequest, StopContainerRequest};
use lab::{Log, Pod, Version};

use super::kubelet;
use super::manifests::Manifests;
use super::pod::Deployed;
use crate::support::{Node, handler};

impl Node {
    /// Runs a pod whose containers have this process namespace.
    async fn pod_with(&mut self, plugin: &Deployed, pid: NamespaceMode) -> Result<Pod> {
        let annotations = plugin.manifests.annotations();
        let Pod { id, mut config } = self.cri.run_pod("", &annotations).await?;
        let linux = config.linux.as_mut();
        let context = linux.and_then(|it| it.security_context.as_mut());
        let namespaces = context.and_then(|it| it.namespace_options.as_mut());
        namespaces.context("namespaces")?.pid = pid.into();
        let metadata = config.metadata.as_mut().context("metadata")?;
        metadata.uid += "-purge";
        metadata.name += "-purge";
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: String::new(),
        };
        let ran = self.cri.runtime.run_pod_sandbox(request).await?;
        let template = Pod {
            id,
            config: config.clone(),
        };
        self.cri.remove_pod(&template).await?;
        Ok(Pod {
            id: ran.into_inner().pod_sandbox_id,
            config,
        })
    }

    /// Runs the program with these arguments in a container like the plugin's. Returns its exit code and its log.
    async fn run_in_pod(
        &mut self,
        plugin: &mut Deployed,
        pod: &Pod,
        arguments: &[&str],
        pid: NamespaceMode,
    ) -> Result<(i32, String)> {
        plugin.manifests.set_arguments(arguments)?;
        let log = format!("{}-{pid:?}.log", arguments.join("-"));
        let mut request = kubelet::request(&plugin.manifests, &self.lab, pod, &log)?;
        let linux = request.config.as_mut().and_then(|it| it.linux.as_mut());
        let context = linux.and_then(|it| it.security_context.as_mut());
        let namespaces = context.and_then(|it| it.namespace_options.as_mut());
        namespaces.context("namespaces")?.pid = pid.into();
        let created = self.cri.runtime.create_container(request).await?;
        let container = created.into_inner().container_id;
        self.cri.start_container(&container).await?;
        let code = self.wait_for_exit(&container).await?;
        self.cri.remove_container(&container).await?;
        let text = Log::new(self.lab.path(&log)).text();
        std::fs::remove_file(self.lab.path(&log))?;
        Ok((code, text))
    }
}

async fn purges(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    let mut plugin = node.deploy().await?;
    let mut component = Manifests::with_component("base", "purge")?;
    *plugin.manifests.capabilities()? = component.capabilities()?.clone();
    let handler = handler(version);
    node.ensure_ready(&node.image.clone(), handler)?;
    let (own, host) = (NamespaceMode::Container, NamespaceMode::Node);
    let pod = node.pod_with(&plugin, own).await?;
    let on_host = node.pod_with(&plugin, host).await?;

    let (code, log) = node
        .run_in_pod(&mut plugin, &on_host, &["purge"], host)
        .await?;
    ensure!(
        code == 1 && log.contains("the plugin runs on this node"),
        "{code}: {log}"
    );
    let request = StopContainerRequest {
        container_id: plugin.container.clone(),
        timeout: 20,
    };
    node.cri.runtime.stop_container(request).await?;
    let (code, log) = node.run_in_pod(&mut plugin, &pod, &["purge"], own).await?;
    ensure!(code == 1 && log.contains("hostPID: true"), "{code}: {log}");
    ensure!(node.store.chain(handler, &node.image).await?.len() == 5);

    let (code, log) = node
        .run_in_pod(&mut plugin, &on_host, &["purge"], host)
        .await?;
    ensure!(code == 0 && log.contains("removed"), "{code}: {log}");
    ensure!(node.store.chain(handler, &node.image).await?.is_empty());
    let again = ["purge", "--force"];
    let (code, log) = node.run_in_pod(&mut plugin, &pod, &again, own).await?;
    ensure!(
        code == 0 && log.contains("nothing is left of the plugin"),
        "{code}: {log}"
    );
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_runs_in_a_pod_on_2_1() -> Result<()> {
    purges(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn purge_runs_in_a_pod_on_1_7() -> Result<()> {
    purges(Version::V1_7).await
}
