//! The calls of the trait. Each delegates to the file of the containerd service that serves it.

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;

use async_trait::async_trait;
use futures::stream::BoxStream;

use super::{Grpc, content, cri, diff, events, images, introspection, leases, snapshots};
use crate::containerd::{
    Blob, BlobChunk, Containerd, CriContainer, Descriptor, Each, Event, Image, Labels, Lease,
    ListedPlugin, Mount, Payloads, Resource, Result, Snapshot, Snapshotter, Source,
};

#[async_trait]
impl Containerd for Grpc {
    /// Returns the socket's inode, since its path may differ in a container, and the namespace.
    fn identity(&self) -> Option<String> {
        let socket = std::fs::metadata(&self.socket).ok()?;
        let namespace = self.namespace.to_str().ok()?;
        Some(format!("{} {} {namespace}", socket.dev(), socket.ino()))
    }

    async fn image(&self, name: &str) -> Result<Image> {
        images::get(self, name).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        images::list(self).await
    }

    async fn images_of(&self, target: &str) -> Result<Vec<Image>> {
        images::list_of(self, target).await
    }

    async fn blob(&self, digest: &str) -> Result<Blob> {
        content::info(self, digest).await
    }

    async fn blobs(&self, each: Each<'_, Blob>) -> Result<()> {
        content::list(self, each).await
    }

    async fn manifests(&self, each: Each<'_, Blob>) -> Result<()> {
        content::list_manifests(self, each).await
    }

    async fn read(&self, digest: &str, limit: u64) -> Result<Vec<u8>> {
        content::read(self, digest, limit).await
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
        content::abort_write(self, reference).await
    }

    async fn fetch(&self, lease: &str, source: &Source) -> Result<()> {
        self.transfer(lease, source).await
    }

    async fn label_blob(&self, digest: &str, labels: Labels) -> Result<()> {
        content::label(self, digest, labels).await
    }

    async fn stat(&self, snapshotter: &str, key: &str) -> Result<Snapshot> {
        snapshots::stat(self, snapshotter, key).await
    }

    async fn snapshots(&self, snapshotter: &str, each: Each<'_, Snapshot>) -> Result<()> {
        snapshots::list(self, snapshotter, each).await
    }

    async fn prepare(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        snapshots::prepare(self, lease, snapshotter, key, parent, labels).await
    }

    async fn view(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>> {
        snapshots::view(self, lease, snapshotter, key, parent).await
    }

    async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        snapshots::mounts(self, snapshotter, key).await
    }

    async fn inodes(&self, snapshotter: &str, key: &str) -> Result<u64> {
        snapshots::inodes(self, snapshotter, key).await
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
        snapshots::commit(self, lease, snapshotter, name, key, parent, labels).await
    }

    async fn has_record(&self, snapshotter: &str, name: &str) -> Result<bool> {
        snapshots::has_record(self, snapshotter, name).await
    }

    async fn remove(&self, snapshotter: &str, key: &str) -> Result<()> {
        snapshots::remove(self, snapshotter, key).await
    }

    async fn label_snapshot(&self, snapshotter: &str, key: &str, labels: Labels) -> Result<()> {
        snapshots::label(self, snapshotter, key, labels).await
    }

    async fn apply(
        &self,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        payloads: Payloads,
    ) -> Result<String> {
        diff::apply(self, layer, mounts, payloads).await
    }

    async fn create_lease(&self, id: &str, labels: Labels) -> Result<()> {
        leases::create(self, id, labels).await
    }

    async fn delete_lease(&self, id: &str, sync: bool) -> Result<()> {
        leases::delete(self, id, sync).await
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        leases::list(self).await
    }

    async fn lease_resources(&self, id: &str) -> Result<Vec<Resource>> {
        leases::resources(self, id).await
    }

    async fn hold(&self, lease: &str, resource: Resource) -> Result<()> {
        leases::hold(self, lease, resource).await
    }

    async fn release(&self, lease: &str, resource: Resource) -> Result<()> {
        leases::release(self, lease, resource).await
    }

    async fn events(&self, topics: &[&str]) -> Result<BoxStream<'static, Result<Event>>> {
        events::subscribe(self, topics).await
    }

    async fn snapshotters(&self) -> Result<Vec<Snapshotter>> {
        introspection::snapshotters(self).await
    }

    async fn plugins(&self) -> Result<Vec<ListedPlugin>> {
        introspection::plugins(self).await
    }

    async fn version(&self) -> Result<String> {
        introspection::version(self).await
    }

    async fn cri_config(&self) -> Result<Option<String>> {
        cri::config(self).await
    }

    async fn cri_state_bytes(&self) -> Result<usize> {
        cri::state_bytes(self).await
    }

    async fn pod_annotation(&self, key: &str) -> Result<BTreeSet<String>> {
        cri::pod_annotation(self, key).await
    }

    async fn image_file_system(&self) -> Result<Option<String>> {
        cri::image_file_system(self).await
    }

    async fn cri_pods(&self) -> Result<Vec<(String, String)>> {
        cri::pods(self).await
    }

    async fn cri_containers(&self) -> Result<Vec<CriContainer>> {
        cri::containers(self).await
    }
}
