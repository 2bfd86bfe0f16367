//! The images, blobs and registry content that a test gives to the fake.

use std::collections::HashMap;
use std::time::{Duration, SystemTime};

use super::{Change, Fake, sha256};
use crate::containerd::{Descriptor, Image, Labels, Source};

impl Fake {
    /// Puts a document into the content store and returns its descriptor.
    pub(crate) fn document(&self, media_type: &str, bytes: &[u8]) -> Descriptor {
        let digest = sha256(bytes);
        let blob = (bytes.to_vec(), Labels::new());
        self.state().store.blobs.insert(digest.clone(), blob);
        Descriptor {
            media_type: media_type.to_owned(),
            digest,
            size: bytes.len().try_into().unwrap(),
            annotations: HashMap::new(),
        }
    }

    /// Makes an image of `layers` different layers and returns its record.
    pub(crate) fn image(&self, name: &str, layers: usize) -> Image {
        self.image_of(name, "application/vnd.oci.image.layer.v1.tar+gzip", layers)
    }

    /// Makes an image whose layers have this media type.
    pub(crate) fn image_of(&self, name: &str, media_type: &str, layers: usize) -> Image {
        let blobs: Vec<_> = (0..layers)
            .map(|i| self.document(media_type, format!("layer {i}").as_bytes()))
            .collect();
        self.image_from(name, &blobs)
    }

    /// Makes an image whose layers make these changes, the bottom layer first.
    pub(crate) fn image_with(&self, name: &str, layers: &[Vec<Change>]) -> Image {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let described = layers.iter().map(|changes| {
            let blob = self.document(media_type, format!("{changes:?}").as_bytes());
            let mut state = self.state();
            let store = &mut state.store;
            store.changes.insert(blob.digest.clone(), changes.clone());
            blob
        });
        self.image_from(name, &described.collect::<Vec<_>>())
    }

    pub(crate) fn image_from(&self, name: &str, blobs: &[Descriptor]) -> Image {
        let described = blobs.iter().map(|blob| {
            let diff_id = sha256(format!("what is in {}", blob.digest).as_bytes());
            let mut state = self.state();
            let diff_ids = &mut state.store.diff_ids;
            diff_ids.insert(blob.digest.clone(), diff_id.clone());
            (blob, diff_id)
        });
        let described: Vec<_> = described.collect();
        let diff_ids: Vec<_> = described.iter().map(|(_, diff_id)| diff_id).collect();
        let config = serde_json::json!({
            "architecture": "amd64", "os": "linux", "name": name,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let media_type = "application/vnd.oci.image.config.v1+json";
        let config = self.document(media_type, config.to_string().as_bytes());
        let blobs: Vec<_> = described.iter().map(|(blob, _)| json(blob)).collect();
        let media_type = "application/vnd.oci.image.manifest.v1+json";
        let manifest = serde_json::json!({
            "schemaVersion": 2, "mediaType": media_type, "config": json(&config), "layers": blobs,
        });
        let target = self.document(media_type, manifest.to_string().as_bytes());
        self.tag(name, target)
    }

    /// Adds a record for a target to the image store.
    pub(crate) fn tag(&self, name: &str, target: Descriptor) -> Image {
        let image = Image {
            name: name.to_owned(),
            target,
            labels: Labels::new(),
            created_at: None,
        };
        let mut state = self.state();
        state.store.images.insert(name.to_owned(), image.clone());
        drop(state);
        image
    }

    /// Adds labels to an image's record.
    pub(crate) fn label_image(&self, image: &Image, labels: Labels) {
        let mut state = self.state();
        let record = state.store.images.get_mut(&image.name).unwrap();
        record.labels.extend(labels);
    }

    /// Sets the time at which an image's record was made, in seconds after the Unix epoch.
    pub(crate) fn came(&self, image: &Image, after: u64) {
        let mut state = self.state();
        let record = state.store.images.get_mut(&image.name).unwrap();
        record.created_at = Some(SystemTime::UNIX_EPOCH + Duration::from_secs(after));
    }

    /// Replaces a blob's bytes, so that they do not match its digest.
    pub(crate) fn corrupt(&self, digest: &str, bytes: &[u8]) {
        self.state().store.blobs.get_mut(digest).unwrap().0 = bytes.to_vec();
    }

    /// Makes `apply` return `diff_id` for a blob.
    pub(crate) fn applies_as(&self, blob: &str, diff_id: &str) {
        self.state()
            .store
            .diff_ids
            .insert(blob.to_owned(), diff_id.to_owned());
    }

    /// Removes a blob, as `discard_unpacked_layers` does.
    pub(crate) fn discard(&self, digest: &str) {
        self.state().store.blobs.remove(digest).unwrap();
    }

    /// Removes the record of an image that has no other name, and its documents.
    pub(crate) fn remove_image(&self, image: &Image) {
        let mut state = self.state();
        let store = &mut state.store;
        store.images.remove(&image.name).unwrap();
        let (manifest, _) = store.blobs.remove(&image.target.digest).unwrap();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        store.blobs.remove(config).unwrap();
        store.collect_garbage();
    }

    /// Returns the digests of an image's manifest and config.
    pub(crate) fn documents_of(&self, image: &Image) -> [String; 2] {
        let manifest = self.state().store.blobs[&image.target.digest].0.clone();
        let manifest: serde_json::Value = serde_json::from_slice(&manifest).unwrap();
        let config = manifest["config"]["digest"].as_str().unwrap();
        [image.target.digest.clone(), config.to_owned()]
    }

    /// Removes a record; its target stays.
    pub(crate) fn untag(&self, name: &str) {
        self.state().store.images.remove(name).unwrap();
    }

    /// Copies all blobs to the registry, and sets a version of containerd that can fetch from it.
    pub(crate) fn publish(&self, version: &str) {
        let mut state = self.state();
        version.clone_into(&mut state.version);
        state.store.publish();
    }

    /// Removes a blob from the registry.
    pub(crate) fn unpublish(&self, digest: &str) {
        self.state().store.published.remove(digest).unwrap();
    }

    /// Returns the sources that blobs were fetched from.
    pub(crate) fn fetched(&self) -> Vec<Source> {
        self.state().store.fetched.clone()
    }

    /// Returns the references of blobs whose write was neither finished nor aborted.
    pub(crate) fn ingests(&self) -> Vec<String> {
        self.state().store.ingests.keys().cloned().collect()
    }
}

fn json(d: &Descriptor) -> serde_json::Value {
    serde_json::json!({"mediaType": d.media_type, "digest": d.digest, "size": d.size})
}
