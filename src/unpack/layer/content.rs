//! What is applied to make a layer: the image's own blob, or what takes its place.

use crate::containerd::{Descriptor, Labels};
use crate::image::Layer;

use super::rebuild::SOURCE;

/// The label of a snapshot whose content did not come from the image's own blob: where from instead.
const REBUILT_FROM: &str = "nri-unpack/rebuilt-from";

/// What is applied to make a layer.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Content {
    pub(crate) blob: Descriptor,
    /// The digest that has to come out.
    pub(crate) diff_id: String,
    /// The snapshotter that it was taken from, if it is not the image's own blob.
    pub(crate) rebuilt_from: Option<&'static str>,
}

impl Content {
    pub(crate) fn of_image(layer: &Layer) -> Self {
        Self {
            blob: layer.blob.clone(),
            diff_id: layer.diff_id.clone(),
            rebuilt_from: None,
        }
    }

    /// A plain tar: what comes out of it is itself.
    pub(crate) fn rebuilt(blob: Descriptor) -> Self {
        Self {
            diff_id: blob.digest.clone(),
            blob,
            rebuilt_from: Some(SOURCE),
        }
    }

    /// The layer's labels, and where it is from.
    pub(crate) fn labels(&self, labels: &Labels) -> Labels {
        let mut labels = labels.clone();
        if let Some(source) = self.rebuilt_from {
            labels.insert(REBUILT_FROM.to_owned(), source.to_owned());
        }
        labels
    }
}
