//! What containerd's events say of images, snapshots and containers.

use containerd_client::events::{ContainerDelete, SnapshotPrepare, SnapshotRemove};
use containerd_client::services::v1::ImageDelete;
use prost::Message;

use super::Event;

const CREATED: &str = "/images/create";
const UPDATED: &str = "/images/update";
const DELETED: &str = "/images/delete";
const PREPARED: &str = "/snapshot/prepare";
const REMOVED: &str = "/snapshot/remove";
const CONTAINER_DELETED: &str = "/containers/delete";

/// The topics of all events that [`StoreEvent::of`] reads.
pub(crate) const ALL: [&str; 6] = [
    CREATED,
    UPDATED,
    DELETED,
    PREPARED,
    REMOVED,
    CONTAINER_DELETED,
];

/// The topics of removed images.
pub(crate) const REMOVALS: [&str; 1] = [DELETED];

/// `ImageCreate` and `ImageUpdate` without the image's labels, which are not needed, and of which an event of 4 MiB could
/// have half a million.
#[derive(Clone, PartialEq, prost::Message)]
struct ImageChanged {
    #[prost(string, tag = "1")]
    name: String,
}

/// A change of containerd's images, snapshots or containers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum StoreEvent {
    /// The image record of this name was created or updated.
    Image(String),
    /// The image record of this name was removed. The name is empty where it cannot be read.
    ImageRemoved(String),
    /// An active snapshot was made.
    Prepared {
        /// In this snapshotter.
        snapshotter: String,
        /// Its key.
        key: String,
    },
    /// A snapshot was removed.
    Removed {
        /// From this snapshotter.
        snapshotter: String,
        /// Its key.
        key: String,
    },
    /// The container with this id was removed: its snapshot is removed soon, possibly without an event.
    ContainerRemoved(String),
}

impl StoreEvent {
    /// Reads an event; `None` for another topic, and for a message that cannot be read.
    pub(crate) fn of(event: &Event) -> Option<Self> {
        let payload = event.payload.value.as_slice();
        match event.topic.as_str() {
            CREATED | UPDATED => ImageChanged::decode(payload)
                .ok()
                .map(|e| Self::Image(e.name)),
            DELETED => {
                let deleted = ImageDelete::decode(payload).unwrap_or_default();
                Some(Self::ImageRemoved(deleted.name))
            }
            PREPARED => {
                let SnapshotPrepare {
                    key, snapshotter, ..
                } = SnapshotPrepare::decode(payload).ok()?;
                Some(Self::Prepared { snapshotter, key })
            }
            REMOVED => {
                let SnapshotRemove { key, snapshotter } = SnapshotRemove::decode(payload).ok()?;
                Some(Self::Removed { snapshotter, key })
            }
            CONTAINER_DELETED => {
                let deleted = ContainerDelete::decode(payload).ok()?;
                Some(Self::ContainerRemoved(deleted.id))
            }
            _ => None,
        }
    }
}
