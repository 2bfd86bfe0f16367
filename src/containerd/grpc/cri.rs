//! Calls to the CRI plugin: its configuration, pods and containers.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use k8s_cri::v1 as cri;

use super::deadline::PunctualChannel;
use super::{Grpc, MAX_MESSAGE, failed};
use crate::containerd::{CriContainer, Labels, Result};

/// The largest answer that is accepted to measure CRI's state, in bytes: each pod may have 256 KiB of
/// annotations.
const MAX_STATE: usize = 256 << 20;

/// The key of CRI's configuration in a verbose `Status`.
const CRI_CONFIG: &str = "config";

pub(super) async fn config(grpc: &Grpc) -> Result<Option<String>> {
    let request = grpc.ask(cri::StatusRequest { verbose: true });
    let reply = client(grpc).status(request).await;
    let mut reply = reply
        .map_err(failed("ask CRI for its", "status"))?
        .into_inner();
    Ok(reply.info.remove(CRI_CONFIG))
}

pub(super) async fn state_bytes(grpc: &Grpc) -> Result<usize> {
    let mut client = cri::runtime_service_client::RuntimeServiceClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_STATE);
    let pods = client.list_pod_sandbox(grpc.ask(cri::ListPodSandboxRequest::default()));
    let pods = pods
        .await
        .map_err(failed("list", "pods"))?
        .into_inner()
        .items;
    let containers = client.list_containers(grpc.ask(cri::ListContainersRequest::default()));
    let containers = containers.await.map_err(failed("list", "containers"))?;
    let containers = containers.into_inner().containers;
    let bytes = |map: &HashMap<String, String>| {
        map.iter()
            .map(|(key, value)| key.len() + value.len())
            .sum::<usize>()
    };
    let pods = pods
        .iter()
        .map(|pod| bytes(&pod.annotations) + bytes(&pod.labels));
    let containers = containers
        .iter()
        .map(|it| bytes(&it.annotations) + bytes(&it.labels));
    Ok(pods.chain(containers).sum())
}

pub(super) async fn pod_annotation(grpc: &Grpc, key: &str) -> Result<BTreeSet<String>> {
    let request = grpc.ask(cri::ListPodSandboxRequest::default());
    let pods = client(grpc).list_pod_sandbox(request).await;
    let pods = pods.map_err(failed("list", "pods"))?.into_inner().items;
    let values = pods
        .into_iter()
        .filter_map(|mut pod| pod.annotations.remove(key));
    Ok(values.collect())
}

pub(super) async fn image_file_system(grpc: &Grpc) -> Result<Option<String>> {
    let request = grpc.ask(cri::ImageFsInfoRequest {});
    let reply = cri::image_service_client::ImageServiceClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
        .image_fs_info(request)
        .await;
    let reply = reply.map_err(failed("ask CRI for its", "image file system"))?;
    let first = reply.into_inner().image_filesystems.into_iter().next();
    Ok(first.and_then(|first| first.fs_id).map(|id| id.mountpoint))
}

pub(super) async fn pods(grpc: &Grpc) -> Result<Vec<(String, String)>> {
    let request = grpc.ask(cri::ListPodSandboxRequest::default());
    let pods = client(grpc).list_pod_sandbox(request).await;
    let pods = pods.map_err(failed("list", "pods"))?.into_inner().items;
    let pods = pods.into_iter().map(|pod| {
        let cri::PodSandboxMetadata {
            namespace, name, ..
        } = pod.metadata.unwrap_or_default();
        (pod.id, format!("{namespace}/{name}"))
    });
    Ok(pods.collect())
}

pub(super) async fn containers(grpc: &Grpc) -> Result<Vec<CriContainer>> {
    let mut cri = client(grpc);
    let request = grpc.ask(cri::ListPodSandboxRequest::default());
    let pods = cri.list_pod_sandbox(request).await;
    let pods = pods
        .map_err(failed("ask CRI for its", "pods"))?
        .into_inner();
    let pods = pods.items.into_iter().map(|mut pod| {
        let annotations: Labels = std::mem::take(&mut pod.annotations).into_iter().collect();
        (pod.id.clone(), (pod, Arc::new(annotations)))
    });
    let pods: HashMap<_, _> = pods.collect();
    let request = grpc.ask(cri::ListContainersRequest::default());
    let containers = cri.list_containers(request).await;
    let containers = containers.map_err(failed("ask CRI for its", "containers"))?;
    let containers = containers.into_inner().containers.into_iter();
    let containers = containers.filter_map(|container| {
        let (pod, annotations) = pods.get(&container.pod_sandbox_id)?;
        Some(CriContainer {
            id: container.id,
            pod_id: container.pod_sandbox_id,
            image: container.image.unwrap_or_default().image,
            runtime_handler: pod.runtime_handler.clone(),
            pod_namespace: pod.metadata.clone().unwrap_or_default().namespace,
            pod_annotations: annotations.clone(),
        })
    });
    Ok(containers.collect())
}

fn client(grpc: &Grpc) -> cri::runtime_service_client::RuntimeServiceClient<PunctualChannel> {
    cri::runtime_service_client::RuntimeServiceClient::new(grpc.channel.clone())
        .max_decoding_message_size(MAX_MESSAGE)
}
