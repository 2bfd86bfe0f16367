//! The test images, identical bytes on every run: valid images, and intentionally broken ones.
//!
//! Digests, diff IDs and chain IDs are computed here from the specification, not with the plugin's code, so
//! that tests can compare both. Knows nothing of containerd and the registry.

mod archive;
mod bomb;
mod build;
mod format;
mod index;
mod layer;
mod ready;

use std::collections::HashMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

pub use bomb::bomb;
pub use build::Builder;
pub use format::Compression;
pub use layer::Layer;
pub use ready::{app, estargz, large, many_layers, own_layers, pause, schema1, service};

/// An OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's image manifest, second schema.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker's image index.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// A gzipped layer.
pub const LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// An image that can be imported, pushed, or written to a content store.
#[derive(Debug, Clone)]
pub struct Image {
    /// All names of the image; tests request the first one.
    pub names: Vec<String>,
    /// The target of the names: the manifest, or its index.
    pub target: Blob,
    /// The manifest of this machine's platform.
    pub manifest: Blob,
    /// The config that the manifest names.
    pub config: Blob,
    /// The layers, lowest first.
    pub layers: Vec<BuiltLayer>,
    /// All stored blobs; each blob comes after those that it names.
    pub blobs: Vec<Blob>,
}

/// A layer as the image's manifest and config describe it.
#[derive(Debug, Clone)]
pub struct BuiltLayer {
    /// The digest of the compressed blob.
    pub digest: String,
    /// The digest of the uncompressed tar, as stated in the config.
    pub diff_id: String,
    /// The chain ID of this layer: its key in a snapshotter.
    pub chain_id: String,
}

/// A blob with its media type.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// Its media type.
    pub media_type: String,
    /// `sha256:…` of the bytes.
    pub digest: String,
    /// The content.
    pub bytes: Vec<u8>,
}

/// A flaw of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The config states a wrong diff ID for this layer.
    WrongDiffId(usize),
    /// The config has one diff ID less than the manifest has layers.
    DiffIdMissing,
    /// The manifest names this layer's blob, but the blob is missing.
    LayerMissing(usize),
    /// The manifest is truncated. Its digest is that of the truncated bytes.
    ManifestTruncated,
}

impl Image {
    /// Returns a builder of an image with this name.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// Returns the first name.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// Returns the same image with edited documents: `edit` gets the media type and the text of each document.
    /// References to a document are updated.
    pub fn edited(&self, edit: impl Fn(&str, String) -> Vec<u8>) -> Self {
        let mut image = self.clone();
        let mut renamed = HashMap::new();
        for blob in &mut image.blobs {
            let Ok(mut document) = serde_json::from_slice::<Value>(&blob.bytes) else {
                continue;
            };
            relink(&mut document, &renamed);
            let bytes = edit(&blob.media_type, document.to_string());
            let edited = Blob::new(blob.media_type.clone(), bytes);
            let before = std::mem::replace(blob, edited.clone());
            renamed.insert(before.digest, edited);
        }
        for blob in [&mut image.target, &mut image.manifest, &mut image.config] {
            if let Some(edited) = renamed.get(&blob.digest) {
                *blob = edited.clone();
            }
        }
        image
    }

    /// Returns the chain IDs, lowest layer first.
    pub fn chain_ids(&self) -> Vec<String> {
        self.layers.iter().map(|l| l.chain_id.clone()).collect()
    }

    /// Returns the labels with which a blob of this image protects the blobs that it names from containerd's
    /// garbage collection.
    pub(crate) fn references(&self, blob: &Blob) -> HashMap<String, String> {
        if !blob.is_manifest() {
            return HashMap::new();
        }
        // An intentionally truncated document names nothing.
        let document: Value = serde_json::from_slice(&blob.bytes).unwrap_or_default();
        let listed = |key: &str, prefix: &str| {
            let entries = document[key].as_array().into_iter().flatten().enumerate();
            let entries = entries.map(|(n, entry)| (format!("{prefix}.{n}"), &entry["digest"]));
            entries.collect::<Vec<_>>()
        };
        let mut named = [listed("manifests", "m"), listed("layers", "l")].concat();
        named.push(("config".to_owned(), &document["config"]["digest"]));
        let label = |(suffix, digest): (String, &Value)| {
            let key = format!("containerd.io/gc.ref.content.{suffix}");
            Some((key, digest.as_str()?.to_owned()))
        };
        named.into_iter().filter_map(label).collect()
    }

    /// Returns the chain ID of the whole image.
    pub fn top(&self) -> &str {
        self.layers.last().map_or("", |l| &l.chain_id)
    }
}

impl Blob {
    /// Whether a registry stores the blob as a manifest.
    pub(crate) fn is_manifest(&self) -> bool {
        let media_type = self.media_type.as_str();
        matches!(media_type, MANIFEST | INDEX | DOCKER_MANIFEST | DOCKER_LIST)
    }

    fn new(media_type: impl Into<String>, bytes: Vec<u8>) -> Self {
        Self {
            media_type: media_type.into(),
            digest: digest(&bytes),
            bytes,
        }
    }
}

/// Updates all descriptors in a document to the new blobs.
fn relink(document: &mut Value, renamed: &HashMap<String, Blob>) {
    match document {
        Value::Object(fields) => {
            let digest = fields.get("digest").and_then(Value::as_str);
            if let Some(blob) = digest.and_then(|digest| renamed.get(digest)) {
                fields.insert("digest".to_owned(), blob.digest.as_str().into());
                fields.insert("size".to_owned(), blob.bytes.len().into());
            }
            fields.values_mut().for_each(|value| relink(value, renamed));
        }
        Value::Array(values) => values.iter_mut().for_each(|value| relink(value, renamed)),
        _ => {}
    }
}

/// Returns `sha256:…` of these bytes.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

/// Returns the architecture of this machine in OCI's terms.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
