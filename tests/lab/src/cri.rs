//! CRI as kubelet speaks it, thin enough that a test sees containerd's own errors: the connection, and images.

use std::collections::HashMap;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_cri::v1::image_service_client::ImageServiceClient;
use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{
    Image, ImageSpec, ImageStatusRequest, PodSandboxConfig, PullImageRequest, RemoveImageRequest,
    StatusRequest, VersionRequest,
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
    /// The cgroup that pods are put below.
    pub(crate) cgroup: String,
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
}

/// An image as kubelet names it before it has resolved it to an id.
pub(crate) fn image_spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        ..Default::default()
    }
}
