//! The jobs of a worker.

use std::sync::Arc;

use crate::containerd::Image;
use crate::unpack::Want;

/// A job for the worker of one snapshotter.
#[derive(Debug)]
pub(super) enum Job {
    /// Make an image ready whose record was created or updated.
    Arrived(Arc<Arrived>),
    /// Try an image again that could not be made ready.
    Again(String),
    /// Make an image ready that is being pulled.
    Pulled(Arc<Image>),
    /// Make an image ready that is on its way, with the priority of a pod that may need it.
    Raised(Want),
    /// Make an image of this name ready if it is in the store: a pod that is bound to this node waits for it.
    Bound(Arc<str>),
    /// Make the images of a layer ready that containerd failed to extract: a container may wait for one of them.
    Failed {
        /// The layer's chain id.
        chain: String,
    },
    /// Record that a container uses the image of this reference.
    Used(String),
    /// Make an image ready that a container mounts as a volume.
    Volume {
        /// The target digest of the image's record.
        target: String,
    },
}

/// An image whose record was created or updated.
#[derive(Debug)]
pub(super) struct Arrived {
    pub(super) record: Image,
    /// The image's name for the labels.
    pub(super) name: String,
    pub(super) is_pinned: bool,
}

impl Job {
    /// Whether a pod waits for it.
    pub(super) fn is_asked(&self) -> bool {
        matches!(
            self,
            Self::Raised(_) | Self::Bound(_) | Self::Failed { .. } | Self::Volume { .. }
        )
    }
}
