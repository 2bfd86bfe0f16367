//! Builds a node from its description: the in-memory containerd and an engine.

use std::collections::HashMap;
use std::sync::Arc;

use tempfile::TempDir;

use crate::config::ExtraLabels;
use crate::containerd::fake::{Fake, sha256};
use crate::containerd::{Containerd, Descriptor, Image, Labels, Resource, Snapshot};
use crate::ctr::Ctr;
use crate::image::{Base, IMAGE_LAYERS, LayerLabels, Manifest, Manifests, Platform};

use super::super::super::chain::profile;
use super::super::super::{
    ContentFallback, Engine, LabelPolicy, Labelling, Outcome, Profile, Registries, Repair, Request,
    Role, State, Urgency, Want,
};
use super::super::{PARALLEL, other_ctr};
use super::world::{At, Chain, LayerKind, MAX_LAYERS, World};

pub(super) const OVERLAYFS: &str = "overlayfs";

/// The lease of another client.
pub(super) const OTHER_CLIENT: &str = "other-client";

/// A node that was built from a world.
pub(super) struct Node {
    pub(super) fake: Arc<Fake>,
    pub(super) engine: Arc<Engine>,
    pub(super) snapshotter: &'static str,
    pub(super) images: Vec<(Image, Arc<Manifest>)>,
    /// The directory of every layer in overlayfs.
    directory: TempDir,
}

/// The snapshots of a snapshotter, by name.
pub(super) type Snapshots = HashMap<String, Snapshot>;

impl World {
    pub(super) async fn build(&self) -> Node {
        let fake = Arc::new(Fake::default());
        let policy = WorldPolicy {
            labelling: Labelling {
                cri: true,
                required: self.required,
            },
            extra: ExtraLabels::default(),
            repair: self.repair,
        };
        let fallback = ContentFallback::new(self.fallbacks.clone(), Registries::default());
        let directory = tempfile::tempdir().unwrap();
        std::fs::write(directory.path().join("file"), "content").unwrap();
        let node = Node {
            engine: Engine::new(
                fake.clone(),
                Role::Daemon,
                PARALLEL,
                Box::new(policy),
                fallback,
            ),
            snapshotter: if self.nydus { "nydus" } else { "erofs" },
            images: self.tagged(&fake).await,
            fake,
            directory,
        };
        node.fake.publish("2.1.9");
        for ((_, manifest), chain) in node.images.iter().zip(&self.images) {
            node.commit(manifest, chain).await;
        }
        self.add_users(&node).await;
        for ((_, manifest), chain) in node.images.iter().zip(&self.images) {
            let layers = manifest.layers.iter().zip(&chain.gone);
            for (layer, _) in layers.filter(|(_, gone)| **gone) {
                if node.fake.blob(&layer.blob.digest).await.is_ok() {
                    node.fake.discard(&layer.blob.digest);
                }
            }
        }
        node.fake.calls();
        node
    }

    /// Adds the images to the image store and the content store.
    async fn tagged(&self, fake: &Fake) -> Vec<(Image, Arc<Manifest>)> {
        let manifests = Manifests::new(Platform::of_this_node());
        let mut images = vec![];
        let mut layers: Vec<String> = vec![];
        for (k, chain) in self.images.iter().enumerate() {
            layers.truncate(chain.shared);
            layers.extend((0..chain.own).map(|i| format!("layer {k}.{i}")));
            layers.truncate(MAX_LAYERS);
            let image = tagged(fake, &format!("r.example/app:{k}"), &layers);
            let manifest = manifests.read(fake, &image).await.unwrap();
            images.push((image, manifest));
        }
        images
    }

    async fn add_users(&self, node: &Node) {
        for (i, at) in self.containers.iter().enumerate() {
            if let Some(layer) = node.committed_at(*at).await {
                let key = format!("container {i}");
                node.fake.activate(node.snapshotter, &key, &layer);
            }
        }
        let in_overlayfs = node.fake.all(OVERLAYFS);
        let held = in_overlayfs
            .iter()
            .map(|layer| Resource::snapshot(OVERLAYFS, &layer.name));
        let mut held: Vec<_> = held.collect();
        if self.nydus {
            // A check, which makes no probe, learns from this layer that the guest pulls.
            let proxied = profile::tests::proxied(Labels::new());
            node.fake.put(node.snapshotter, "another", None, proxied);
            held.push(Resource::snapshot(node.snapshotter, "another"));
        }
        if let Some(at) = self.leased
            && let Some(layer) = node.committed_at(at).await
        {
            held.push(Resource::snapshot(node.snapshotter, &layer));
        }
        node.fake.lease(OTHER_CLIENT, Labels::new(), &held);
        if let Some(at) = self.collected
            && let Some(layer) = node.committed_at(at).await
        {
            node.fake.activate(node.snapshotter, "collected", &layer);
            node.fake.collect_container(node.snapshotter, "collected");
        }
    }
}

/// Puts an image of these layers onto the node.
fn tagged(fake: &Fake, name: &str, layers: &[String]) -> Image {
    let (mut blobs, mut diff_ids) = (vec![], vec![]);
    let json = |descriptor: &Descriptor| {
        serde_json::json!({
            "mediaType": descriptor.media_type,
            "digest": descriptor.digest,
            "size": descriptor.size,
        })
    };
    for layer in layers {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let blob = fake.document(media_type, layer.as_bytes());
        let diff_id = sha256(format!("diff of {layer}").as_bytes());
        fake.applies_as(&blob.digest, &diff_id);
        blobs.push(json(&blob));
        diff_ids.push(diff_id);
    }
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "name": name,
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config = fake.document(
        "application/vnd.oci.image.config.v1+json",
        config.to_string().as_bytes(),
    );
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = serde_json::json!({
        "schemaVersion": 2, "mediaType": media_type, "config": json(&config), "layers": blobs,
    });
    let target = fake.document(media_type, manifest.to_string().as_bytes());
    fake.tag(name, target)
}

impl Node {
    async fn commit(&self, manifest: &Manifest, chain: &Chain) {
        let manifest = &Arc::new(manifest.clone());
        let labels = LayerLabels::new(manifest, Base::Pull, Some("r.example/app:0"));
        let mut parent = None;
        for (i, layer) in manifest.layers.iter().enumerate() {
            let chain_id = layer.chain_id.as_str();
            if let Some(kind) = chain.committed.get(i)
                && self.fake.stat(self.snapshotter, chain_id).await.is_err()
            {
                let labels = self.labels(*kind, labels[i].clone());
                self.fake.put(self.snapshotter, chain_id, parent, labels);
            }
            if i < chain.in_overlayfs && self.fake.stat(OVERLAYFS, chain_id).await.is_err() {
                self.fake.commit_unlabelled(OVERLAYFS, chain_id, parent);
                let directories = vec![self.directory.path(); i + 1];
                self.fake.show(OVERLAYFS, chain_id, &directories, 2);
            }
            parent = Some(chain_id);
        }
        if let Some(top) = manifest.chain_id().filter(|_| chain.anchored) {
            let anchor = format!("containerd.io/gc.ref.snapshot.{}", self.snapshotter);
            let label = Labels::from([(anchor, top.to_owned())]);
            self.fake.label_blob(&manifest.config, label).await.unwrap();
        }
    }

    fn labels(&self, kind: LayerKind, mut labels: Labels) -> Labels {
        match kind {
            LayerKind::Bare => return Labels::new(),
            LayerKind::Half => drop(labels.pop_first()),
            LayerKind::Proxied if self.snapshotter == "nydus" => {
                return profile::tests::proxied(labels);
            }
            LayerKind::Labelled | LayerKind::Proxied => {}
            LayerKind::Lower => {
                let listed = "sha256:a,sha256:b".to_owned();
                labels.insert(IMAGE_LAYERS.to_owned(), listed);
            }
        }
        labels
    }

    /// Returns the chain id of this layer, if it is committed.
    async fn committed_at(&self, (image, layer): At) -> Option<String> {
        let (_, manifest) = &self.images[image % self.images.len()];
        let layer = layer.checked_rem(manifest.layers.len())?;
        let chain_id = manifest.layers[layer].chain_id.clone();
        let stat = self.fake.stat(self.snapshotter, &chain_id).await;
        stat.is_ok().then_some(chain_id)
    }

    pub(super) async fn ensure(&self, image: usize) -> Outcome {
        let request = Request {
            want: Want::Image(self.images[image].0.name.clone()),
            snapshotter: self.snapshotter.to_owned(),
            urgency: Urgency::Asked,
        };
        self.engine.ensure(request).outcome().await
    }

    pub(super) async fn state(&self, image: usize) -> State {
        let (image, _) = &self.images[image];
        let names = [image.name.clone()];
        let listing = self.engine.list(self.snapshotter).await.unwrap();
        let status = self.engine.image_status(image, &names, &listing).await;
        status.unwrap().state
    }

    pub(super) async fn ready(&self) -> Vec<usize> {
        let mut ready = vec![];
        for image in 0..self.images.len() {
            if self.state(image).await == State::Ready {
                ready.push(image);
            }
        }
        ready
    }

    pub(super) fn snapshots(&self) -> Snapshots {
        let all = self.fake.all(self.snapshotter).into_iter();
        all.map(|snapshot| (snapshot.name.clone(), snapshot))
            .collect()
    }

    /// Returns the labels of a blob.
    pub(super) async fn labels_of(&self, digest: &str) -> Labels {
        self.fake.blob(digest).await.unwrap().labels
    }
}

/// A policy that is the same for all images.
struct WorldPolicy {
    labelling: Labelling,
    extra: ExtraLabels,
    repair: Option<Repair>,
}

impl LabelPolicy for WorldPolicy {
    fn labelling(&self, _: &str, _: &[String]) -> Option<Labelling> {
        Some(self.labelling)
    }

    fn extra_labels(&self, _: &str) -> ExtraLabels {
        self.extra.clone()
    }

    fn profile(&self, snapshotter: &str) -> Option<Profile> {
        Profile::of(snapshotter)
    }

    fn repair(&self, _: &str) -> Option<Repair> {
        self.repair
    }

    fn ctr(&self) -> Ctr {
        other_ctr()
    }
}
