//! Pods that come and go, as the kubelet makes and removes them.

use anyhow::Result;
use k8s_cri::v1::{ListContainersRequest, ListPodSandboxRequest, PodSandboxConfig};
use lab::{Cri, Image, Lab, Pod, Remote, Store, images};

use crate::after_pull::image;
use crate::guest_pull::NYDUS;
use crate::support::Node;

/// The number of an image's own layers.
pub(crate) const LAYERS: usize = 5;

/// Creates pods with this handler.
pub(crate) struct Pods {
    pub(crate) store: Store,
    pub(crate) cri: Cri,
    pub(crate) handler: &'static str,
}

impl Pods {
    /// Creates a pod and a container once; returns whether the container has the files of the image.
    pub(crate) async fn try_once(&mut self, image: &Image) -> Result<bool, tonic::Status> {
        self.cri.pull_image(image.name()).await?;
        let pod = self.cri.run_pod(self.handler, &[]).await?;
        let created = self.cri.create_container(&pod, image.name(), &[], &[]);
        let container = created.await?;
        let is_right = match self.handler {
            NYDUS => self.is_guest_pulled(&container).await?,
            _ => self.has_all_files(&container, image).await?,
        };
        remove_as_kubelet(&mut self.cri, &pod, &container).await?;
        Ok(is_right)
    }

    async fn is_guest_pulled(&self, container: &str) -> Result<bool, tonic::Status> {
        let mounts = self.store.mounts(NYDUS, container).await?;
        let mut kinds = mounts.iter().map(|mount| mount.kind.as_str());
        Ok(kinds.any(|kind| kind == "fuse.nydus-overlayfs"))
    }

    /// Whether the container has the file of every layer.
    async fn has_all_files(
        &mut self,
        container: &str,
        image: &Image,
    ) -> Result<bool, tonic::Status> {
        self.cri.start_container(container).await?;
        let files: Vec<_> = (0..LAYERS).map(|n| format!("/data/{n}")).collect();
        let mut command = vec!["cat"];
        command.extend(files.iter().map(String::as_str));
        let read = self.cri.exec_sync(container, &command).await?;
        let expected = (0..LAYERS).map(|n| format!("{n} of {}\n", image.name()));
        Ok(read.stdout == expected.collect::<String>())
    }
}

/// Removes a container and then its pod, as the kubelet does. containerd 2.1 removes a pod with its containers under NRI's
/// lock, which it takes twice: if a plugin registers between, both wait for ever.
pub(crate) async fn remove_as_kubelet(
    cri: &mut Cri,
    pod: &Pod,
    container: &str,
) -> Result<(), tonic::Status> {
    cri.stop_container(container).await?;
    cri.remove_container(container).await?;
    cri.remove_pod(pod).await
}

/// Starts the killed nydus-snapshotter again, as documented: otherwise it creates no more containers (`kills::restart`).
pub(crate) async fn restart_nydus(lab: &Lab) -> Result<()> {
    std::fs::remove_file(lab.path("nydus/nydus.db"))?;
    lab.remote(Remote::Nydus).restart().await
}

/// Returns an image that shares no layer of its own with the others.
pub(crate) fn image_for(handler: &str, n: usize) -> Result<Image> {
    match handler {
        NYDUS => Ok(image(LAYERS, n)),
        _ => images::own_layers(&format!("registry.test/killed/app:{n}"), LAYERS),
    }
}

impl Node {
    /// Checks that every image becomes ready, and that no lease or extraction snapshot remains.
    pub(crate) async fn assert_all_ready(
        &mut self,
        images: &[Image],
        snapshotter: &str,
    ) -> Result<()> {
        self.cri = self.lab.cri().await?;
        self.store = self.lab.store().await?;
        self.remove_pods_except(&[]).await?;
        for image in images {
            self.wait_image(image, snapshotter).await?;
        }
        self.assert_nothing_left(snapshotter).await
    }

    /// Removes all pods but these, as the kubelet does.
    pub(crate) async fn remove_pods_except(&mut self, kept: &[&str]) -> Result<()> {
        let is_kept = |id: &str| kept.contains(&id);
        let list = ListContainersRequest::default();
        let containers = self.cri.runtime.list_containers(list).await?.into_inner();
        for container in containers.containers {
            if !is_kept(&container.pod_sandbox_id) {
                self.cri.stop_container(&container.id).await?;
                self.cri.remove_container(&container.id).await?;
            }
        }
        let list = ListPodSandboxRequest::default();
        let pods = self.cri.runtime.list_pod_sandbox(list).await?.into_inner();
        for pod in pods.items {
            if !is_kept(&pod.id) {
                let (id, config) = (pod.id, PodSandboxConfig::default());
                self.cri.remove_pod(&Pod { id, config }).await?;
            }
        }
        Ok(())
    }
}
