//! The content that is applied to make a layer: the image's own blob, or a blob that replaces it.

use crate::containerd::{Descriptor, Labels};
use crate::image::Layer;

use super::rebuild::SOURCE;

/// The label of a snapshot whose content is not from the image's own blob. Its value is the snapshotter that
/// the content is from.
const REBUILT_FROM: &str = "nri-unpack/rebuilt-from";

/// The content that is applied to make a layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) blob: Descriptor,
    /// The digest that the uncompressed content must have.
    pub(crate) diff_id: String,
    /// The snapshotter that the content is from, unless it is the image's own blob.
    pub(crate) rebuilt_from: Option<&'static str>,
}

impl Content {
    /// Returns the content of the image's own blob.
    pub(crate) fn of_image(layer: &Layer) -> Self {
        Self {
            blob: layer.blob.clone(),
            diff_id: layer.diff_id.clone(),
            rebuilt_from: None,
        }
    }

    /// Returns the content of a rebuilt blob: a plain tar, so that its digest is the digest of its content.
    pub(crate) fn rebuilt(blob: Descriptor) -> Self {
        Self {
            diff_id: blob.digest.clone(),
            blob,
            rebuilt_from: Some(SOURCE),
        }
    }

    /// Returns the layer's labels, with the label for rebuilt content where it applies.
    pub(crate) fn labels(&self, labels: &Labels) -> Labels {
        let mut labels = labels.clone();
        if let Some(source) = self.rebuilt_from {
            labels.insert(REBUILT_FROM.to_owned(), source.to_owned());
        }
        labels
    }
}
