//! The calls of the trait, each implemented by its effect on the [`Store`].

use std::collections::BTreeSet;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::mpsc;

use super::super::{
    Blob, BlobChunk, Containerd, CriContainer, Descriptor, Each, ErrorKind, Event, Image, Labels,
    Lease, ListedPlugin, Mount, Payloads, Resource, Result, Snapshot, Snapshotter, Source,
};
use super::Fake;
use super::store::Store;
use super::types::Effect;

/// The snapshotters that the fake lists.
const SNAPSHOTTERS: [&str; 4] = ["erofs", "native", "nydus", "overlayfs"];

/// The default duration of `apply`. It lets other tasks run meanwhile, as real work does.
const APPLY: Duration = Duration::from_millis(2);

fn found<T>(thing: Option<T>) -> Effect<T> {
    thing.ok_or(ErrorKind::NotFound)
}

/// Counts a blob that is being applied, until the call ends or is cancelled.
struct Applying<'a>(&'a Fake);

impl<'a> Applying<'a> {
    fn begin(fake: &'a Fake) -> Self {
        let (now, most) = &mut fake.state().applying;
        *now += 1;
        *most = (*most).max(*now);
        Self(fake)
    }
}

impl Drop for Applying<'_> {
    fn drop(&mut self) {
        self.0.state().applying.0 -= 1;
    }
}

#[async_trait]
impl Containerd for Fake {
    async fn image(&self, name: &str) -> Result<Image> {
        let effect = |store: &mut Store| found(store.images.get(name).cloned());
        self.call("get image", name, effect).await
    }

    async fn images(&self) -> Result<Vec<Image>> {
        let effect = |store: &mut Store| Ok(store.images.values().cloned().collect());
        self.call("list images", "", effect).await
    }

    async fn images_of(&self, target: &str) -> Result<Vec<Image>> {
        let effect = |store: &mut Store| {
            let images = store.images.values();
            let of = images.filter(|image| image.target.digest == target);
            Ok(of.cloned().collect())
        };
        self.call("list images of", target, effect).await
    }

    async fn blob(&self, digest: &str) -> Result<Blob> {
        let effect = |store: &mut Store| {
            found(store.blobs.get(digest)).map(|(bytes, labels)| Blob {
                digest: digest.to_owned(),
                size: bytes.len() as u64,
                labels: labels.clone(),
                created_at: None,
            })
        };
        self.call("look up blob", digest, effect).await
    }

    async fn blobs(&self, each: Each<'_, Blob>) -> Result<()> {
        let effect = |store: &mut Store| Ok(store.blobs_that(|_| true));
        let blobs = self.call("list", "content", effect).await?;
        blobs.into_iter().for_each(each);
        Ok(())
    }

    async fn manifests(&self, each: Each<'_, Blob>) -> Result<()> {
        let is_manifest = |bytes: &[u8]| {
            serde_json::from_slice::<serde_json::Value>(bytes)
                .is_ok_and(|document| document.get("layers").is_some())
        };
        let effect = |store: &mut Store| Ok(store.blobs_that(is_manifest));
        let manifests = self.call("list manifests of", "content", effect).await?;
        manifests.into_iter().for_each(each);
        Ok(())
    }

    async fn read(&self, digest: &str, _limit: u64) -> Result<Vec<u8>> {
        let effect =
            |store: &mut Store| found(store.blobs.get(digest)).map(|(bytes, _)| bytes.clone());
        self.call("read blob", digest, effect).await
    }

    async fn write_blob(
        &self,
        lease: &str,
        reference: &str,
        mut chunks: BoxStream<'static, BlobChunk>,
    ) -> Result<()> {
        let begin = |store: &mut Store| {
            store.begin(reference);
            Ok(())
        };
        self.call("write blob", reference, begin).await?;
        while let Some(piece) = chunks.next().await {
            // After a fault no further chunk is read.
            let effect = |store: &mut Store| match piece {
                BlobChunk::Data(data) => store.append(reference, &data).map(|()| false),
                BlobChunk::End { digest, size } => {
                    store.finish(lease, reference, &digest, size).map(|()| true)
                }
            };
            if self.call("write piece", reference, effect).await? {
                return Ok(());
            }
        }
        let unfinished = |_: &mut Store| Err(ErrorKind::Other);
        self.call("write piece", reference, unfinished).await
    }

    async fn abort_write(&self, reference: &str) -> Result<()> {
        let effect = |store: &mut Store| found(store.ingests.remove(reference)).map(drop);
        self.call("abort write", reference, effect).await
    }

    async fn fetch(&self, lease: &str, source: &Source) -> Result<()> {
        let effect = |store: &mut Store| store.fetch(lease, source);
        self.call("fetch", &source.reference, effect).await
    }

    async fn label_blob(&self, digest: &str, labels: Labels) -> Result<()> {
        let effect = |store: &mut Store| store.label_blob(digest, labels);
        self.call("label blob", digest, effect).await
    }

    async fn stat(&self, snapshotter: &str, key: &str) -> Result<Snapshot> {
        let effect = |store: &mut Store| match SNAPSHOTTERS.contains(&snapshotter) {
            true => found(store.snapshot(snapshotter, key).cloned()),
            // containerd says that it has no such snapshotter, and not that there is no such snapshot.
            false => Err(ErrorKind::Other),
        };
        self.call("stat snapshot", key, effect).await
    }

    async fn has_record(&self, snapshotter: &str, name: &str) -> Result<bool> {
        let effect = |store: &mut Store| Ok(store.has_record(snapshotter, name));
        self.call("look up record of snapshot", name, effect).await
    }

    async fn snapshots(&self, snapshotter: &str, each: Each<'_, Snapshot>) -> Result<()> {
        let call = "list snapshots of";
        self.call(call, snapshotter, |_| Ok(())).await?;
        self.all(snapshotter).into_iter().for_each(each);
        Ok(())
    }

    async fn prepare(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Result<Vec<Mount>> {
        let slow = self.state().slow_prepares.get(snapshotter).copied();
        if let Some(time) = slow {
            tokio::time::sleep(time).await;
        }
        let effect = |store: &mut Store| store.prepare(lease, snapshotter, key, parent, labels);
        self.call("prepare snapshot", key, effect).await
    }

    async fn view(
        &self,
        lease: &str,
        snapshotter: &str,
        key: &str,
        parent: &str,
    ) -> Result<Vec<Mount>> {
        let effect = |store: &mut Store| store.view(lease, snapshotter, key, parent);
        self.call("view snapshot", parent, effect).await
    }

    async fn mounts(&self, snapshotter: &str, key: &str) -> Result<Vec<Mount>> {
        let effect = |store: &mut Store| store.mounts_of(snapshotter, key);
        self.call("ask mounts of snapshot", key, effect).await
    }

    async fn inodes(&self, snapshotter: &str, key: &str) -> Result<u64> {
        let effect = |store: &mut Store| store.inodes(snapshotter, key);
        self.call("ask usage of snapshot", key, effect).await
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
        let effect =
            |store: &mut Store| store.commit(lease, snapshotter, name, key, parent, labels);
        self.call("commit snapshot", name, effect).await
    }

    async fn remove(&self, snapshotter: &str, key: &str) -> Result<()> {
        let effect = |store: &mut Store| store.remove(snapshotter, key);
        self.call("remove snapshot", key, effect).await
    }

    async fn label_snapshot(&self, snapshotter: &str, key: &str, labels: Labels) -> Result<()> {
        let effect = |store: &mut Store| store.label_snapshot(snapshotter, key, labels);
        self.call("label snapshot", key, effect).await
    }

    async fn apply(
        &self,
        layer: &Descriptor,
        mounts: Vec<Mount>,
        payloads: Payloads,
    ) -> Result<String> {
        let mut processors: Vec<_> = payloads.into_keys().collect();
        processors.sort_unstable();
        self.state().payloads.push(processors);
        let _one_more = Applying::begin(self);
        let time = self.state().apply.get(&layer.digest).copied();
        tokio::time::sleep(time.unwrap_or(APPLY)).await;
        let effect = |store: &mut Store| {
            found(store.blobs.get(&layer.digest))?;
            store.apply(&layer.digest, &mounts)?;
            // A blob without a separate diff id is an uncompressed tar.
            let diff_id = store.diff_ids.get(&layer.digest);
            Ok(diff_id.unwrap_or(&layer.digest).clone())
        };
        self.call("apply layer", &layer.digest, effect).await
    }

    async fn create_lease(&self, id: &str, labels: Labels) -> Result<()> {
        let effect = |store: &mut Store| {
            store
                .leases
                .insert(id.to_owned(), (labels, BTreeSet::new()));
            Ok(())
        };
        self.call("create lease", id, effect).await
    }

    async fn delete_lease(&self, id: &str, sync: bool) -> Result<()> {
        let effect = |store: &mut Store| {
            found(store.leases.remove(id))?;
            if sync {
                store.collect_garbage();
            }
            Ok(())
        };
        self.call("delete lease", id, effect).await
    }

    async fn leases(&self) -> Result<Vec<Lease>> {
        let lease = |(id, (labels, _)): (&String, &(Labels, _))| Lease {
            id: id.clone(),
            labels: labels.clone(),
        };
        let effect = |store: &mut Store| Ok(store.leases.iter().map(lease).collect());
        self.call("list leases", "", effect).await
    }

    async fn lease_resources(&self, id: &str) -> Result<Vec<Resource>> {
        let resource = |(kind, id): &(String, String)| Resource {
            kind: kind.clone(),
            id: id.clone(),
        };
        let effect = |store: &mut Store| {
            found(store.leases.get(id)).map(|(_, held)| held.iter().map(resource).collect())
        };
        self.call("list resources of lease", id, effect).await
    }

    async fn hold(&self, lease: &str, resource: Resource) -> Result<()> {
        let effect = |store: &mut Store| store.hold(lease, resource);
        self.call("add to lease", lease, effect).await
    }

    async fn release(&self, lease: &str, resource: Resource) -> Result<()> {
        let effect = |store: &mut Store| store.release(lease, resource);
        self.call("remove from lease", lease, effect).await
    }

    async fn events(&self, _topics: &[&str]) -> Result<BoxStream<'static, Result<Event>>> {
        let (sender, receiver) = mpsc::unbounded_channel();
        self.call("subscribe to", "events", |_| Ok(())).await?;
        self.state().listeners.push(sender);
        let next = |mut receiver: mpsc::UnboundedReceiver<Event>| async {
            Some((Ok(receiver.recv().await?), receiver))
        };
        Ok(stream::unfold(receiver, next).boxed())
    }

    async fn snapshotters(&self) -> Result<Vec<Snapshotter>> {
        let effect = |store: &mut Store| {
            let listed = |name: &str| Snapshotter {
                name: name.to_owned(),
                capabilities: match store.rebases.contains(name) {
                    true => vec!["remap-ids".to_owned(), "rebase".to_owned()],
                    false => vec!["remap-ids".to_owned()],
                },
                exports: {
                    let root = ("root".to_owned(), format!("/{name}"));
                    let address = store
                        .lazy
                        .contains_key(name)
                        .then(|| format!("/{name}.sock"));
                    let address = store.sockets.get(name).cloned().or(address);
                    let address = address.map(|address| ("address".to_owned(), address));
                    std::iter::once(root).chain(address).collect()
                },
                ..Snapshotter::default()
            };
            Ok(SNAPSHOTTERS.map(listed).to_vec())
        };
        self.call("list snapshotters", "", effect).await
    }

    async fn plugins(&self) -> Result<Vec<ListedPlugin>> {
        self.call("list plugins", "", |_| Ok(vec![])).await
    }

    async fn version(&self) -> Result<String> {
        self.call("ask version", "", |_| Ok(())).await?;
        Ok(self.state().version.clone())
    }

    async fn cri_pods(&self) -> Result<Vec<(String, String)>> {
        self.call("list", "pods", |_| Ok(vec![])).await
    }

    async fn cri_containers(&self) -> Result<Vec<CriContainer>> {
        self.call("ask CRI for its", "containers", |_| Ok(vec![]))
            .await
    }

    async fn cri_config(&self) -> Result<Option<String>> {
        self.call("ask CRI for its status", "", |_| Ok(None)).await
    }

    async fn cri_state_bytes(&self) -> Result<usize> {
        self.call("list pods", "", |_| Ok(0)).await
    }

    async fn pod_annotation(&self, _key: &str) -> Result<BTreeSet<String>> {
        self.call("list pods", "", |_| Ok(BTreeSet::new())).await
    }

    async fn image_file_system(&self) -> Result<Option<String>> {
        let effect = |_: &mut Store| Ok(Some("/overlayfs".to_owned()));
        self.call("ask CRI for its image file system", "", effect)
            .await
    }
}
