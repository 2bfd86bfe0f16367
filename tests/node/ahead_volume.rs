//! An image volume (containerd 2.1): no event names the image ahead unless its snapshotter is eager, and
//! containerd unpacks it without labels.

use anyhow::{Result, ensure};
use k8s_cri::v1::{
    ContainerConfig, ContainerMetadata, CreateContainerRequest, ImageSpec, LinuxContainerConfig,
    Mount,
};
use lab::{Pod, Version};

use crate::after_pull::image;
use crate::support::{Node, handler};

fn spec(name: &str) -> ImageSpec {
    ImageSpec {
        image: name.to_owned(),
        user_specified_image: name.to_owned(),
        ..Default::default()
    }
}

/// Returns a request for a container of `image` that mounts `volume` at `/model`.
pub(crate) fn mounting(pod: &Pod, image: &str, volume: &str) -> CreateContainerRequest {
    let mount = Mount {
        container_path: "/model".to_owned(),
        readonly: true,
        image: Some(spec(volume)),
        ..Default::default()
    };
    let config = ContainerConfig {
        metadata: Some(ContainerMetadata {
            name: "mounting".to_owned(),
            attempt: 0,
        }),
        image: Some(spec(image)),
        mounts: vec![mount],
        linux: Some(LinuxContainerConfig::default()),
        ..Default::default()
    };
    CreateContainerRequest {
        pod_sandbox_id: pod.id.clone(),
        config: Some(config),
        sandbox_config: Some(pod.config.clone()),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_volume_is_labelled_for_the_next_pod() -> Result<()> {
    let version = Version::V2_1;
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let volume = image(3, 0);
    node.registry.push(&volume).await?;
    node.cri.pull_image(volume.name()).await?;
    ensure!(node.store.chain(handler, &volume).await?.is_empty());

    let pod = node.cri.run_pod(handler, &[]).await?;
    let request = mounting(&pod, node.image.name(), volume.name());
    let created = node.cri.runtime.create_container(request).await?;
    let container = created.into_inner().container_id;
    node.cri.start_container(&container).await?;
    let read = node.cri.cat(&container, "/model/f2").await?;
    ensure!(read == format!("2 of {}\n", volume.name()), "{read}");

    node.image = volume;
    node.wait_labelled(handler).await?;
    node.assert_nothing_left(handler).await
}
