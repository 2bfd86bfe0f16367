//! What an image consists of: from a name to its record, its manifest for this node, its layers
//! with their chain ids, and the labels that each layer's snapshot carries.
//!
//! Reads containerd, changes nothing, and knows neither snapshotters nor hooks.

mod labels;
mod manifest;
mod platform;
mod reference;

use crate::containerd;

pub use labels::{IMAGE_LAYERS, LayerLabels, SNAPSHOT_REF, layer_labels};
pub use manifest::{Layer, Manifest, Manifests};
pub use platform::Platform;
pub use reference::{find, is_pullable, name_for_labels};

/// Why an image cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No record of that name, nor of what it may be short for.
    #[error(
        "image {0} is not in containerd's image store: pull it first, for example with `crictl pull {0}`"
    )]
    NotFound(String),
    /// A document that does not say what it has to.
    #[error("image {image}: {what} {digest}: {reason}; remove the image and pull it again")]
    Malformed {
        /// The image's name.
        image: String,
        /// `index`, `manifest` or `config`.
        what: &'static str,
        /// The document's digest.
        digest: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The image has no manifest for this node.
    #[error("image {image}: no manifest for {platform} in {digest}: pull it for this platform")]
    NoPlatform {
        /// The image's name.
        image: String,
        /// This node's platform.
        platform: String,
        /// The index.
        digest: String,
    },
    /// Something that is no index or manifest of a container image.
    #[error("image {image}: media type {media_type} of {digest} is not that of a container image")]
    MediaType {
        /// The image's name.
        image: String,
        /// As the descriptor has it.
        media_type: String,
        /// Of the document.
        digest: String,
    },
    /// A document that the content store does not have, or a failed call.
    #[error("image {image}: {source}")]
    Containerd {
        /// The image's name.
        image: String,
        /// What containerd says.
        source: containerd::Error,
    },
}
