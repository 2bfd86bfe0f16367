//! A CRI client like the kubelet, which returns containerd's errors unchanged: the connection, and images.

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

/// The annotation of a sandbox that tells `PullImage` for which handler the image is.
const HANDLER_ANNOTATION: &str = "io.containerd.cri.runtime-handler";

/// The timeout until CRI knows an imported image, of which it learns from containerd's events.
const IMAGE_EVENT_TIMEOUT: Duration = Duration::from_secs(10);

/// A connection to the CRI services of a containerd.
#[derive(Debug, Clone)]
pub struct Cri {
    /// The runtime service, for calls without a method here.
    pub runtime: RuntimeServiceClient<Channel>,
    /// The image service, for calls without a method here.
    pub images: ImageServiceClient<Channel>,
    /// The parent cgroup of pods.
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

    /// Returns the runtime's version; containerd answers this as soon as CRI has started.
    ///
    /// # Errors
    /// If CRI returns an error.
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

    /// Returns the verbose status: its `config` is CRI's configuration as JSON.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn info(&mut self) -> Result<HashMap<String, String>, Status> {
        Ok(self
            .runtime
            .status(StatusRequest { verbose: true })
            .await?
            .into_inner()
            .info)
    }

    /// Pulls an image for the default handler, and returns its ID.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn pull_image(&mut self, name: &str) -> Result<String, Status> {
        self.pull(name, None).await
    }

    /// Pulls an image for a handler; 2.1 ignores the handler unless [`crate::Options::pull_by_handler`] is set.
    ///
    /// # Errors
    /// If CRI returns an error.
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

    /// Pulls an image for a handler as a kubelet with `RuntimeClassInImageCriApi` does: the image's specification names
    /// the handler. containerd 2.2.2 and later read it, and the versions here do not.
    ///
    /// # Errors
    /// If CRI returns an error.
    pub async fn pull_image_naming(&mut self, name: &str, handler: &str) -> Result<String, Status> {
        let request = PullImageRequest {
            image: Some(ImageSpec {
                runtime_handler: handler.to_owned(),
                ..image_spec(name)
            }),
            auth: None,
            sandbox_config: Some(PodSandboxConfig::default()),
        };
        let pulled = self.images.pull_image(request).await?;
        Ok(pulled.into_inner().image_ref)
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

    /// Returns the image as CRI knows it, or `None`.
    ///
    /// # Errors
    /// If CRI returns an error.
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
    /// If CRI returns an error.
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

/// Returns an image by name, as the kubelet names it before it knows the ID.
pub(crate) fn image_spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        ..Default::default()
    }
}
