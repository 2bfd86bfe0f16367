//! What containerd reads of an index, a manifest and a config, and no more: every other field may be
//! as it likes, and one that is absent or null is empty, as Go's decoder has it (images without
//! layers are written as `"layers": null`). Pure.

use std::collections::HashMap;

use serde::de::{DeserializeOwned, IgnoredAny};
use serde::{Deserialize, Deserializer};

use super::Platform;
use super::media::Document;
use crate::containerd;

/// Why a document cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is in docker's first format, whatever its descriptor says.
    Schema1,
    /// It is not what its descriptor says.
    Malformed(String),
}

/// An index, or docker's manifest list.
#[derive(Debug, Deserialize)]
pub(super) struct Index {
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) manifests: Vec<Described>,
}

/// A manifest, of OCI or of docker's second schema.
#[derive(Debug, Deserialize)]
pub(super) struct Manifest {
    pub(super) config: Described,
    #[serde(default, deserialize_with = "or_empty")]
    pub(super) layers: Vec<Described>,
}

/// A config.
#[derive(Debug, Deserialize)]
pub(super) struct Config {
    #[serde(flatten)]
    platform: PlatformFields,
    #[serde(default, deserialize_with = "or_empty")]
    rootfs: RootFs,
}

/// A blob, as a document speaks of it.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Described {
    #[serde(default, deserialize_with = "or_empty")]
    media_type: String,
    digest: Digest,
    #[serde(default, deserialize_with = "or_empty")]
    size: i64,
    #[serde(default, deserialize_with = "or_empty")]
    annotations: HashMap<String, String>,
    platform: Option<PlatformFields>,
}

#[derive(Debug, Deserialize)]
struct PlatformFields {
    #[serde(default, deserialize_with = "or_empty")]
    os: String,
    #[serde(default, deserialize_with = "or_empty")]
    architecture: String,
    #[serde(default, deserialize_with = "or_empty")]
    variant: String,
    #[serde(default, rename = "os.features", deserialize_with = "or_empty")]
    features: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
struct RootFs {
    #[serde(default, deserialize_with = "or_empty")]
    diff_ids: Vec<Digest>,
}

/// Digests become the names of snapshots and the values of labels, so they are held to their grammar.
#[derive(Debug, Deserialize)]
#[serde(try_from = "String")]
struct Digest(String);

impl Index {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        Shape::of(bytes)?.expect_index()?;
        parse(bytes)
    }
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        Shape::of(bytes)?.expect_manifest()?;
        parse(bytes)
    }
}

impl Config {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        parse(bytes)
    }

    pub(super) fn platform(&self) -> Platform {
        self.platform.platform()
    }

    /// The digests of the uncompressed layers, bottom first.
    pub(super) fn into_diff_ids(self) -> Vec<String> {
        self.rootfs.diff_ids.into_iter().map(|id| id.0).collect()
    }
}

impl Described {
    /// What the index says that the blob is for; `None` where it says nothing.
    pub(super) fn platform(&self) -> Option<Platform> {
        self.platform.as_ref().map(PlatformFields::platform)
    }

    /// Whether the index asks for more than an operating system and a processor: an erofs image is
    /// marked so, beside an ordinary one.
    pub(super) fn needs_features(&self) -> bool {
        self.platform
            .as_ref()
            .is_some_and(|platform| !platform.features.is_empty())
    }
}

impl From<Described> for containerd::Descriptor {
    fn from(described: Described) -> Self {
        Self {
            media_type: described.media_type,
            digest: described.digest.0,
            size: described.size,
            annotations: described.annotations,
        }
    }
}

impl PlatformFields {
    fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, &self.variant)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    /// `algorithm:encoded`, as OCI writes it.
    fn try_from(text: String) -> Result<Self, String> {
        let is_algorithm = |algorithm: &str| {
            let mut parts = algorithm.split(['+', '.', '_', '-']);
            let lower = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
            parts.all(|part| !part.is_empty() && part.bytes().all(lower))
        };
        let is_encoded = |encoded: &str| {
            let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'=' | b'_' | b'-');
            !encoded.is_empty() && encoded.bytes().all(allowed)
        };
        match text.split_once(':') {
            Some((algorithm, encoded)) if is_algorithm(algorithm) && is_encoded(encoded) => {
                Ok(Self(text))
            }
            _ => Err(format!("{text:?} is not a digest")),
        }
    }
}

/// What gives a document away that is not what its descriptor says: containerd refuses it, since
/// whoever verified it read something else than who unpacks it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default, deserialize_with = "or_empty")]
    media_type: String,
    config: Option<IgnoredAny>,
    layers: Option<IgnoredAny>,
    manifests: Option<IgnoredAny>,
    fs_layers: Option<IgnoredAny>,
}

impl Shape {
    fn of(bytes: &[u8]) -> Result<Self, Refusal> {
        let shape: Self = parse(bytes)?;
        match shape.fs_layers {
            Some(_) => Err(Refusal::Schema1),
            None => Ok(shape),
        }
    }

    fn expect_index(&self) -> Result<(), Refusal> {
        let is_manifest = Document::of(&self.media_type) == Document::Manifest;
        if is_manifest || self.config.is_some() || self.layers.is_some() {
            return Err(Refusal::Malformed("it is a manifest".to_owned()));
        }
        Ok(())
    }

    fn expect_manifest(&self) -> Result<(), Refusal> {
        if Document::of(&self.media_type) == Document::Index || self.manifests.is_some() {
            return Err(Refusal::Malformed("it is an index".to_owned()));
        }
        Ok(())
    }
}

fn parse<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(bytes).map_err(|e| Refusal::Malformed(e.to_string()))
}

fn or_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Option::deserialize(deserializer).map(Option::unwrap_or_default)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const BLOB: &str = r#"{"mediaType":"m","digest":"sha256:00","size":1}"#;

    #[test]
    fn absent_and_null_are_empty() {
        for text in [r#"{}"#, r#"{"manifests":null}"#, r#"{"manifests":[]}"#] {
            assert!(Index::parse(text.as_bytes()).unwrap().manifests.is_empty());
        }
        for layers in ["", r#","layers":null"#, r#","layers":[]"#] {
            let text = format!(r#"{{"config":{BLOB}{layers}}}"#);
            assert!(Manifest::parse(text.as_bytes()).unwrap().layers.is_empty());
        }
        for text in [
            r#"{}"#,
            r#"{"rootfs":null}"#,
            r#"{"rootfs":{}}"#,
            r#"{"rootfs":{"type":"layers","diff_ids":null}}"#,
        ] {
            let config = Config::parse(text.as_bytes()).unwrap();
            // Without words it is for the system that asks, and for no processor.
            assert_eq!(config.platform(), Platform::new("linux", "", ""));
            assert!(config.into_diff_ids().is_empty());
        }
    }

    #[test]
    fn a_document_has_to_be_what_its_descriptor_says() {
        let index = "application/vnd.oci.image.index.v1+json";
        let manifest = "application/vnd.oci.image.manifest.v1+json";
        let malformed = |reason: &str| Refusal::Malformed(reason.to_owned());
        for (text, expected) in [
            (
                format!(r#"{{"config":{BLOB},"manifests":[]}}"#),
                malformed("it is an index"),
            ),
            (
                format!(r#"{{"mediaType":"{index}","config":{BLOB}}}"#),
                malformed("it is an index"),
            ),
            (r#"{"fsLayers":[]}"#.to_owned(), Refusal::Schema1),
        ] {
            let refused = Manifest::parse(text.as_bytes()).unwrap_err();
            assert_eq!(refused, expected, "{text}");
        }
        for text in [
            r#"{"layers":[]}"#.to_owned(),
            format!(r#"{{"config":{BLOB},"manifests":[]}}"#),
            format!(r#"{{"mediaType":"{manifest}","manifests":[]}}"#),
        ] {
            let refused = Index::parse(text.as_bytes()).unwrap_err();
            assert_eq!(refused, malformed("it is a manifest"), "{text}");
        }
    }

    #[test]
    fn digests_are_digests() {
        for digest in ["sha256:0a", "sha512:ff", "sha256+b64u:LCa0a2j_xo="] {
            assert!(Digest::try_from(digest.to_owned()).is_ok(), "{digest}");
        }
        for digest in ["", "0a", ":0a", "sha256:", "SHA256:0a", "a:b,c:d", "a:b c"] {
            let text = format!(r#"{{"rootfs":{{"diff_ids":["{digest}"]}}}}"#);
            let Refusal::Malformed(reason) = Config::parse(text.as_bytes()).unwrap_err() else {
                panic!("{digest}");
            };
            assert!(reason.contains("is not a digest"), "{reason}");
        }
    }

    proptest! {
        /// What a registry sends may be anything.
        #[test]
        fn no_document_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Index::parse(&bytes), Manifest::parse(&bytes), Config::parse(&bytes));
        }

        #[test]
        fn nor_is_any_json(
            key in "(config|layers|manifests|fsLayers|mediaType|rootfs|platform)",
            value in r#"(null|1|"x"|\[\]|\{\}|\[\{"digest":("a:b"|null|1)\}\]|\{"diff_ids":[1\[\]nul]{0,4}\})"#,
        ) {
            let bytes = format!(r#"{{"{key}":{value}}}"#).into_bytes();
            let _ = (Index::parse(&bytes), Manifest::parse(&bytes), Config::parse(&bytes));
        }
    }
}
