//! CRI as kubelet speaks it, for pods on the host's network: thin enough that a test sees containerd's own errors.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, ContainerStatus, ContainerStatusRequest,
    CreateContainerRequest, ExecSyncRequest, Image, ImageSpec, ImageStatusRequest,
    LinuxContainerConfig, LinuxPodSandboxConfig, LinuxSandboxSecurityContext, NamespaceMode,
    NamespaceOption, PodSandboxConfig, PodSandboxMetadata, PodSandboxStatus,
    PodSandboxStatusRequest, PullImageRequest, RemoveContainerRequest, RemoveImageRequest,
    RemovePodSandboxRequest, RunPodSandboxRequest, StartContainerRequest, StatusRequest,
    StopContainerRequest, StopPodSandboxRequest, VersionRequest,
    image_service_client::ImageServiceClient, runtime_service_client::RuntimeServiceClient,
};
use tonic::Status;
use tonic::transport::Channel;

use crate::containerd::Lab;

/// The annotation of a sandbox that tells `PullImage` which handler the image is for.
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

/// How long CRI may take to notice an image that came in behind its back; it listens to containerd's events.
const IMAGE_EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to one containerd's CRI services.
#[derive(Debug, Clone)]
pub struct Cri {
    /// The runtime service, for calls that have no method here.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The image service, likewise.
    pub images: ImageServiceClient<Channel>,
    cgroup: String,
}

/// A pod sandbox that was run.
#[derive(Debug, Clone)]
pub struct Pod {
    /// Its id.
    pub id: String,
    /// Its configuration: a container's creation has to repeat it.
    pub config: PodSandboxConfig,
}

/// What a command in a container came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Exec {
    /// Its exit status.
    pub code: i32,
    /// Its standard output.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Cri {
    pub(crate) async fn connect(lab: &Lab) -> Result<Self> {
        let channel = containerd_client::connect(lab.socket())
            .await
            .with_context(|| format!("connecting to {}", lab.socket().display()))?;
        Ok(Self {
            runtime: RuntimeServiceClient::new(channel.clone()),
            images: ImageServiceClient::new(channel),
            cgroup: lab.cgroup(),
        })
    }

    /// The runtime's version; containerd answers this as soon as CRI is up.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn version(&mut self) -> Result<String, Status> {
        let request = VersionRequest {
            version: String::new(),
        };
        Ok(self
            .runtime
            .version(request)
            .await?
            .into_inner()
            .runtime_version)
    }

    /// The verbose status: `config` in there is CRI's configuration as JSON.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn info(&mut self) -> Result<HashMap<String, String>, Status> {
        Ok(self
            .runtime
            .status(StatusRequest { verbose: true })
            .await?
            .into_inner()
            .info)
    }

    /// Pulls an image for the default handler, and returns its id.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn pull_image(&mut self, name: &str) -> Result<String, Status> {
        self.pull(name, None).await
    }

    /// Pulls an image for a handler; on 2.1 [`crate::Options::pull_by_handler`] has to be on, or containerd does not
    /// heed it.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn pull_image_for(&mut self, name: &str, handler: &str) -> Result<String, Status> {
        let annotations = HashMap::from([(HANDLER_ANNOTATION.to_owned(), handler.to_owned())]);
        self.pull(
            name,
            Some(PodSandboxConfig {
                annotations,
                ..Default::default()
            }),
        )
        .await
    }

    async fn pull(
        &mut self,
        name: &str,
        sandbox_config: Option<PodSandboxConfig>,
    ) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(image_spec(name)),
            auth: None,
            sandbox_config,
        };
        Ok(self
            .images
            .pull_image(request)
            .await?
            .into_inner()
            .image_ref)
    }

    /// The image as CRI knows it, if it does.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn image_status(&mut self, name: &str) -> Result<Option<Image>, Status> {
        let request = ImageStatusRequest {
            image: Some(image_spec(name)),
            verbose: false,
        };
        Ok(self.images.image_status(request).await?.into_inner().image)
    }

    /// Removes an image with all its names.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn remove_image(&mut self, name: &str) -> Result<(), Status> {
        self.images
            .remove_image(RemoveImageRequest {
                image: Some(image_spec(name)),
            })
            .await?;
        Ok(())
    }

    pub(crate) async fn wait_for_image(&mut self, name: &str) -> Result<()> {
        let deadline = tokio::time::Instant::now() + IMAGE_EVENT_TIMEOUT;
        while self.image_status(name).await?.is_none() {
            if tokio::time::Instant::now() > deadline {
                bail!("CRI does not know {name} {IMAGE_EVENT_TIMEOUT:?} after it was imported");
            }
            tokio::time::sleep(crate::process::POLL).await;
        }
        Ok(())
    }

    /// Runs a pod sandbox on the host's network; an empty handler is the default one.
    ///
    /// # Errors
    /// CRI's own.
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
        let uid = unique();
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
            annotations: owned(annotations),
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

    /// The sandbox's status; its runtime handler is in there.
    ///
    /// # Errors
    /// CRI's own.
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

    /// Creates a container; an empty command leaves the image's own. Returns its id.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn create_container(
        &mut self,
        pod: &Pod,
        image: &str,
        annotations: &[(&str, &str)],
        command: &[&str],
    ) -> Result<String, Status> {
        let config = ContainerConfig {
            metadata: Some(ContainerMetadata {
                name: format!("container-{}", unique()),
                attempt: 0,
            }),
            image: Some(image_spec(image)),
            command: command.iter().map(|&word| word.to_owned()).collect(),
            annotations: owned(annotations),
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
    /// CRI's own.
    pub async fn start_container(&mut self, container: &str) -> Result<(), Status> {
        self.runtime
            .start_container(StartContainerRequest {
                container_id: container.to_owned(),
            })
            .await?;
        Ok(())
    }

    /// The container's status.
    ///
    /// # Errors
    /// CRI's own.
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

    /// Runs a command in a running container, to its end.
    ///
    /// # Errors
    /// CRI's own; a command that fails is no error here.
    pub async fn exec_sync(&mut self, container: &str, command: &[&str]) -> Result<Exec, Status> {
        let request = ExecSyncRequest {
            container_id: container.to_owned(),
            cmd: command.iter().map(|&word| word.to_owned()).collect(),
            timeout: 10, // seconds
        };
        let response = self.runtime.exec_sync(request).await?.into_inner();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Exec {
            code: response.exit_code,
            stdout: text(response.stdout),
            stderr: text(response.stderr),
        })
    }

    /// What a file in a running container holds.
    ///
    /// # Errors
    /// If there is no `cat` or no such file in there.
    pub async fn cat(&mut self, container: &str, path: &str) -> Result<String> {
        let exec = self.exec_sync(container, &["cat", path]).await?;
        if exec.code != 0 {
            bail!("cat {path} in {container}: {}", exec.stderr.trim());
        }
        Ok(exec.stdout)
    }

    /// Kills a container at once.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn stop_container(&mut self, container: &str) -> Result<(), Status> {
        self.runtime
            .stop_container(StopContainerRequest {
                container_id: container.to_owned(),
                timeout: 0,
            })
            .await?;
        Ok(())
    }

    /// Removes a container, which is stopped first if it runs.
    ///
    /// # Errors
    /// CRI's own.
    pub async fn remove_container(&mut self, container: &str) -> Result<(), Status> {
        self.runtime
            .remove_container(RemoveContainerRequest {
                container_id: container.to_owned(),
            })
            .await?;
        Ok(())
    }

    /// Stops a pod and removes it with its containers.
    ///
    /// # Errors
    /// CRI's own.
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

fn image_spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        ..Default::default()
    }
}

fn owned(pairs: &[(&str, &str)]) -> HashMap<String, String> {
    pairs
        .iter()
        .map(|&(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// Different in every call of every test process, as kubelet's ids are.
fn unique() -> String {
    use std::sync::atomic::{AtomicU32, Ordering};
    static COUNT: AtomicU32 = AtomicU32::new(0);
    format!(
        "{}-{}",
        std::process::id(),
        COUNT.fetch_add(1, Ordering::Relaxed)
    )
}
