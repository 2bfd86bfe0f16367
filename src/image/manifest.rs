//! An image's manifest for this node: its layers with their diff ids and chain ids. Pure.

use sha2::{Digest as _, Sha256};

use crate::containerd::Descriptor;

use super::media::is_encrypted;

/// No blob is larger, in bytes.
const LARGEST: u64 = 1 << 40;

/// An image's manifest for this node.
#[derive(Clone, Debug, PartialEq)]
pub struct Manifest {
    /// The digest of the manifest itself, not of the index that lists it.
    pub digest: String,
    /// The digest of the config blob, which is the image id.
    pub config: String,
    /// The layers, bottom first.
    pub layers: Vec<Layer>,
}

impl Manifest {
    /// Returns the chain id of the whole image; `None` for an image without layers.
    pub fn chain_id(&self) -> Option<&str> {
        self.layers.last().map(|layer| layer.chain_id.as_str())
    }
}

/// Returns a blob's size in bytes from its descriptor; 0 if no blob has that size. containerd checks the sizes of what it
/// pulls; an imported image may state any.
pub fn stated_bytes(blob: &Descriptor) -> u64 {
    let bytes = u64::try_from(blob.size).unwrap_or_default();
    if bytes <= LARGEST { bytes } else { 0 }
}

/// One layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Layer {
    /// The blob's descriptor in the manifest: digest of the compressed blob, media type, annotations.
    pub blob: Descriptor,
    /// The digest of the uncompressed layer.
    pub diff_id: String,
    /// The name of the snapshot of this layer: a digest over this layer and all layers below it.
    pub chain_id: String,
}

impl Layer {
    /// Returns the size of its blob, as in [`stated_bytes`].
    pub fn bytes(&self) -> u64 {
        stated_bytes(&self.blob)
    }

    /// Whether the blob must be decrypted before it can be unpacked on this host. A guest that pulls the image
    /// has its own keys.
    pub fn is_encrypted(&self) -> bool {
        is_encrypted(&self.blob.media_type)
    }
}

/// Combines blobs and diff ids to layers. A chain id is the digest of the chain id below and the diff id.
pub(super) fn chain(blobs: Vec<Descriptor>, diff_ids: Vec<String>) -> Vec<Layer> {
    let mut below: Option<String> = None;
    let layers = blobs.into_iter().zip(diff_ids).map(|(blob, diff_id)| {
        let chain_id = match &below {
            None => diff_id.clone(),
            Some(below) => sha256(format!("{below} {diff_id}").as_bytes()),
        };
        below = Some(chain_id.clone());
        Layer {
            blob,
            diff_id,
            chain_id,
        }
    });
    layers.collect()
}

/// Returns the digest of some bytes: `sha256:…`.
pub(super) fn sha256(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    let mut text = "sha256:".to_owned();
    for byte in Sha256::digest(bytes) {
        // A write to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
    }
    text
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// Returns a manifest that is in no store.
    pub(crate) fn manifest(layers: usize) -> Manifest {
        let digest = |what: &str, i: usize| sha256(format!("{what} {i}").as_bytes());
        let blobs = (0..layers).map(|i| Descriptor {
            media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
            digest: digest("blob", i),
            ..Default::default()
        });
        let diff_ids = (0..layers).map(|i| digest("diff", i)).collect();
        Manifest {
            digest: digest("manifest", 0),
            config: digest("config", 0),
            layers: chain(blobs.collect(), diff_ids),
        }
    }

    #[test]
    fn a_size_that_no_blob_has_counts_as_nothing() {
        let bytes = |size| {
            stated_bytes(&Descriptor {
                size,
                ..Descriptor::default()
            })
        };
        let sizes = [7, 1 << 40, (1 << 40) + 1, i64::MAX, -1, i64::MIN];
        assert_eq!(sizes.map(bytes), [7, 1 << 40, 0, 0, 0, 0]);
    }

    #[test]
    fn chain_ids_are_those_of_the_specification() {
        let layers = manifest(2).layers;
        assert_eq!(layers[0].chain_id, layers[0].diff_id);
        let pair = format!("{} {}", layers[0].diff_id, layers[1].diff_id);
        assert_eq!(layers[1].chain_id, sha256(pair.as_bytes()));
    }
}
