//! A client of containerd's own services, for the tests.
//!
//! It reads and writes objects, and checks nothing.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use anyhow::{Context, Result};
use containerd_client::Client;
use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snapshots_api;
use containerd_client::types::Descriptor;
use tonic::{Code, Request, Status};

use crate::images::{Blob, Image};

/// The namespace of CRI.
pub const NAMESPACE: &str = "k8s.io";

/// The part of a blob in one message; containerd accepts up to 16 MiB.
const CHUNK: usize = 1 << 20;

/// Labels by key.
pub type Labels = BTreeMap<String, String>;

/// A connection to containerd's services, in CRI's namespace.
pub struct Store {
    /// The plain client, for calls without a method here; use [`namespaced`] for their requests.
    pub client: Client,
}

/// A snapshot as its snapshotter lists it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// Its key: a chain ID, if a pull or an unpack committed it.
    pub key: String,
    /// Its parent's key; empty for the lowest layer.
    pub parent: String,
    /// Its kind.
    pub kind: Kind,
    /// All of its labels.
    pub labels: Labels,
}

/// The kinds of snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A committed snapshot: a layer.
    Committed,
    /// An active snapshot: of a container, or of an unpack.
    Active,
    /// A read-only view.
    View,
}

/// Returns a request in CRI's namespace.
pub fn namespaced<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert(
        "containerd-namespace",
        NAMESPACE.parse().expect("a plain word"),
    );
    request
}

impl Store {
    pub(crate) async fn connect(socket: &Path) -> Result<Self> {
        let client = Client::from_path(socket)
            .await
            .with_context(|| format!("connecting to {}", socket.display()))?;
        Ok(Self { client })
    }

    /// Returns all snapshots of a snapshotter, by key.
    ///
    /// # Errors
    /// If containerd returns an error, for example because it does not have the snapshotter.
    pub async fn snapshots(&self, snapshotter: &str) -> Result<Vec<Snapshot>, Status> {
        let request = snapshots_api::ListSnapshotsRequest {
            snapshotter: snapshotter.to_owned(),
            ..Default::default()
        };
        let mut stream = self
            .client
            .snapshots()
            .list(namespaced(request))
            .await?
            .into_inner();
        let mut found = Vec::new();
        while let Some(response) = stream.message().await? {
            found.extend(response.info.into_iter().map(snapshot));
        }
        found.sort_by(|a, b| a.key.cmp(&b.key));
        Ok(found)
    }

    /// Returns the committed snapshots of a chain in a snapshotter, lowest first.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn chain(&self, snapshotter: &str, image: &Image) -> Result<Vec<Snapshot>, Status> {
        let all = self.snapshots(snapshotter).await?;
        let find = |id: String| {
            all.iter()
                .find(|s| s.key == id && s.kind == Kind::Committed)
                .cloned()
        };
        Ok(image.chain_ids().into_iter().filter_map(find).collect())
    }

    /// Removes a snapshot.
    ///
    /// # Errors
    /// If containerd returns an error, for example because the snapshot has a child.
    pub async fn remove_snapshot(&self, snapshotter: &str, key: &str) -> Result<(), Status> {
        let request = snapshots_api::RemoveSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.to_owned(),
        };
        self.client.snapshots().remove(namespaced(request)).await?;
        Ok(())
    }

    /// Returns all leases with their labels.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn leases(&self) -> Result<BTreeMap<String, Labels>, Status> {
        let response = self
            .client
            .leases()
            .list(namespaced(api::ListRequest::default()))
            .await?
            .into_inner();
        Ok(response
            .leases
            .into_iter()
            .map(|lease| (lease.id, sorted(lease.labels)))
            .collect())
    }

    /// Returns the image records: names and target digests.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn images(&self) -> Result<BTreeMap<String, String>, Status> {
        let response = self
            .client
            .images()
            .list(namespaced(api::ListImagesRequest::default()))
            .await?
            .into_inner();
        Ok(response
            .images
            .into_iter()
            .map(|i| (i.name, i.target.unwrap_or_default().digest))
            .collect())
    }

    /// Returns the labels of an image record.
    ///
    /// # Errors
    /// If containerd returns an error; `NotFound` if there is no such record.
    pub async fn image_labels(&self, name: &str) -> Result<Labels, Status> {
        let request = namespaced(api::GetImageRequest {
            name: name.to_owned(),
        });
        let image = self
            .client
            .images()
            .get(request)
            .await?
            .into_inner()
            .image
            .unwrap_or_default();
        Ok(sorted(image.labels))
    }

    /// Removes a label of an image record.
    ///
    /// # Errors
    /// If containerd returns an error; `NotFound` if there is no such record.
    pub async fn remove_image_label(&self, name: &str, label: &str) -> Result<(), Status> {
        let request = namespaced(api::GetImageRequest {
            name: name.to_owned(),
        });
        let mut image = self.client.images().get(request).await?.into_inner().image;
        if let Some(image) = &mut image {
            image.labels.remove(label);
        }
        let request = namespaced(api::UpdateImageRequest {
            image,
            ..Default::default()
        });
        self.client.images().update(request).await?;
        Ok(())
    }

    /// Returns the labels of a blob.
    ///
    /// # Errors
    /// If containerd returns an error; `NotFound` if there is no such blob.
    pub async fn content_labels(&self, digest: &str) -> Result<Labels, Status> {
        let request = namespaced(api::InfoRequest {
            digest: digest.to_owned(),
        });
        let info = self
            .client
            .content()
            .info(request)
            .await?
            .into_inner()
            .info
            .unwrap_or_default();
        Ok(sorted(info.labels))
    }

    /// Deletes a blob, as `discard_unpacked_layers` does with layers.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn delete_content(&self, digest: &str) -> Result<(), Status> {
        let request = namespaced(api::DeleteContentRequest {
            digest: digest.to_owned(),
        });
        self.client.content().delete(request).await?;
        Ok(())
    }

    /// Runs a garbage collection and waits for its end.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn collect_garbage(&self) -> Result<(), Status> {
        let lease = self.lease().await?;
        self.end_lease(lease, true).await
    }

    /// Stores an image unchanged, valid or broken: its blobs, with the labels that protect them from garbage
    /// collection, and a record for each name. Unpacks nothing.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn put_image(&self, image: &Image) -> Result<(), Status> {
        let lease = self.lease().await?;
        let put = self.put_leased(image, &lease).await;
        self.end_lease(lease, false).await?;
        put
    }

    /// Creates a lease with an ID that containerd chooses.
    pub(crate) async fn lease(&self) -> Result<String, Status> {
        let request = namespaced(api::CreateRequest::default());
        let lease = self
            .client
            .leases()
            .create(request)
            .await?
            .into_inner()
            .lease;
        lease
            .map(|lease| lease.id)
            .ok_or_else(|| Status::internal("a new lease without lease"))
    }

    /// Deletes a lease; with `sync` it waits for the following garbage collection.
    pub(crate) async fn end_lease(&self, id: String, sync: bool) -> Result<(), Status> {
        self.client
            .leases()
            .delete(namespaced(api::DeleteRequest { id, sync }))
            .await?;
        Ok(())
    }

    async fn put_leased(&self, image: &Image, lease: &str) -> Result<(), Status> {
        for blob in &image.blobs {
            self.put_blob(blob, image.references(blob), lease).await?;
        }
        for name in &image.names {
            let target = Descriptor {
                media_type: image.target.media_type.to_owned(),
                digest: image.target.digest.clone(),
                size: image.target.bytes.len() as i64,
                ..Default::default()
            };
            let record = api::Image {
                name: name.clone(),
                target: Some(target),
                ..Default::default()
            };
            let request = api::CreateImageRequest {
                image: Some(record),
                ..Default::default()
            };
            self.client.images().create(namespaced(request)).await?;
        }
        Ok(())
    }

    async fn put_blob(
        &self,
        blob: &Blob,
        labels: HashMap<String, String>,
        lease: &str,
    ) -> Result<(), Status> {
        let message =
            |action: api::WriteAction, offset: usize, data: &[u8]| api::WriteContentRequest {
                action: action.into(),
                r#ref: format!("lab-{}", blob.digest),
                total: blob.bytes.len() as i64,
                expected: blob.digest.clone(),
                offset: offset as i64,
                data: data.to_vec(),
                labels: labels.clone(),
            };
        let mut messages: Vec<_> = blob
            .bytes
            .chunks(CHUNK)
            .enumerate()
            .map(|(n, chunk)| message(api::WriteAction::Write, n * CHUNK, chunk))
            .collect();
        messages.push(message(api::WriteAction::Commit, blob.bytes.len(), &[]));
        let mut request = namespaced(tokio_stream::iter(messages));
        let lease = lease
            .parse()
            .map_err(|_| Status::invalid_argument("a lease id that is no header value"))?;
        request.metadata_mut().insert("containerd-lease", lease);
        let written = async {
            let mut responses = self.client.content().write(request).await?.into_inner();
            while responses.message().await?.is_some() {}
            Ok::<(), Status>(())
        };
        match written.await {
            Err(status) if status.code() != Code::AlreadyExists => Err(status),
            _ => Ok(()),
        }
    }
}

fn snapshot(info: snapshots_api::Info) -> Snapshot {
    let kind = match info.kind() {
        snapshots_api::Kind::Committed => Kind::Committed,
        snapshots_api::Kind::View => Kind::View,
        snapshots_api::Kind::Active | snapshots_api::Kind::Unknown => Kind::Active,
    };
    Snapshot {
        key: info.name,
        parent: info.parent,
        kind,
        labels: sorted(info.labels),
    }
}

pub(crate) fn sorted(labels: HashMap<String, String>) -> Labels {
    labels.into_iter().collect()
}
