//! The test images, built byte for byte the same on every run: sound ones, and ones that are broken on purpose.
//!
//! Digests, diff ids and chain ids are computed here, from the specification and not from the plugin's code, so that
//! a test can hold the two against each other. Knows nothing of containerd or of the registry.

mod archive;
mod build;
mod format;
mod index;
mod layer;
mod ready;

use std::collections::HashMap;

use serde_json::Value;
use sha2::{Digest, Sha256};

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

/// An image, ready to be imported, pushed, or put into a content store as it is.
#[derive(Debug, Clone)]
pub struct Image {
    /// Every name it goes by; the first is the one that tests ask for.
    pub names: Vec<String>,
    /// What the names point at: the manifest, or the index over it.
    pub target: Blob,
    /// The manifest of this machine's platform.
    pub manifest: Blob,
    /// The configuration that the manifest names.
    pub config: Blob,
    /// The layers, the lowest first.
    pub layers: Vec<BuiltLayer>,
    /// Everything that is stored, in an order in which no blob comes before those that it names.
    pub blobs: Vec<Blob>,
}

/// A layer as the image's manifest and configuration describe it.
#[derive(Debug, Clone)]
pub struct BuiltLayer {
    /// The digest of the compressed blob.
    pub digest: String,
    /// The digest of the uncompressed tar, as the configuration claims it.
    pub diff_id: String,
    /// The chain id of this layer on those below it: its key in a snapshotter.
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

/// What can be wrong with an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flaw {
    /// The configuration claims another diff id for this layer than its content has.
    WrongDiffId(usize),
    /// The configuration has one diff id less than the manifest has layers.
    DiffIdMissing,
    /// The manifest names this layer's blob, but it is nowhere.
    LayerMissing(usize),
    /// The manifest ends in the middle. Its digest is that of the truncated bytes.
    ManifestTruncated,
}

impl Image {
    /// Starts an image of this name.
    pub fn builder(name: impl Into<String>) -> Builder {
        Builder::new(name.into())
    }

    /// The first name.
    pub fn name(&self) -> &str {
        &self.names[0]
    }

    /// The same image with its documents written anew: `edit` gets the media type and the text of each. What names
    /// a document names the new one.
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

    /// The chain ids, the lowest layer's first.
    pub fn chain_ids(&self) -> Vec<String> {
        self.layers.iter().map(|l| l.chain_id.clone()).collect()
    }

    /// The labels with which a blob of this image keeps the blobs that it names from containerd's garbage collection.
    pub(crate) fn references(&self, blob: &Blob) -> HashMap<String, String> {
        if !blob.is_manifest() {
            return HashMap::new();
        }
        // What is truncated on purpose names nothing.
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

    /// The chain id of the whole image.
    pub fn top(&self) -> &str {
        self.layers.last().map_or("", |l| &l.chain_id)
    }
}

impl Blob {
    /// True for what a registry keeps under its manifests.
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

/// Has all descriptors in a document name the new blobs.
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

/// `sha256:…` of some bytes.
pub fn digest(bytes: &[u8]) -> String {
    use std::fmt::Write;
    let mut text = String::from("sha256:");
    for byte in Sha256::digest(bytes) {
        write!(text, "{byte:02x}").expect("a String takes everything");
    }
    text
}

/// The architecture of this machine in OCI's words.
pub fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}
