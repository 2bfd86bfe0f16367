//! The errors of the engine.

use crate::ctr::Ctr;
use crate::{containerd, image};

/// An error that says why a chain was not made ready. The attempt leaves nothing behind.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The image cannot be read.
    #[error(transparent)]
    Image(#[from] image::Error),
    /// No image of the store has this chain: the container's snapshot is based on another snapshot, or its
    /// image was removed meanwhile.
    #[error(
        "no image in containerd's store has the chain {chain}, which is the parent of the snapshot {key} in {snapshotter}{}",
        foreign.iter().map(|image| format!(
            "; this node has {image} only for another platform (that of another runtime handler?), so it is left to containerd"
        )).collect::<String>()
    )]
    NoImage {
        /// The chain id of the top layer.
        chain: String,
        /// The container's snapshot.
        key: String,
        /// The snapshotter of both.
        snapshotter: String,
        /// The state as far as the snapshots show it: ready, since the guest pulls the image, or mixed.
        state: Option<super::state::State>,
        /// The container is based on a copy of the chain, made for a user namespace.
        is_copied: bool,
        /// The container's image, if this node has it only for another platform.
        foreign: Option<String>,
    },
    /// The configuration excludes the image.
    #[error(
        "image {image} is excluded from {snapshotter} by include or exclude in the configuration: \
         containerd unpacks it when a container needs it"
    )]
    Excluded {
        /// The image's name.
        image: String,
        /// The snapshotter that it is excluded from.
        snapshotter: String,
    },
    /// The container is left to containerd, since its pod is or since it is a sandbox, and its image is not
    /// broken.
    #[error(
        "image {image} in {snapshotter} is left to containerd, and a container can start from it"
    )]
    LeftToContainerd {
        /// The image's name.
        image: String,
        /// The snapshotter.
        snapshotter: String,
    },
    /// The image has to be unpacked on the host, and some of its layers are guest-pulled layers.
    #[error(
        "image {image} in {snapshotter} is {state}: it shares guest-pulled layers with another image, and \
         gets no labels with which the guest could pull it (see labels in the configuration of this \
         snapshotter): a layer that the host unpacks on them makes a broken root file system"
    )]
    OnGuestLayers {
        /// The image's name.
        image: String,
        /// The snapshotter.
        snapshotter: String,
        /// The chain's state.
        state: super::state::State,
    },
    /// The snapshotter asks for a layer's content, although the guest is to pull the image.
    #[error(
        "image {image} in {snapshotter}: the guest should pull it, but the snapshotter has its layers unpacked on this host: it was restarted in another mode, and is asked again with the next try; or `profile` in the configuration is wrong for it"
    )]
    NotLeftToGuest {
        /// The image's name.
        image: String,
        /// The snapshotter.
        snapshotter: String,
    },
    /// A container is based on a layer of the host over guest-pulled layers, and no private chain could be made
    /// for it.
    #[error(
        "image {image} in {snapshotter} is mixed, and no private chain could be made for it: {source}"
    )]
    Broken {
        /// The image's name.
        image: String,
        /// The snapshotter.
        snapshotter: String,
        /// The reason.
        source: std::sync::Arc<Error>,
    },
    /// The image has no name that can be pulled, so its labels cannot name it.
    #[error(
        "image {image} has no name that could be pulled, only an id: tag it, for example with `{} NAME`",
        ctr.tag(image)
    )]
    NoName {
        /// The image's name.
        image: String,
        /// The `ctr` command of the remedy.
        ctr: Box<Ctr>,
    },
    /// A layer has to be applied, its blob is gone, and no other source has its content.
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
        /// The blob's digest.
        digest: String,
        /// The layer's position, from 1 at the bottom.
        position: usize,
        /// The number of layers of the image.
        layers: usize,
        /// The result of each way to get the content that the configuration allows.
        tried: Vec<String>,
        /// The `ctr` command of the remedy.
        ctr: Box<Ctr>,
    },
    /// A layer has to be applied on this host, and its blob is encrypted.
    #[error(
        "image {image}: layer {position} of {layers} ({digest}) is encrypted, and containerd does not \
         decrypt it ({reason}); overlayfs does not have the layer either: set up containerd's stream \
         processors with the key, or use a snapshotter for which the guest pulls the image"
    )]
    Encrypted {
        /// The image's name.
        image: String,
        /// The blob's digest.
        digest: String,
        /// The layer's position, from 1 at the bottom.
        position: usize,
        /// The number of layers of the image.
        layers: usize,
        /// containerd's answer.
        reason: String,
    },
    /// The uncompressed content of a blob does not have the diff id that the image's config lists.
    #[error(
        "image {image}: layer {position} of {layers} ({digest}) unpacks to {applied}, but the image's \
         config says {expected}: the image is broken, build and push it again"
    )]
    WrongDiffId {
        /// The image's name.
        image: String,
        /// The blob's digest.
        digest: String,
        /// The layer's position, from 1 at the bottom.
        position: usize,
        /// The number of layers of the image.
        layers: usize,
        /// The digest of the uncompressed stream.
        applied: String,
        /// The diff id in the config.
        expected: String,
    },
    /// A call to containerd failed.
    #[error("image {image} in {snapshotter}: {source}")]
    Containerd {
        /// The image's name.
        image: String,
        /// The snapshotter.
        snapshotter: String,
        /// containerd's answer.
        source: containerd::Error,
    },
    /// The chain has to be replaced, and something uses it.
    #[error(
        "image {image} in {snapshotter} is {state}, and {holders} containers, images or leases use it: once they are gone, `nri-unpack ensure` or the running plugin replaces it"
    )]
    InUse {
        /// The image's name.
        image: String,
        /// The snapshotter.
        snapshotter: String,
        /// The chain's state.
        state: super::state::State,
        /// The number of containers, images and leases that use it.
        holders: usize,
    },
    /// The chain stayed unready although every step succeeded: another client of containerd changes it.
    #[error(
        "image {image} in {snapshotter} is still {state} after {tries} attempts: another client of containerd changes its chain at the same time; try again later"
    )]
    Unsettled {
        /// The image's name.
        image: String,
        /// The snapshotter.
        snapshotter: String,
        /// The state after the last attempt.
        state: super::state::State,
        /// The number of attempts.
        tries: usize,
    },
    /// The image's last name was removed.
    #[error("image {0} was removed before it was ready")]
    Removed(String),
    /// The program is shutting down.
    #[error("stopped before {0} was ready")]
    Stopped(String),
    /// The task ended without a result, for example in a panic: a bug.
    #[error(
        "the work on {0} ended without a result: this is a bug in nri-unpack, please report it"
    )]
    Died(String),
}

impl Error {
    /// Whether the plugin leaves the image alone, and a container can start from the chain as it is.
    pub fn is_left_to_containerd(&self) -> bool {
        let is_pulled_by_guest = matches!(
            self,
            Self::NoImage {
                state: Some(super::state::State::Ready),
                ..
            }
        );
        is_pulled_by_guest || matches!(self, Self::Excluded { .. } | Self::LeftToContainerd { .. })
    }

    /// Whether the record is no container image but an artifact, a chart or a signature.
    pub fn is_of_artifact(&self) -> bool {
        matches!(self, Self::Image(image::Error::MediaType { .. }))
    }

    /// Whether no image has this name, or the image was removed.
    pub fn has_no_image(&self) -> bool {
        matches!(
            self,
            Self::Removed(_) | Self::Image(image::Error::NotFound(_))
        )
    }

    /// Whether a later attempt may succeed without a change by the user.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::InUse { .. } | Self::Unsettled { .. } | Self::NotLeftToGuest { .. }
        ) || self.unreachable().is_some()
    }

    /// Whether the snapshotter behaved as in another mode: whether the guest pulls its images has to be found out again.
    pub(crate) fn contradicts_guest_pull(&self) -> bool {
        matches!(self, Self::NotLeftToGuest { .. } | Self::Unsettled { .. })
    }

    /// Whether the chain is broken and not only unready: no container may start from it, under any
    /// `on_unready`.
    pub fn is_broken(&self) -> bool {
        self.state() == Some(super::state::State::Mixed)
    }

    /// The state of the chain, if that is the reason for the error.
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

    /// The failed call, if containerd could not be reached or did not answer in time. The image itself may be fine.
    pub fn unreachable(&self) -> Option<&containerd::Error> {
        match self {
            Self::Image(image::Error::Containerd { source, .. })
            | Self::Containerd { source, .. } => Some(source).filter(|e| e.is_unreachable()),
            _ => None,
        }
    }
}
