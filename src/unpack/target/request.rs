//! The requests to the engine.

use crate::containerd::Image;
use crate::unpack::schedule::priority::Urgency;

/// The image that a request is about.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// An image, by a reference.
    Image(String),
    /// An image that is still being pulled, and so has no record in the store yet.
    Arriving(Image),
    /// The image of a container that is being created. The parent of its snapshot identifies the image; the name in
    /// its annotation is a hint.
    Container {
        /// The key of the container's snapshot.
        key: String,
        /// The chain id of that snapshot's parent.
        chain: String,
        /// The image name in the annotation.
        name: Option<String>,
        /// Its pod is left to containerd: only whether the container can start from the chain is checked.
        left_to_containerd: bool,
    },
    /// The content of a volume that containerd has mounted for a container.
    Volume {
        /// The mount point, which is also the key of the volume's snapshot.
        path: String,
        /// The digest that the image's record points at.
        image: String,
    },
    /// The image of a sandbox. The sandbox runs already, so its chain is only checked.
    Sandbox {
        /// The key of the sandbox's snapshot.
        key: String,
        /// The chain id of that snapshot's parent.
        chain: String,
    },
}

impl Want {
    /// Returns the name of the image, the key of the container's snapshot or the path of the volume.
    pub fn name(&self) -> &str {
        match self {
            Self::Image(name) => name,
            Self::Arriving(image) => &image.name,
            Self::Container { key, .. } | Self::Sandbox { key, .. } => key,
            Self::Volume { path, .. } => path,
        }
    }

    /// Whether only that a container can start from the chain is checked.
    pub(crate) fn is_left_to_containerd(&self) -> bool {
        match self {
            Self::Container {
                left_to_containerd, ..
            } => *left_to_containerd,
            Self::Sandbox { .. } => true,
            Self::Image(_) | Self::Arriving(_) | Self::Volume { .. } => false,
        }
    }
}

/// A request to make an image ready in a snapshotter.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The image.
    pub want: Want,
    /// The snapshotter.
    pub snapshotter: String,
    /// How urgent the request is.
    pub urgency: Urgency,
}

/// The move of a container onto another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// The snapshotter.
    pub snapshotter: String,
    /// The container's id, which is also the key of its snapshot.
    pub key: String,
    /// The current parent of that snapshot.
    pub from: String,
    /// The new parent.
    pub onto: String,
}

impl std::fmt::Display for Request {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.want {
            Want::Image(_) | Want::Arriving(_) => write!(f, "{}", self.want.name())?,
            Want::Container { key, .. } | Want::Sandbox { key, .. } => {
                write!(f, "container {key}")?;
            }
            Want::Volume { path, .. } => write!(f, "volume {path}")?,
        }
        write!(f, " in {}", self.snapshotter)
    }
}
