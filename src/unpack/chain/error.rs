//! Why a chain could not be made ready.

use crate::ctr::Ctr;
use crate::{containerd, image};

/// Why a chain could not be made ready. Nothing of the attempt is left behind.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// No image of the store has this chain: the container stands on something else, or its image
    /// was removed meanwhile.
    #[error(
        "no image in containerd's store ends at the chain {chain}, on which {key} stands in {snapshotter}{}",
        foreign.iter().map(|image| format!(
            "; {image} is not there for this node's platform (a handler of another platform?), and is left to containerd"
        )).collect::<String>()
    )]
    NoImage {
        /// The chain id.
        chain: String,
        /// The container's snapshot.
        key: String,
        /// Where both are.
        snapshotter: String,
        /// What the snapshots themselves tell of it: that it is ready, since the guest pulls, or mixed.
        state: Option<super::state::State>,
        /// The container stands on a copy of it for a user namespace.
        is_copied: bool,
        /// The container's image, where that is there for another platform than this node's alone.
        foreign: Option<String>,
    },
    /// The configuration leaves the image to containerd.
    #[error(
        "image {image} is left out of {snapshotter} by include or exclude in the configuration: \
         containerd unpacks it when a container asks for it"
    )]
    LeftOut {
        /// The image's name.
        image: String,
        /// Where it is left out.
        snapshotter: String,
    },
    /// The container's pod is left to containerd, and the image is not broken.
    #[error("image {image} in {snapshotter} is left to containerd, as its pod is")]
    LeftAlone {
        /// The image's name.
        image: String,
        /// Where it is.
        snapshotter: String,
    },
    /// The image is to be unpacked on the host, and layers of it were left to the guest.
    #[error(
        "image {image} in {snapshotter} is {state}: layers of it were left to the guest, for another image, \
         and this one gets no labels by which it could be (labels in the configuration of this \
         snapshotter): what the host unpacks on them has a broken root file system"
    )]
    OnGuestLayers {
        /// The image's name.
        image: String,
        /// Where it is.
        snapshotter: String,
        /// What it is.
        state: super::state::State,
    },
    /// A container stands on a host's layers over layers that were left to the guest, and no chain
    /// could be made for it.
    #[error(
        "image {image} in {snapshotter} is mixed, and no chain of its own could be made: {source}"
    )]
    Broken {
        /// The image's name.
        image: String,
        /// Where it is.
        snapshotter: String,
        /// Why not.
        source: std::sync::Arc<Error>,
    },
    /// No name of the image can be pulled, so no label can carry one.
    #[error(
        "image {image} has no name that could be pulled, only an id: tag it, for example with `{} NAME`",
        ctr.tag(image)
    )]
    NoName {
        /// The image's name.
        image: String,
        /// For the remedy.
        ctr: Box<Ctr>,
    },
    /// A layer has to be applied, its blob is gone, and nothing could take its place.
    #[error(
        "image {image}: layer {position} of {layers} ({digest}) has to be unpacked, but its blob is \
         not in the content store (discarded after an earlier unpack?){}; fetch what is missing with \
         `{}` (`--user` for \
         credentials); discard_unpacked_layers = false in containerd's CRI configuration keeps the \
         blobs of later pulls",
        tried.iter().map(|means| format!("; {means}")).collect::<String>(),
        ctr.fetch(image)
    )]
    Unavailable {
        /// The image's name.
        image: String,
        /// Of the blob.
        digest: String,
        /// Counted from 1, from the bottom.
        position: usize,
        /// Of the image.
        layers: usize,
        /// What became of each means that the configuration allows.
        tried: Vec<String>,
        /// For the remedy.
        ctr: Box<Ctr>,
    },
    /// A layer has to be applied on this host, and its blob is encrypted.
    #[error(
        "image {image}: layer {position} of {layers} ({digest}) is encrypted, and containerd does not \
         decrypt it ({reason}), nor does overlayfs have it: set up containerd's stream processors with \
         the key, or use a snapshotter that leaves the image to the guest"
    )]
    Encrypted {
        /// The image's name.
        image: String,
        /// Of the blob.
        digest: String,
        /// Counted from 1, from the bottom.
        position: usize,
        /// Of the image.
        layers: usize,
        /// What containerd says.
        reason: String,
    },
    /// What came out of a blob is not what the image's config promises.
    #[error(
        "image {image}: layer {position} of {layers} ({digest}) unpacks to {applied}, but the image's \
         config says {expected}: the image is broken, build and push it again"
    )]
    WrongDiffId {
        /// The image's name.
        image: String,
        /// Of the blob.
        digest: String,
        /// Counted from 1, from the bottom.
        position: usize,
        /// Of the image.
        layers: usize,
        /// The digest of the uncompressed stream.
        applied: String,
        /// The diff id in the config.
        expected: String,
    },
    /// A call failed.
    #[error("image {image} in {snapshotter}: {source}")]
    Containerd {
        /// The image's name.
        image: String,
        /// Where it was to be unpacked.
        snapshotter: String,
        /// What containerd says.
        source: containerd::Error,
    },
    /// The chain has to be taken away, and something uses it.
    #[error(
        "image {image} in {snapshotter} is {state}, and {holders} containers, images or leases use it: once they are gone, `nri-unpack ensure` or the running plugin replaces it"
    )]
    InUse {
        /// The image's name.
        image: String,
        /// Where it is.
        snapshotter: String,
        /// What it is.
        state: super::state::State,
        /// How many use it.
        holders: usize,
        /// A chain that was made for a container that is being created: it has to be moved there.
        onto: Option<String>,
    },
    /// It stayed unready although every step succeeded: somebody else works on the same chain.
    #[error(
        "image {image} in {snapshotter}: still {state} after {tries} tries; something else changes it at the same time"
    )]
    Unsettled {
        /// The image's name.
        image: String,
        /// Where it was to be unpacked.
        snapshotter: String,
        /// What it is now.
        state: super::state::State,
        /// How often it was tried.
        tries: usize,
    },
    /// Its last name was taken away.
    #[error("image {0} was removed before it was ready")]
    Removed(String),
    /// The program is shutting down.
    #[error("stopped before {0} was ready")]
    Stopped(String),
    /// A bug: the work itself died.
    #[error("the work on {0} ended without a result; please report this")]
    Died(String),
}

impl Error {
    /// Whether the image is none of our business, and a container can start from what is there.
    pub fn is_left_out(&self) -> bool {
        let is_pulled_by_guest = matches!(
            self,
            Self::NoImage {
                state: Some(super::state::State::Ready),
                ..
            }
        );
        is_pulled_by_guest || matches!(self, Self::LeftOut { .. } | Self::LeftAlone { .. })
    }

    /// Whether it is no container image at all: an artifact, a chart, a signature.
    pub fn is_of_artifact(&self) -> bool {
        matches!(self, Self::Image(image::Error::MediaType { .. }))
    }

    /// Whether the image has no record of this name, or none at all any more.
    pub fn has_no_image(&self) -> bool {
        matches!(
            self,
            Self::Removed(_) | Self::Image(image::Error::NotFound(_))
        )
    }

    /// Whether the same may succeed later, with nobody doing anything about it.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::InUse { .. } | Self::Unsettled { .. }) || self.unreachable().is_some()
    }

    /// Whether what is there is wrong, and not merely unready: nothing may start from it, whatever the
    /// configuration says of images that are not ready.
    pub fn is_broken(&self) -> bool {
        self.state() == Some(super::state::State::Mixed)
    }

    /// What the chain was seen to be, where that is why.
    pub fn state(&self) -> Option<super::state::State> {
        match self {
            Self::InUse { state, .. }
            | Self::Unsettled { state, .. }
            | Self::OnGuestLayers { state, .. } => Some(*state),
            Self::Broken { .. } => Some(super::state::State::Mixed),
            Self::NoImage { state, .. } => *state,
            Self::Unavailable { .. } => Some(super::state::State::Unavailable),
            _ => None,
        }
    }

    /// The call that found nobody there, or no answer in time: nothing is wrong with the image then.
    pub fn unreachable(&self) -> Option<&containerd::Error> {
        match self {
            Self::Image(image::Error::Containerd { source, .. })
            | Self::Containerd { source, .. } => Some(source).filter(|e| e.is_unreachable()),
            _ => None,
        }
    }
}
