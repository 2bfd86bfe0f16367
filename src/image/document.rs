//! Parses the fields of an index, a manifest and a config that containerd reads. Other fields may have
//! any value. A field that is absent or null is empty, as in Go's decoder (images without layers have
//! `"layers": null`). Only the fields that are used are kept. Pure.

mod shape;

use std::collections::HashMap;
use std::marker::PhantomData;

use serde::de::MapAccess;

use super::Platform;
use super::json::{
    self, Collect, Fields, IsFilled, Maybe, Number, Object, Objects, Strings, Text, Texts,
};
use super::media::is_layer;
use crate::containerd;
use crate::unquoted::without_values;
use shape::Shape;

/// The largest number of layers that is accepted. overlayfs mounts at most 500.
pub(crate) const MAX_LAYERS: usize = 4096;

/// The prefix of the annotations that containerd and its snapshotters read.
const CONTAINERD: &str = "containerd.io/";

/// The prefix of the annotations that the stream processors for encrypted layers read.
const ENCRYPTION: &str = "org.opencontainers.image.enc.";

/// Why a document cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is a manifest of docker's schema 1, though its descriptor has another media type.
    Schema1,
    /// It is not a valid document of the descriptor's media type.
    Malformed(String),
}

/// An index or docker's manifest list, with the best entry for one platform.
#[derive(Debug)]
pub(super) struct Index {
    here: Platform,
    shape: Shape,
    chosen: Option<(Place, Described)>,
}

/// The rank of an index's entry for the platform: whether it requires features, then [`Platform::rank`]. The
/// lowest is the best. containerd 2.3 and later choose an entry with features only on a node that has them;
/// earlier versions ignore features.
type Place = (bool, usize);

/// A manifest of OCI or of docker's schema 2.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    shape: Shape,
    config: Described,
    layers: Layers,
}

/// An image's config.
#[derive(Debug, Default)]
pub(super) struct Config {
    platform: PlatformFields,
    rootfs: RootFs,
}

/// The descriptor of a blob in a document.
#[derive(Debug, Default)]
pub(super) struct Described {
    media_type: String,
    digest: String,
    size: i64,
    annotations: HashMap<String, String>,
    platform: Option<PlatformFields>,
}

#[derive(Debug, Default)]
struct PlatformFields {
    os: String,
    architecture: String,
    variant: String,
    has_features: bool,
}

/// The layers of a manifest. Other blobs are skipped, as containerd does.
#[derive(Debug, Default)]
struct Layers(Vec<containerd::Descriptor>);

#[derive(Debug, Default)]
struct RootFs {
    diff_ids: DiffIds,
}

#[derive(Debug, Default)]
struct DiffIds(Vec<String>);

impl Index {
    /// Returns the entry that containerd chooses: the one with the best rank for the platform, of equals the
    /// first. If no entry's platform runs here, it is the first entry without a platform.
    pub(super) fn parse(bytes: &[u8], here: &Platform) -> Result<Option<Described>, Refusal> {
        let mut index = Self {
            here: here.clone(),
            shape: Shape::default(),
            chosen: None,
        };
        json::read_into(&mut index, bytes).map_err(malformed)?;
        index.shape.expect_index()?;
        Ok(index.chosen.map(|(_, entry)| entry))
    }

    fn place(&self, entry: &Described) -> Option<Place> {
        match entry.platform() {
            Some(platform) => Some((entry.needs_features(), self.here.rank(&platform)?)),
            None => Some((true, usize::MAX)),
        }
    }
}

impl Manifest {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        let manifest: Self = json::read(bytes).map_err(malformed)?;
        manifest.shape.expect_manifest()?;
        Ok(manifest)
    }

    /// Returns the config and the layers.
    pub(super) fn into_parts(
        self,
    ) -> Result<(containerd::Descriptor, Vec<containerd::Descriptor>), String> {
        Ok((self.config.descriptor()?, self.layers.0))
    }
}

impl Config {
    pub(super) fn parse(bytes: &[u8]) -> Result<Self, Refusal> {
        json::read(bytes).map_err(malformed)
    }

    pub(super) fn platform(&self) -> Platform {
        self.platform.platform()
    }

    /// Returns the digests of the uncompressed layers, bottom first.
    pub(super) fn into_diff_ids(self) -> Vec<String> {
        self.rootfs.diff_ids.0
    }
}

impl Described {
    /// Returns the blob's platform; `None` if the index gives none.
    pub(super) fn platform(&self) -> Option<Platform> {
        self.platform.as_ref().map(PlatformFields::platform)
    }

    /// Whether the blob's platform requires `os.features`. An index marks an erofs image so, next to an
    /// ordinary one.
    fn needs_features(&self) -> bool {
        self.platform.as_ref().is_some_and(|p| p.has_features)
    }

    /// Returns the descriptor, or the reason why its digest is invalid.
    pub(super) fn descriptor(self) -> Result<containerd::Descriptor, String> {
        let digest = digest(self.digest)?;
        Ok(containerd::Descriptor {
            media_type: self.media_type,
            digest,
            size: self.size,
            annotations: self.annotations,
        })
    }
}

impl PlatformFields {
    fn platform(&self) -> Platform {
        Platform::new(&self.os, &self.architecture, &self.variant)
    }

    /// Reads a field of a platform; `false` for any other field. A config has these fields among its own.
    fn read<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<bool, A::Error> {
        match name {
            "os" => map.next_value_seed(Text(&mut self.os))?,
            "architecture" => map.next_value_seed(Text(&mut self.architecture))?,
            "variant" => map.next_value_seed(Text(&mut self.variant))?,
            "os.features" => map.next_value_seed(IsFilled(&mut self.has_features))?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Whether an annotation of a layer is kept. One of containerd becomes a label, so one that is too long for a label has
/// no effect.
fn is_used(key: &str, value: &str) -> bool {
    let is_label = key.starts_with(CONTAINERD) && key.len() + value.len() <= containerd::MAX_LABEL;
    is_label || key.starts_with(ENCRYPTION)
}

/// Checks a digest against OCI's grammar, `algorithm:encoded`, since digests become names of snapshots and
/// values of labels.
fn digest(text: String) -> Result<String, String> {
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
        Some((algorithm, encoded)) if is_algorithm(algorithm) && is_encoded(encoded) => Ok(text),
        _ => Err(format!("{text:?} is not a digest")),
    }
}

impl Object for Index {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "manifests" => map.next_value_seed(Objects::<_, Described>(self, PhantomData)),
            _ => self.shape.read(name, map),
        }
    }
}

impl Collect<Described> for Index {
    fn clear(&mut self) {
        self.chosen = None;
    }

    fn add(&mut self, entry: Described) -> Result<(), String> {
        if let Some(place) = self.place(&entry)
            && self.chosen.as_ref().is_none_or(|(best, _)| place < *best)
        {
            self.chosen = Some((place, entry));
        }
        Ok(())
    }
}

impl Object for Manifest {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "config" => map.next_value_seed(Fields(&mut self.config)),
            "layers" => map.next_value_seed(Objects::<_, Described>(&mut self.layers, PhantomData)),
            _ => self.shape.read(name, map),
        }
    }
}

impl Object for Config {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "rootfs" => map.next_value_seed(Fields(&mut self.rootfs)),
            _ if self.platform.read(name, map)? => Ok(()),
            _ => json::skip(map),
        }
    }
}

impl Object for Described {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "mediatype" => map.next_value_seed(Text(&mut self.media_type)),
            "digest" => map.next_value_seed(Text(&mut self.digest)),
            "size" => map.next_value_seed(Number(&mut self.size)),
            "annotations" => map.next_value_seed(Texts(&mut self.annotations, is_used)),
            "platform" => map.next_value_seed(Maybe(&mut self.platform)),
            _ => json::skip(map),
        }
    }
}

impl Object for PlatformFields {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match self.read(name, map)? {
            true => Ok(()),
            false => json::skip(map),
        }
    }
}

impl Object for RootFs {
    fn field<'de, A: MapAccess<'de>>(&mut self, name: &str, map: &mut A) -> Result<(), A::Error> {
        match name {
            "diff_ids" => map.next_value_seed(Strings(&mut self.diff_ids)),
            _ => json::skip(map),
        }
    }
}

impl Collect<Described> for Layers {
    fn clear(&mut self) {
        self.0.clear();
    }

    fn add(&mut self, blob: Described) -> Result<(), String> {
        if !is_layer(&blob.media_type) {
            return Ok(());
        }
        self.0.push(blob.descriptor()?);
        within(self.0.len())
    }
}

impl Collect<String> for DiffIds {
    fn clear(&mut self) {
        self.0.clear();
    }

    fn add(&mut self, diff_id: String) -> Result<(), String> {
        self.0.push(digest(diff_id)?);
        within(self.0.len())
    }
}

fn within(layers: usize) -> Result<(), String> {
    match layers > MAX_LAYERS {
        true => Err(format!("more than {MAX_LAYERS} layers")),
        false => Ok(()),
    }
}

fn malformed(error: serde_json::Error) -> Refusal {
    Refusal::Malformed(without_values(&error))
}

#[cfg(test)]
mod tests;
