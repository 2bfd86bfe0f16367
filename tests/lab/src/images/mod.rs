//! The test images, built byte for byte the same on every run: sound ones, and ones that are broken on purpose.
//!
//! Digests, diff ids and chain ids are computed here, from the specification and not from the plugin's code, so that
//! a test can hold the two against each other. Knows nothing of containerd or of the registry.

mod archive;
mod build;
mod layer;
mod ready;

use std::collections::HashMap;

use sha2::{Digest, Sha256};

pub use build::Builder;
pub use layer::Layer;
pub use ready::{app, large, many_layers, pause};

/// An OCI image manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI image index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI image configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
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
    /// Its OCI media type.
    pub media_type: &'static str,
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

    /// The chain ids, the lowest layer's first.
    pub fn chain_ids(&self) -> Vec<String> {
        self.layers.iter().map(|l| l.chain_id.clone()).collect()
    }

    /// The labels with which a blob of this image keeps the blobs that it names from containerd's garbage collection.
    pub(crate) fn references(&self, blob: &Blob) -> HashMap<String, String> {
        let label = |suffix: String, digest: &str| {
            (
                format!("containerd.io/gc.ref.content.{suffix}"),
                digest.to_owned(),
            )
        };
        if blob.digest == self.manifest.digest {
            let layers = self.blobs.iter().filter(|b| b.media_type == LAYER_GZIP);
            let layers = layers
                .enumerate()
                .map(|(n, layer)| label(format!("l.{n}"), &layer.digest));
            std::iter::once(label("config".to_owned(), &self.config.digest))
                .chain(layers)
                .collect()
        } else if blob.digest == self.target.digest {
            HashMap::from([label("m.0".to_owned(), &self.manifest.digest)])
        } else {
            HashMap::new()
        }
    }

    /// The chain id of the whole image.
    pub fn top(&self) -> &str {
        self.layers.last().map_or("", |l| &l.chain_id)
    }
}

impl Blob {
    /// True for what a registry keeps under its manifests.
    pub(crate) fn is_manifest(&self) -> bool {
        matches!(self.media_type, MANIFEST | INDEX)
    }

    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self {
            media_type,
            digest: digest(&bytes),
            bytes,
        }
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
