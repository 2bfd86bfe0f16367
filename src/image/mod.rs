//! Images: from a name to its record, its manifest for this node, its layers with their chain ids, and
//! the labels of each layer's snapshot.
//!
//! Reads from containerd and changes nothing. Knows neither snapshotters nor hooks.

mod cache;
mod digest;
mod distinct;
mod document;
mod extra;
#[cfg(any(test, feature = "fuzzing"))]
pub(crate) mod fuzz;
mod json;
mod labels;
mod layer_labels;
mod manifest;
mod media;
mod packed;
mod platform;
mod read;
mod reference;

use crate::containerd;

pub use cache::Ends;
pub(crate) use digest::Digest;
pub(crate) use distinct::by_target;
pub use distinct::{Distinct, distinct};
pub(crate) use document::MAX_LAYERS;
pub use extra::log_omitted;
pub use labels::{
    IMAGE_LAYERS, IMAGE_REF, LAYER_DIGEST, MANIFEST_DIGEST, PARENT_CHAIN_ID, PROXY_MODE,
    SNAPSHOT_REF, is_from_the_pull, is_named_by,
};
pub use layer_labels::{Base, LayerLabels};
pub use manifest::{Layer, Manifest, stated_bytes};
pub use platform::Platform;
pub use read::Manifests;
pub(crate) use reference::DOCKER_HUB;
pub use reference::{
    find, hostname, is_pullable, name_for_labels, names_of, normal, record_name, repository,
};

/// Why an image cannot be read.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store has no record of that name or of a name that it abbreviates.
    #[error(
        "image {0} is not in containerd's image store: pull it first, for example with `crictl pull {0}`"
    )]
    NotFound(String),
    /// A document lacks what it must have, or cannot be parsed.
    #[error(
        "image {image}: {what} {digest}: {reason}: the image is broken: rebuild it, push it and pull it again"
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
    /// The bytes of a document do not match its digest.
    #[error(
        "image {image}: {what} {digest}: its {size} bytes do not match this digest: they were changed on \
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
        /// The size of the blob that was read, in bytes.
        size: usize,
    },
    /// More than one image id begins with the given one.
    #[error(
        "image {0}: more than one image id begins with it; use the whole id, as `crictl images --no-trunc` shows it"
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
        /// The index's digest.
        digest: String,
    },
    /// The manifest is of docker's schema 1, which has no diff ids.
    #[error(
        "image {image}: manifest {digest} is of docker's schema 1, which containerd does not support: \
         convert the image and pull it again, for example with `skopeo copy --format oci`"
    )]
    Schema1 {
        /// The image's name.
        image: String,
        /// The manifest's digest.
        digest: String,
    },
    /// The document is not an index or a manifest of a container image.
    #[error(
        "image {image}: media type {media_type} of {digest} is not that of a container image: \
         there is nothing to unpack"
    )]
    MediaType {
        /// The image's name.
        image: String,
        /// The descriptor's media type.
        media_type: String,
        /// The document's digest.
        digest: String,
    },
    /// A call to containerd failed, or the content store does not have a document.
    #[error("image {image}: {source}")]
    Containerd {
        /// The image's name.
        image: String,
        /// containerd's error.
        source: containerd::Error,
    },
}
