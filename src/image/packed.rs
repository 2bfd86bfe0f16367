//! Manifests in few bytes, for the cache: a digest takes 33 bytes, and a media type is held once for all layers. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;

use super::digest::Digest;
use super::manifest::{Layer, Manifest};
use crate::containerd::Descriptor;

/// A manifest in few bytes.
#[derive(Clone, Debug)]
pub(super) struct Packed(Arc<[u8]>);

#[derive(Clone, PartialEq, Message)]
struct PackedManifest {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    config: Vec<u8>,
    /// The distinct media types of the layers.
    #[prost(string, repeated, tag = "3")]
    media_types: Vec<String>,
    #[prost(message, repeated, tag = "4")]
    layers: Vec<PackedLayer>,
}

#[derive(Clone, PartialEq, Message)]
struct PackedLayer {
    #[prost(bytes = "vec", tag = "1")]
    digest: Vec<u8>,
    /// The index in [`PackedManifest::media_types`].
    #[prost(uint32, tag = "2")]
    media_type: u32,
    #[prost(int64, tag = "3")]
    size: i64,
    #[prost(map = "string, string", tag = "4")]
    annotations: HashMap<String, String>,
    #[prost(bytes = "vec", tag = "5")]
    diff_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "6")]
    chain_id: Vec<u8>,
}

impl Packed {
    pub(super) fn of(manifest: &Manifest) -> Self {
        let mut media_types: Vec<String> = Vec::new();
        let mut layers = Vec::with_capacity(manifest.layers.len());
        for Layer {
            blob,
            diff_id,
            chain_id,
        } in &manifest.layers
        {
            let known = media_types.iter().position(|it| *it == blob.media_type);
            let media_type = known.unwrap_or_else(|| {
                media_types.push(blob.media_type.clone());
                media_types.len() - 1
            });
            layers.push(PackedLayer {
                digest: Digest::pack(&blob.digest),
                // There are at most as many as layers, which are limited.
                media_type: u32::try_from(media_type).unwrap_or(u32::MAX),
                size: blob.size,
                annotations: blob.annotations.clone(),
                diff_id: Digest::pack(diff_id),
                chain_id: Digest::pack(chain_id),
            });
        }
        let packed = PackedManifest {
            digest: Digest::pack(&manifest.digest),
            config: Digest::pack(&manifest.config),
            media_types,
            layers,
        };
        Self(packed.encode_to_vec().into())
    }

    /// Returns the size in bytes.
    pub(super) fn size(&self) -> usize {
        self.0.len()
    }

    /// Returns the manifest; `None` does not occur for bytes that [`Self::of`] has made.
    pub(super) fn manifest(&self) -> Option<Manifest> {
        let packed = PackedManifest::decode(&*self.0).ok()?;
        let layer = |layer: PackedLayer| {
            let media_type = packed.media_types.get(layer.media_type as usize)?;
            Some(Layer {
                blob: Descriptor {
                    media_type: media_type.clone(),
                    digest: Digest::unpack(&layer.digest)?,
                    size: layer.size,
                    annotations: layer.annotations,
                },
                diff_id: Digest::unpack(&layer.diff_id)?,
                chain_id: Digest::unpack(&layer.chain_id)?,
            })
        };
        Some(Manifest {
            digest: Digest::unpack(&packed.digest)?,
            config: Digest::unpack(&packed.config)?,
            layers: packed
                .layers
                .into_iter()
                .map(layer)
                .collect::<Option<_>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::*;

    #[test]
    fn a_manifest_is_unchanged_and_takes_few_bytes() {
        let mut whole = manifest(20);
        let small = Packed::of(&whole);
        assert_eq!(small.manifest().as_ref(), Some(&whole));
        assert!(small.size() < 20 * 128, "{} bytes", small.size());

        whole.layers[3].blob.media_type = "application/other".to_owned();
        whole.layers[4].blob.size = -1;
        whole.layers[5].blob.digest = "md5:0".to_owned();
        let annotation = ("containerd.io/snapshot/a".to_owned(), "b".to_owned());
        whole.layers[6].blob.annotations.extend([annotation]);
        assert_eq!(Packed::of(&whole).manifest(), Some(whole));
    }
}
