//! Chains without content, for tests with thousands of layers.

use std::collections::HashMap;

use containerd_client::services::v1 as api;
use containerd_client::services::v1::snapshots as snapshots_api;
use tonic::{Code, Request, Status};

use crate::images::Image;
use crate::store::{Store, namespaced};

impl Store {
    /// Stores an image, and commits an empty snapshot for each of its layers, with the labels of a pull and the anchor. A
    /// snapshotter that needs no content for a labelled layer makes the snapshots itself.
    ///
    /// # Errors
    /// If containerd returns an error.
    pub async fn put_chain(&self, snapshotter: &str, image: &Image) -> Result<(), Status> {
        self.put_image(image).await?;
        let lease = self.lease().await?;
        let put = self.put_snapshots(snapshotter, image, &lease).await;
        self.end_lease(lease, false).await?;
        put
    }

    async fn put_snapshots(
        &self,
        snapshotter: &str,
        image: &Image,
        lease: &str,
    ) -> Result<(), Status> {
        let digests: Vec<_> = image.layers.iter().map(|l| l.digest.as_str()).collect();
        let mut parent = String::new();
        for (i, layer) in image.layers.iter().enumerate() {
            let (key, name) = (format!("put {}", layer.chain_id), layer.chain_id.clone());
            let layers = digests[i..].join(",");
            let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
            let labels = HashMap::from([
                label("containerd.io/snapshot.ref", &name),
                label("containerd.io/snapshot/cri.image-ref", image.name()),
                label(
                    "containerd.io/snapshot/cri.manifest-digest",
                    &image.manifest.digest,
                ),
                label("containerd.io/snapshot/cri.layer-digest", &layer.digest),
                label("containerd.io/snapshot/cri.image-layers", &layers),
            ]);
            let prepare = snapshots_api::PrepareSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                key: key.clone(),
                parent: std::mem::replace(&mut parent, name.clone()),
                labels: labels.clone(),
            };
            let mut snapshots = self.client.snapshots();
            match snapshots.prepare(leased(prepare, lease)?).await {
                Err(status) if status.code() == Code::AlreadyExists => continue,
                prepared => prepared?,
            };
            let commit = snapshots_api::CommitSnapshotRequest {
                snapshotter: snapshotter.to_owned(),
                name,
                key,
                labels,
            };
            snapshots.commit(leased(commit, lease)?).await?;
        }
        self.anchor(snapshotter, image).await
    }

    /// Gives the image's config, which has no other labels, the label that keeps its chain from garbage collection.
    async fn anchor(&self, snapshotter: &str, image: &Image) -> Result<(), Status> {
        let key = format!("containerd.io/gc.ref.snapshot.{snapshotter}");
        let update = api::UpdateRequest {
            info: Some(api::Info {
                digest: image.config.digest.clone(),
                labels: [(key, image.top().to_owned())].into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.client.content().update(namespaced(update)).await?;
        Ok(())
    }
}

/// Returns a request whose result the lease holds.
pub(crate) fn leased<T>(message: T, lease: &str) -> Result<Request<T>, Status> {
    let mut request = namespaced(message);
    let lease = lease
        .parse()
        .map_err(|_| Status::invalid_argument("a lease id that is no header value"))?;
    request.metadata_mut().insert("containerd-lease", lease);
    Ok(request)
}
