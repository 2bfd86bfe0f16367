//! What the engine is asked for.

use crate::containerd::Image;
use crate::unpack::schedule::priority::Urgency;

/// What is to be made ready.
#[derive(Clone, Debug, PartialEq)]
pub enum Want {
    /// An image, by any reference that names it.
    Image(String),
    /// An image that is still being pulled, and so has no record in the store yet.
    Arriving(Image),
    /// The image of a container that is being created: what its snapshot stands on is the truth, the
    /// name in its annotation a hint.
    Container {
        /// The container's snapshot.
        key: String,
        /// The chain id below it.
        chain: String,
        /// The annotation.
        name: Option<String>,
        /// Its pod is left to containerd: all that is looked at is whether it can start from the chain.
        left_alone: bool,
    },
    /// The content of a volume that containerd has mounted for a container.
    Volume {
        /// Where it is mounted, which is its snapshot's key.
        path: String,
        /// The digest that the image's name stands for.
        image: String,
    },
    /// The image of a sandbox that runs already: it can only be looked at.
    Sandbox {
        /// The sandbox's snapshot.
        key: String,
        /// The chain id below it.
        chain: String,
    },
}

impl Want {
    /// What it is called: an image's name, a container's id.
    pub fn name(&self) -> &str {
        match self {
            Self::Image(name) => name,
            Self::Arriving(image) => &image.name,
            Self::Container { key, .. } | Self::Sandbox { key, .. } => key,
            Self::Volume { path, .. } => path,
        }
    }

    /// Whether all that is looked at is whether its chain can be started from.
    pub(crate) fn is_left_alone(&self) -> bool {
        match self {
            Self::Container { left_alone, .. } => *left_alone,
            Self::Sandbox { .. } => true,
            Self::Image(_) | Self::Arriving(_) | Self::Volume { .. } => false,
        }
    }
}

/// One `ensure`.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// What.
    pub want: Want,
    /// Where.
    pub snapshotter: String,
    /// Who waits for it.
    pub urgency: Urgency,
}

/// A container that is to stand on another chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Move {
    /// Where its snapshot is.
    pub snapshotter: String,
    /// The container's id.
    pub key: String,
    /// What it stands on.
    pub from: String,
    /// What it is to stand on.
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
