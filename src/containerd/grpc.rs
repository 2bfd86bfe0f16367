//! The trait over containerd's gRPC socket: namespace and lease headers, message sizes, deadlines.
//!
//! The channel connects when it is first used, and again whenever containerd has been away: one
//! value serves for the daemon's whole life.

mod commit;
mod fetch;
mod write;

use std::collections::{BTreeSet, HashMap};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snap;
use futures::stream::{BoxStream, StreamExt, TryStreamExt};
use k8s_cri::v1 as cri;
use prost_types::FieldMask;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status};

use super::{
    Blob, BlobChunk, Containerd, CriContainer, Descriptor, Error, Event, Image, Labels, Lease,
    ListedPlugin, Mount, Payloads, Resource, Result, Snapshot, SnapshotKind, Snapshotter, Source,
};
use commit::{CommitSnapshotRequest, commit};

/// A call that touches metadata only. containerd's own clients give such calls a few seconds; a
/// node under load needs some more.
const METADATA_DEADLINE: Duration = Duration::from_secs(10);

/// A call in which a snapshotter or a differ works on a layer's content: some copy the parent when
/// they prepare, or build an image when they commit. Layers of tens of gigabytes exist and slow
/// disks do, too; longer than this is a stuck mount, not work.
const WORK_DEADLINE: Duration = Duration::from_secs(60 * 60);

/// How long the socket may take to accept. It is local: slower than this is not there.
const CONNECT_DEADLINE: Duration = Duration::from_secs(3);

/// The largest answer taken, in bytes: containerd's own default for its clients. A node with
/// thousands of images comes near tonic's default of 4 MiB.
const MAX_MESSAGE: usize = 16 << 20;

/// The largest answer taken where it is only measured: pods may have 256 KiB of annotations each.
const MAX_STATE: usize = 256 << 20;

/// The label with which a manifest keeps its config.
const CONFIG_OF: &str = "containerd.io/gc.ref.content.config";

/// Where CRI puts its configuration into a verbose `Status`.
const CRI_CONFIG: &str = "config";

/// containerd behind its socket, in one namespace.
#[derive(Clone)]
pub struct Grpc {
    channel: Channel,
    socket: PathBuf,
    namespace: MetadataValue<Ascii>,
}

/// A socket path or namespace that cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// gRPC takes paths as text.
    #[error(
        "containerd's socket {0:?}: the path is not UTF-8; set containerd.socket to one that is"
    )]
    Path(std::path::PathBuf),
    /// The transport refused the address.
    #[error("containerd's socket {path}: {reason}")]
    Endpoint {
        /// The path as configured.
        path: String,
        /// The transport's words.
        reason: String,
    },
    /// The namespace goes into a header.
    #[error("containerd's namespace {0:?}: only letters, digits, '-', '_' and '.' are allowed")]
    Namespace(String),
}

impl Grpc {
    /// Prepares the channel; connects when first used.
    ///
    /// Has to be called within a tokio runtime.
    pub fn new(socket: &Path, namespace: &str) -> std::result::Result<Self, SetupError> {
        let path = socket
            .to_str()
            .ok_or_else(|| SetupError::Path(socket.to_owned()))?;
        let endpoint =
            Endpoint::from_shared(format!("unix:{path}")).map_err(|e| SetupError::Endpoint {
                path: path.to_owned(),
                reason: e.to_string(),
            })?;
        Ok(Self {
            channel: endpoint.connect_timeout(CONNECT_DEADLINE).connect_lazy(),
            socket: socket.to_owned(),
            namespace: namespace
                .parse()
                .map_err(|_| SetupError::Namespace(namespace.to_owned()))?,
        })
    }

    fn ask<T>(&self, message: T) -> Request<T> {
        self.ask_within(METADATA_DEADLINE, message)
    }

    fn ask_within<T>(&self, deadline: Duration, message: T) -> Request<T> {
        let mut request = Request::new(message);
        request.set_timeout(deadline);
        self.in_namespace(request)
    }

    /// Work whose result a lease is to hold.
    fn ask_leased<T>(&self, lease: &str, message: T) -> Result<Request<T>> {
        self.under(lease, self.ask_within(WORK_DEADLINE, message))
    }

    /// Adds the header that puts what the call makes under a lease, if there is one.
    fn under<T>(&self, lease: &str, mut request: Request<T>) -> Result<Request<T>> {
        if lease.is_empty() {
            return Ok(request);
        }
        let lease = lease
            .parse()
            .map_err(|_| Error::malformed("use lease", lease, "not a header value"))?;
        request.metadata_mut().insert("containerd-lease", lease);
        Ok(request)
    }

    fn in_namespace<T>(&self, mut request: Request<T>) -> Request<T> {
        request
            .metadata_mut()
            .insert("containerd-namespace", self.namespace.clone());
        request
    }

    fn images_api(&self) -> api::images_client::ImagesClient<Channel> {
        api::images_client::ImagesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }

    fn cri_api(&self) -> cri::runtime_service_client::RuntimeServiceClient<Channel> {
        cri::runtime_service_client::RuntimeServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }

    fn content_api(&self) -> api::content_client::ContentClient<Channel> {
        api::content_client::ContentClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }

    fn snapshots_api(&self) -> snap::snapshots_client::SnapshotsClient<Channel> {
        snap::snapshots_client::SnapshotsClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }

    fn leases_api(&self) -> api::leases_client::LeasesClient<Channel> {
        api::leases_client::LeasesClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
    }

    async fn list_content(&self, call: &'static str, filters: Vec<String>) -> Result<Vec<Blob>> {
        let request = self.ask(api::ListContentRequest { filters });
        let reply = self.content_api().list(request).await;
        let stream = reply.map_err(failed(call, "content"))?.into_inner();
        drain(call, "content", stream, |all, part| {
            all.extend(part.info.into_iter().map(blob));
            Ok(())
        })
        .await
    }
}

/// What turns gRPC's status into our error, for `map_err`.
fn failed<'a>(call: &'static str, subject: &'a str) -> impl Fn(Status) -> Error + use<'a> {
    move |status| Error::from_status(call, subject, status)
}

/// An answer without the message that the protocol promises.
fn empty<'a>(call: &'static str, subject: &'a str) -> impl Fn() -> Error + use<'a> {
    move || Error::malformed(call, subject, "containerd's answer is empty")
}

/// Reads a stream of answers to its end, within the deadline of a metadata call: the request's own
/// deadline covers its first message only.
async fn drain<T, U>(
    call: &'static str,
    subject: &str,
    stream: tonic::Streaming<T>,
    mut take: impl FnMut(&mut Vec<U>, T) -> Result<()>,
) -> Result<Vec<U>> {
    let all = stream
        .map_err(failed(call, subject))
        .try_fold(Vec::new(), |mut all, part| {
            let taken = take(&mut all, part);
            async move { taken.map(|()| all) }
        });
    tokio::time::timeout(METADATA_DEADLINE, all)
        .await
        .unwrap_or_else(|_| Err(failed(call, subject)(Status::deadline_exceeded("too slow"))))
}

#[async_trait]
impl Containerd for Grpc {
    /// By its socket, whose path may be another in a container.
    fn identity(&self) -> Option<String> {
        let socket = std::fs::metadata(&self.socket).ok()?;
        let namespace = self.namespace.to_str().ok()?;
        Some(format!("{} {} {namespace}", socket.dev(), socket.ino()))
    }

    async fn image(&self, name: &str) -> Result<Image> {
        let call = "get image";
        let request = self.ask(api::GetImageRequest {
            name: name.to_owned(),
        });
        let reply = self.images_api().get(request).await;
        let image = reply.map_err(failed(call, name))?.into_inner().image;
        image.and_then(image_record).ok_or_else(empty(call, name))
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let request = self.ask(api::ListImagesRequest { filters: vec![] });
        let reply = self.images_api().list(request).await;
        let images = reply.map_err(failed("list", "images"))?.into_inner().images;
        Ok(images.into_iter().filter_map(image_record).collect())
    }

    async fn blob(&self, digest: &str) -> Result<Blob> {
        let call = "look up blob";
        let request = self.ask(api::InfoRequest {
            digest: digest.to_owned(),
        });
        let reply = self.content_api().info(request).await;
        let info = reply.map_err(failed(call, digest))?.into_inner().info;
        info.map(blob).ok_or_else(empty(call, digest))
    }

    async fn blobs(&self) -> Result<Vec<Blob>> {
        self.list_content("list", vec![]).await
    }

    async fn manifests(&self) -> Result<Vec<Blob>> {
        let filter = format!("labels.{CONFIG_OF:?}");
        self.list_content("list manifests of", vec![filter]).await
    }

    async fn read(&self, digest: &str, limit: u64) -> Result<Vec<u8>> {
        let call = "read blob";
        let request = self.ask(api::ReadContentRequest {
            digest: digest.to_owned(),
            offset: 0,
            size: 0,
        });
        let reply = self.content_api().read(request).await;
        let stream = reply.map_err(failed(call, digest))?.into_inner();
        drain(call, digest, stream, |bytes, part| {
            bytes.extend(part.data);
            if bytes.len() as u64 > limit {
                let message = format!("more than the {limit} bytes that such a document may have");
                return Err(Error::malformed(call, digest, &message));
            }
            Ok(())
        })
        .await
    }

    async fn write_blob(
        &self,
        lease: &str,
        reference: &str,
        chunks: BoxStream<'static, BlobChunk>,
    ) -> Result<()> {
        self.write(lease, reference, chunks).await
    }

    async fn abort_write(&self, reference: &str) -> Result<()> {
        let request = self.ask(api::AbortRequest {
            r#ref: reference.to_owned(),
        });
        let reply = self.content_api().abort(request).await;
        reply.map_err(failed("abort write", reference)).map(drop)
    }

    async fn fetch(&self, lease: &str, source: &Source) -> Result<()> {
        self.transfer(lease, source).await
    }

    async fn label_blob(&self, digest: &str, labels: Labels) -> Result<()> {
        let request = self.ask(api::UpdateRequest {
            update_mask: Some(label_paths(&labels)),
            info: Some(api::Info {
                digest: digest.to_owned(),
                labels: labels.into_iter().collect(),
                ..Default::default()
            }),
        });
        let reply = self.content_api().update(request).await;
        reply.map_err(failed("label blob", digest)).map(drop)
    }

    async fn stat(&self, snapshotter: &str, key: &str) -> Result<Snapshot> {
        let call = "stat snapshot";
        let request = self.ask(snap::StatSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        let reply = self.snapshots_api().stat(request).await;
        let info = reply.map_err(failed(call, key))?.into_inner().info;
        info.map(snapshot).ok_or_else(empty(call, key))
    }

    async fn snapshots(&self, snapshotter: &str) -> Result<Vec<Snapshot>> {
        let call = "list snapshots of";
        let request = self.ask(snap::ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            filters: vec![],
        });
        let reply = self.snapshots_api().list(request).await;
        let stream = reply.map_err(failed(call, snapshotter))?.into_inner();
        drain(call, snapshotter, stream, |all, part| {
            all.extend(part.info.into_iter().map(snapshot));
            Ok(())
        })
        .await
    }

    async fn prepare(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let request = self.ask_leased(
            lease,
            snap::PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
                parent: parent.unwrap_or_default().to_owned(),
                labels: labels.into_iter().collect(),
            },
        )?;
        let reply = self.snapshots_api().prepare(request).await;
        let reply = reply.map_err(failed("prepare snapshot", key))?;
        Ok(reply.into_inner().mounts)
    }

    async fn view(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>> {
        let request = self.ask_leased(
            lease,
            snap::ViewSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.to_owned(),
                parent: parent.to_owned(),
                ..Default::default()
            },
        )?;
        let reply = self.snapshots_api().view(request).await;
        let reply = reply.map_err(failed("view snapshot", parent))?;
        Ok(reply.into_inner().mounts)
    }

    async fn inodes(&self, snapshotter: &str, key: &str) -> Result<u64> {
        let request = self.ask(snap::UsageRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        let reply = self.snapshots_api().usage(request).await;
        let reply = reply.map_err(failed("ask usage of snapshot", key))?;
        Ok(reply.into_inner().inodes.try_into().unwrap_or_default())
    }

    async fn commit(
        &self,
        lease: &str,
        snapshotter: &str,
        name: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<()> {
        let request = CommitSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            name: name.to_owned(),
            key: key.to_owned(),
            labels: labels.into_iter().collect(),
            parent: parent.unwrap_or_default().to_owned(),
        };
        let committed = commit(self.channel.clone(), self.ask_leased(lease, request)?).await;
        committed.map_err(failed("commit snapshot", name))
    }

    async fn remove(&self, snapshotter: &str, key: &str) -> Result<()> {
        let request = self.ask(snap::RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        });
        let reply = self.snapshots_api().remove(request).await;
        reply.map_err(failed("remove snapshot", key)).map(drop)
    }

    async fn label_snapshot(&self, snapshotter: &str, key: &str, labels: Labels) -> Result<()> {
        let request = self.ask(snap::UpdateSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            update_mask: Some(label_paths(&labels)),
            info: Some(snap::Info {
                name: key.to_owned(),
                labels: labels.into_iter().collect(),
                ..Default::default()
            }),
        });
        let reply = self.snapshots_api().update(request).await;
        reply.map_err(failed("label snapshot", key)).map(drop)
    }

    async fn apply(
        &self,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        payloads: Payloads,
    ) -> Result<String> {
        let call = "apply layer";
        let request = self.ask_within(
            WORK_DEADLINE,
            api::ApplyRequest {
                diff: Some(layer.clone()),
                mounts,
                payloads,
                ..Default::default()
            },
        );
        let reply = api::diff_client::DiffClient::new(self.channel.clone())
            .apply(request)
            .await;
        let reply = reply.map_err(failed(call, &layer.digest))?.into_inner();
        let applied = reply.applied.ok_or_else(empty(call, &layer.digest))?;
        Ok(applied.digest)
    }

    async fn create_lease(&self, id: &str, labels: Labels) -> Result<()> {
        let request = self.ask(api::CreateRequest {
            id: id.to_owned(),
            labels: labels.into_iter().collect(),
        });
        let reply = self.leases_api().create(request).await;
        reply.map_err(failed("create lease", id)).map(drop)
    }

    async fn delete_lease(&self, id: &str, sync: bool) -> Result<()> {
        let request = self.ask(api::DeleteRequest {
            id: id.to_owned(),
            sync,
        });
        let reply = self.leases_api().delete(request).await;
        reply.map_err(failed("delete lease", id)).map(drop)
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        let request = self.ask(api::ListRequest { filters: vec![] });
        let reply = self.leases_api().list(request).await;
        let leases = reply.map_err(failed("list", "leases"))?.into_inner().leases;
        let lease = |l: api::Lease| Lease {
            id: l.id,
            labels: l.labels.into_iter().collect(),
        };
        Ok(leases.into_iter().map(lease).collect())
    }

    async fn lease_resources(&self, id: &str) -> Result<Vec<Resource>> {
        let request = self.ask(api::ListResourcesRequest { id: id.to_owned() });
        let reply = self.leases_api().list_resources(request).await;
        let reply = reply.map_err(failed("list resources of lease", id))?;
        let resource = |r: api::Resource| Resource {
            kind: r.r#type,
            id: r.id,
        };
        Ok(reply
            .into_inner()
            .resources
            .into_iter()
            .map(resource)
            .collect())
    }

    async fn hold(&self, lease: &str, resource: Resource) -> Result<()> {
        let request = self.ask(api::AddResourceRequest {
            id: lease.to_owned(),
            resource: Some(api::Resource {
                id: resource.id,
                r#type: resource.kind,
            }),
        });
        let reply = self.leases_api().add_resource(request).await;
        reply.map_err(failed("add to lease", lease)).map(drop)
    }

    async fn events(&self, topics: &[&str]) -> Result<BoxStream<'static, Result<Event>>> {
        let call = "subscribe to";
        let namespace = self.namespace.to_str().unwrap_or_default();
        let filter = |topic: &&str| format!("topic=={topic:?},namespace=={namespace:?}");
        // No deadline: the stream lives as long as the connection.
        let request = self.in_namespace(Request::new(api::SubscribeRequest {
            filters: topics.iter().map(filter).collect(),
        }));
        let reply = api::events_client::EventsClient::new(self.channel.clone())
            .subscribe(request)
            .await;
        let stream = reply.map_err(failed(call, "events"))?.into_inner();
        let event = |envelope: containerd_client::types::Envelope| Event {
            topic: envelope.topic,
            payload: envelope.event.unwrap_or_default(),
        };
        Ok(stream
            .map(move |next| next.map(event).map_err(failed(call, "events")))
            .boxed())
    }

    async fn snapshotters(&self) -> Result<Vec<Snapshotter>> {
        let request = self.ask(api::PluginsRequest {
            filters: vec!["type==io.containerd.snapshotter.v1".to_owned()],
        });
        let reply = api::introspection_client::IntrospectionClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .plugins(request)
            .await;
        let reply = reply.map_err(failed("list", "snapshotters"))?.into_inner();
        Ok(reply.plugins.into_iter().map(snapshotter).collect())
    }

    async fn plugins(&self) -> Result<Vec<ListedPlugin>> {
        let request = self.ask(api::PluginsRequest { filters: vec![] });
        let reply = api::introspection_client::IntrospectionClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .plugins(request)
            .await;
        let reply = reply.map_err(failed("list", "plugins"))?.into_inner();
        let plugin = |plugin: api::Plugin| ListedPlugin {
            uri: format!("{}.{}", plugin.r#type, plugin.id),
            init_error: plugin.init_err.map(|status| status.message),
        };
        Ok(reply.plugins.into_iter().map(plugin).collect())
    }

    async fn version(&self) -> Result<String> {
        let reply = api::version_client::VersionClient::new(self.channel.clone())
            .version(self.ask(()))
            .await;
        let reply = reply.map_err(failed("ask", "version"))?.into_inner();
        Ok(reply.version)
    }

    async fn cri_config(&self) -> Result<Option<String>> {
        let request = self.ask(cri::StatusRequest { verbose: true });
        let reply = self.cri_api().status(request).await;
        let mut reply = reply
            .map_err(failed("ask CRI for its", "status"))?
            .into_inner();
        Ok(reply.info.remove(CRI_CONFIG))
    }

    async fn cri_state_bytes(&self) -> Result<usize> {
        let mut client =
            cri::runtime_service_client::RuntimeServiceClient::new(self.channel.clone())
                .max_decoding_message_size(MAX_STATE);
        let pods = client.list_pod_sandbox(self.ask(cri::ListPodSandboxRequest::default()));
        let pods = pods
            .await
            .map_err(failed("list", "pods"))?
            .into_inner()
            .items;
        let containers = client.list_containers(self.ask(cri::ListContainersRequest::default()));
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

    async fn pod_annotation(&self, key: &str) -> Result<BTreeSet<String>> {
        let request = self.ask(cri::ListPodSandboxRequest::default());
        let pods = self.cri_api().list_pod_sandbox(request).await;
        let pods = pods.map_err(failed("list", "pods"))?.into_inner().items;
        let values = pods
            .into_iter()
            .filter_map(|mut pod| pod.annotations.remove(key));
        Ok(values.collect())
    }

    async fn image_file_system(&self) -> Result<Option<String>> {
        let request = self.ask(cri::ImageFsInfoRequest {});
        let reply = cri::image_service_client::ImageServiceClient::new(self.channel.clone())
            .max_decoding_message_size(MAX_MESSAGE)
            .image_fs_info(request)
            .await;
        let reply = reply.map_err(failed("ask CRI for its", "image file system"))?;
        let first = reply.into_inner().image_filesystems.into_iter().next();
        Ok(first.and_then(|first| first.fs_id).map(|id| id.mountpoint))
    }

    async fn cri_containers(&self) -> Result<Vec<CriContainer>> {
        let mut cri = self.cri_api();
        let request = self.ask(cri::ListPodSandboxRequest::default());
        let pods = cri.list_pod_sandbox(request).await;
        let pods = pods
            .map_err(failed("ask CRI for its", "pods"))?
            .into_inner();
        let pods = pods.items.into_iter().map(|pod| (pod.id.clone(), pod));
        let pods: HashMap<_, _> = pods.collect();
        let request = self.ask(cri::ListContainersRequest::default());
        let containers = cri.list_containers(request).await;
        let containers = containers.map_err(failed("ask CRI for its", "containers"))?;
        let containers = containers.into_inner().containers.into_iter();
        let containers = containers.filter_map(|container| {
            let pod = pods.get(&container.pod_sandbox_id)?;
            Some(CriContainer {
                id: container.id,
                image: container.image.unwrap_or_default().image,
                runtime_handler: pod.runtime_handler.clone(),
                pod_annotations: pod.annotations.clone().into_iter().collect(),
            })
        });
        Ok(containers.collect())
    }
}

/// Field paths that change just these labels; without them an update replaces all labels.
fn label_paths(labels: &Labels) -> FieldMask {
    FieldMask {
        paths: labels.keys().map(|key| format!("labels.{key}")).collect(),
    }
}

/// `None` for a record without a target, which containerd does not write.
fn image_record(image: api::Image) -> Option<Image> {
    Some(Image {
        name: image.name,
        target: image.target?,
        labels: image.labels.into_iter().collect(),
        created_at: image.created_at.and_then(|t| SystemTime::try_from(t).ok()),
    })
}

fn blob(info: api::Info) -> Blob {
    Blob {
        digest: info.digest,
        size: info.size.try_into().unwrap_or_default(),
        labels: info.labels.into_iter().collect(),
        created_at: info.created_at.and_then(|t| SystemTime::try_from(t).ok()),
    }
}

fn snapshot(info: snap::Info) -> Snapshot {
    Snapshot {
        kind: match info.kind() {
            snap::Kind::Committed => SnapshotKind::Committed,
            snap::Kind::View => SnapshotKind::View,
            snap::Kind::Active | snap::Kind::Unknown => SnapshotKind::Active,
        },
        created_at: info.created_at.and_then(|t| SystemTime::try_from(t).ok()),
        parent: Some(info.parent).filter(|parent| !parent.is_empty()),
        name: info.name,
        labels: info.labels.into_iter().collect(),
    }
}

fn snapshotter(plugin: api::Plugin) -> Snapshotter {
    Snapshotter {
        name: plugin.id,
        capabilities: plugin.capabilities,
        exports: plugin.exports.into_iter().collect(),
        init_error: plugin.init_err.map(|status| status.message),
    }
}
