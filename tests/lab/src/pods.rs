//! CRI's pods and containers, on the host's network, for which containerd needs no CNI.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Result, bail};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, LinuxContainerConfig, LinuxPodSandboxConfig,
    LinuxSandboxSecurityContext, NamespaceMode, NamespaceOption, PodSandboxConfig,
    PodSandboxMetadata, PodSandboxStatus, PodSandboxStatusRequest, RemoveContainerRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StopContainerRequest,
    StopPodSandboxRequest,
};
use tonic::Status;

use crate::cri::{Cri, image_spec};

/// The timeout of a command in a container; those of the tests take some hundredths of a second.
const EXEC_TIMEOUT: Duration = Duration::from_secs(10);

/// A pod sandbox.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its ID.
    pub id: String,
    /// Its configuration, which the creation of a container has to repeat.
    pub config: PodSandboxConfig,
}

/// The result of a command in a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Its exit code.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cri {
    /// Runs a pod sandbox on the host's network; an empty handler selects the default one.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn run_pod(
        &mut self,
        handler: &str,
        annotations: &[(&str, &str)],
    ) -> Result<Pod, Status> {
        let config = self.pod_config(annotations);
        let request = RunPodSandboxRequest {
            config: Some(config.clone()),
            runtime_handler: handler.to_owned(),
        };
        let id = self
            .runtime
            .run_pod_sandbox(request)
            .await?
            .into_inner()
            .pod_sandbox_id;
        Ok(Pod { id, config })
    }

    fn pod_config(&self, annotations: &[(&str, &str)]) -> PodSandboxConfig {
        let uid = unique_name();
        let namespace_options = NamespaceOption {
            network: NamespaceMode::Node.into(),
            ..Default::default()
        };
        PodSandboxConfig {
            metadata: Some(PodSandboxMetadata {
                name: format!("pod-{uid}"),
                namespace: "lab".to_owned(),
                uid,
                attempt: 0,
            }),
            annotations: to_map(annotations),
            linux: Some(LinuxPodSandboxConfig {
                cgroup_parent: self.cgroup.clone(),
                security_context: Some(LinuxSandboxSecurityContext {
                    namespace_options: Some(namespace_options),
                    ..Default::default()
                }),
                ..Default::default()
            }),
            ..Default::default()
        }
    }

    /// Returns the sandbox's status, which contains the runtime handler.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn pod_status(&mut self, pod: &Pod) -> Result<PodSandboxStatus, Status> {
        let request = PodSandboxStatusRequest {
            pod_sandbox_id: pod.id.clone(),
            verbose: false,
        };
        let status = self
            .runtime
            .pod_sandbox_status(request)
            .await?
            .into_inner()
            .status;
        status.ok_or_else(|| Status::internal("a sandbox status without status"))
    }

    /// Creates a container; an empty command selects the image's. Returns the container's ID.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn create_container(
        &mut self,
        pod: &Pod,
        image: &str,
        annotations: &[(&str, &str)],
        command: &[&str],
    ) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: format!("container-{}", unique_name()),
                attempt: 0,
            }),
            image: Some(image_spec(image)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            annotations: to_map(annotations),
            linux: Some(LinuxContainerConfig::default()),
            ..Default::default()
        };
        let request = CreateContainerRequest {
            pod_sandbox_id: pod.id.clone(),
            config: Some(config),
            sandbox_config: Some(pod.config.clone()),
        };
        Ok(self
            .runtime
            .create_container(request)
            .await?
            .into_inner()
            .container_id)
    }

    /// Starts a created container.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn start_container(&mut self, container: &str) -> Result<(), Status> {
        self.runtime
            .start_container(StartContainerRequest {
                container_id: container.to_owned(),
            })
            .await?;
        Ok(())
    }

    /// Returns the container's status.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn container_status(&mut self, container: &str) -> Result<ContainerStatus, Status> {
        let request = ContainerStatusRequest {
            container_id: container.to_owned(),
            verbose: false,
        };
        let status = self
            .runtime
            .container_status(request)
            .await?
            .into_inner()
            .status;
        status.ok_or_else(|| Status::internal("a container status without status"))
    }

    /// Runs a command in a running container, and waits for its end.
    ///
    /// # Errors
    /// If CRI returns an error; a failing command is no error.
    pub async fn exec_sync(&mut self, container: &str, command: &[&str]) -> Result<Exec, Status> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: EXEC_TIMEOUT.as_secs() as i64,
        };
        let response = self.runtime.exec_sync(request).await?.into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Exec {
            code: response.exit_code,
            stdout: text(response.stdout),
            stderr: text(response.stderr),
        })
    }

    /// Returns the content of a file in a running container.
    ///
    /// # Errors
    /// If the container has no `cat` or no such file.
    pub async fn cat(&mut self, container: &str, path: &str) -> Result<String> {
        let exec = self.exec_sync(container, &["cat", path]).await?;
        if exec.code != 0 {
            bail!("cat {path} in {container}: {}", exec.stderr.trim());
        }
        Ok(exec.stdout)
    }

    /// Kills a container immediately.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn stop_container(&mut self, container: &str) -> Result<(), Status> {
        self.runtime
            .stop_container(StopContainerRequest {
                container_id: container.to_owned(),
                timeout: 0,
            })
            .await?;
        Ok(())
    }

    /// Removes a container, and stops it before if it runs.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn remove_container(&mut self, container: &str) -> Result<(), Status> {
        self.runtime
            .remove_container(RemoveContainerRequest {
                container_id: container.to_owned(),
            })
            .await?;
        Ok(())
    }

    /// Stops a pod, and removes it with its containers.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn remove_pod(&mut self, pod: &Pod) -> Result<(), Status> {
        self.runtime
            .stop_pod_sandbox(StopPodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            })
            .await?;
        self.runtime
            .remove_pod_sandbox(RemovePodSandboxRequest {
                pod_sandbox_id: pod.id.clone(),
            })
            .await?;
        Ok(())
    }
}

fn to_map(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Returns a string that is unique for each call in each test process, as the kubelet's IDs are.
fn unique_name() -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}
