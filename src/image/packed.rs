//! Manifests in few bytes, for the cache: a digest takes 33 bytes in place of 96, and a media type is held once for all
//! layers. Pure.

use std::collections::HashMap;
use std::sync::Arc;

use prost::Message;

use super::manifest::{Layer, Manifest};
use crate::containerd::Descriptor;

/// The algorithm of nearly all digests, with the colon.
const SHA256: &str = "sha256:";

/// A digest in few bytes.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Digest {
    Sha256([u8; 32]),
    Other(Box<str>),
}

impl Digest {
    pub(super) fn of(text: &str) -> Self {
        match text.strip_prefix(SHA256).and_then(bytes_of) {
            Some(bytes) => Self::Sha256(bytes),
            None => Self::Other(text.into()),
        }
    }

    pub(super) fn text(&self) -> String {
        match self {
            Self::Sha256(bytes) => {
                const HEX: &[u8; 16] = b"0123456789abcdef";
                let mut text = String::with_capacity(SHA256.len() + 2 * bytes.len());
                text.push_str(SHA256);
                for byte in bytes {
                    text.push(char::from(HEX[usize::from(byte >> 4)]));
                    text.push(char::from(HEX[usize::from(byte & 15)]));
                }
                text
            }
            Self::Other(text) => text.to_string(),
        }
    }

    /// Returns the bytes of a text that is kept as it is, or 32 bytes after a zero, which no digest begins with.
    fn pack(text: &str) -> Vec<u8> {
        match Self::of(text) {
            Self::Sha256(bytes) => [&[0], &bytes[..]].concat(),
            Self::Other(text) => text.as_bytes().to_vec(),
        }
    }

    fn unpack(packed: &[u8]) -> Option<String> {
        match packed.split_first() {
            Some((0, bytes)) => Some(Self::Sha256(bytes.try_into().ok()?).text()),
            _ => String::from_utf8(packed.to_vec()).ok(),
        }
    }
}

/// Reads 64 lower-case hex digits.
fn bytes_of(hex: &str) -> Option<[u8; 32]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let mut bytes = [0; 32];
    if hex.len() != 2 * bytes.len() {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(hex.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

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
    fn digests_keep_their_text() {
        let hex = "0123456789abcdef".repeat(4);
        for (text, is_short) in [
            (format!("sha256:{hex}"), true),
            (format!("sha256:{}", hex.to_uppercase()), false),
            (format!("sha256:{}", &hex[1..]), false),
            (format!("sha512:{hex}{hex}"), false),
            ("sha256:".to_owned(), false),
            (String::new(), false),
        ] {
            let digest = Digest::of(&text);
            assert_eq!(matches!(digest, Digest::Sha256(_)), is_short, "{text}");
            assert_eq!(digest.text(), text);
            assert_eq!(Digest::unpack(&Digest::pack(&text)), Some(text));
        }
    }

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
