//! What containerd reads of an index, a manifest and a config, and no more: every other field may be
//! as it likes, and one that is absent or null is empty, as Go's decoder has it (images without
//! layers are written as `"layers": null`). What is kept of a document is what is used of it. Pure.

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
use shape::Shape;

/// Layers of an image that are read: overlayfs mounts 500 at most.
const MAX_LAYERS: usize = 4096;

/// The annotations of a layer that mean something to those who unpack it: containerd, its snapshotters, and
/// what decrypts a layer.
const ANNOTATIONS: [&str; 2] = ["containerd.io/", "org.opencontainers.image.enc."];

/// Why a document cannot be read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// It is in docker's first format, whatever its descriptor says.
    Schema1,
    /// It is not what its descriptor says.
    Malformed(String),
}

/// An index, or docker's manifest list, as far as it concerns one platform.
#[derive(Debug)]
pub(super) struct Index {
    here: Platform,
    shape: Shape,
    chosen: Option<(Place, Described)>,
}

/// How well an entry of an index suits the platform: the lower the better. containerd 2.3 and later want a
/// node that has the features; what comes before does not know what they are for.
type Place = (bool, usize);

/// A manifest, of OCI or of docker's second schema.
#[derive(Debug, Default)]
pub(super) struct Manifest {
    shape: Shape,
    config: Described,
    layers: Layers,
}

/// A config.
#[derive(Debug, Default)]
pub(super) struct Config {
    platform: PlatformFields,
    rootfs: RootFs,
}

/// A blob, as a document speaks of it.
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

/// The blobs of a manifest that are layers. An image may carry others; containerd passes over them, too.
#[derive(Debug, Default)]
struct Layers(Vec<containerd::Descriptor>);

#[derive(Debug, Default)]
struct RootFs {
    diff_ids: DiffIds,
}

#[derive(Debug, Default)]
struct DiffIds(Vec<String>);

impl Index {
    /// Reads the one entry that containerd goes on with: what runs best here, of equals the first, and where
    /// none says that it runs here, the first that does not say. Nothing is kept of the others.
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

    /// The config, and the layers.
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

    /// The digests of the uncompressed layers, bottom first.
    pub(super) fn into_diff_ids(self) -> Vec<String> {
        self.rootfs.diff_ids.0
    }
}

impl Described {
    /// What the index says that the blob is for; `None` where it says nothing.
    pub(super) fn platform(&self) -> Option<Platform> {
        self.platform.as_ref().map(PlatformFields::platform)
    }

    /// Whether the index asks for more than an operating system and a processor: an erofs image is
    /// marked so, beside an ordinary one.
    fn needs_features(&self) -> bool {
        self.platform.as_ref().is_some_and(|p| p.has_features)
    }

    /// The blob; why not, where its digest is none.
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

    /// `false` for a field that is none of these. A config has them among its own.
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

/// Digests become the names of snapshots and the values of labels, so they are held to their grammar:
/// `algorithm:encoded`, as OCI writes it.
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
        let is_used = |key: &str| ANNOTATIONS.iter().any(|used| key.starts_with(used));
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
    Refusal::Malformed(error.to_string())
}

#[cfg(test)]
mod tests;
