//! What an image consists of: from a name to its record, its manifest for this node, its layers
//! with their chain ids, and the labels that each layer's snapshot carries.
//!
//! Reads containerd, changes nothing, and knows neither snapshotters nor hooks.

mod distinct;
mod document;
mod extra;
mod json;
mod labels;
mod manifest;
mod media;
mod platform;
mod read;
mod reference;

use crate::containerd;

pub(crate) use distinct::by_target;
pub use distinct::{Distinct, distinct};
pub use extra::extra_labels;
pub use labels::{
    IMAGE_LAYERS, IMAGE_REF, LAYER_DIGEST, LayerLabels, MANIFEST_DIGEST, PARENT_CHAIN_ID,
    SNAPSHOT_REF, is_from_the_pull, layer_labels, lineage_labels,
};
pub use manifest::{Layer, Manifest};
pub use platform::Platform;
pub use read::Manifests;
pub use reference::{find, hostname, is_pullable, name_for_labels, names_of, normal, repository};

/// Why an image cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// No record of that name, nor of what it may be short for.
    #[error(
        "image {0} is not in containerd's image store: pull it first, for example with `crictl pull {0}`"
    )]
    NotFound(String),
    /// A document that does not say what it has to.
    #[error(
        "image {image}: {what} {digest}: {reason}: the image is broken: build it anew, push it and pull it"
    )]
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
    /// A document whose bytes are not those that its digest speaks for.
    #[error(
        "image {image}: {what} {digest}: its {size} bytes do not have this digest: they were changed on \
         this node: remove the image and pull it again, for example with `crictl rmi {image}` and \
         `crictl pull {image}`"
    )]
    Changed {
        /// The image's name.
        image: String,
        /// `index`, `manifest` or `config`.
        what: &'static str,
        /// The document's digest.
        digest: String,
        /// Of what is there, in bytes.
        size: usize,
    },
    /// The beginning of an id that more than one image has.
    #[error(
        "image {0}: more than one image id begins so; write more of it, as `crictl images --no-trunc` shows it"
    )]
    Ambiguous(String),
    /// The image has no manifest for this node.
    #[error(
        "image {image}: no manifest for {platform} in {digest}: use an image that is built for this \
         platform"
    )]
    NoPlatform {
        /// The image's name.
        image: String,
        /// This node's platform.
        platform: String,
        /// The index.
        digest: String,
    },
    /// A manifest of docker's first schema, which says nothing of diff ids.
    #[error(
        "image {image}: manifest {digest} is of docker's schema 1, which containerd has given up: \
         convert the image and pull it again, for example with `skopeo copy --format oci`"
    )]
    Schema1 {
        /// The image's name.
        image: String,
        /// The manifest.
        digest: String,
    },
    /// Something that is no index or manifest of a container image.
    #[error(
        "image {image}: media type {media_type} of {digest} is not that of a container image: \
         there is nothing to unpack"
    )]
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
