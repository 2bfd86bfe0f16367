//! Checks that a document's fields match the media type of its descriptor.

use serde::de::MapAccess;

use super::Refusal;
use crate::image::json::{self, Text};
use crate::image::media::Document;

/// The fields that show that a document is not what its descriptor says. containerd rejects such a document,
/// since a verifier may read it differently than the unpack does.
#[derive(Debug, Default)]
pub(super) struct Shape {
    media_type: String,
    has_config: bool,
    has_layers: bool,
    has_manifests: bool,
    has_fs_layers: bool,
}

impl Shape {
    pub(super) fn expect_index(&self) -> Result<(), Refusal> {
        self.expect_no_schema1()?;
        let is_manifest = Document::of(&self.media_type) == Document::Manifest;
        if is_manifest || self.has_config || self.has_layers {
            return Err(Refusal::Malformed("it is a manifest".to_owned()));
        }
        Ok(())
    }

    pub(super) fn expect_manifest(&self) -> Result<(), Refusal> {
        self.expect_no_schema1()?;
        if Document::of(&self.media_type) == Document::Index || self.has_manifests {
            return Err(Refusal::Malformed("it is an index".to_owned()));
        }
        Ok(())
    }

    fn expect_no_schema1(&self) -> Result<(), Refusal> {
        match self.has_fs_layers {
            true => Err(Refusal::Schema1),
            false => Ok(()),
        }
    }

    /// Reads a field that the document does not read itself.
    pub(super) fn read<'de, A: MapAccess<'de>>(
        &mut self,
        name: &str,
        map: &mut A,
    ) -> Result<(), A::Error> {
        let has = match name {
            "mediatype" => return map.next_value_seed(Text(&mut self.media_type)),
            "config" => &mut self.has_config,
            "layers" => &mut self.has_layers,
            "manifests" => &mut self.has_manifests,
            "fslayers" => &mut self.has_fs_layers,
            _ => return json::skip(map),
        };
        *has = !json::is_null(map)?;
        Ok(())
    }
}
