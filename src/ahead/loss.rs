//! What is known of a snapshotter that has lost its state. Images below a container stay lost until the container is
//! removed.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::containerd::Image;
use crate::unpack::{Error, State};

/// What is known of a loss of one snapshotter.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// A loss was noticed, and no reconcile has ended since.
    noticed: AtomicBool,
    /// Images stay lost, since containers use them.
    remains: AtomicBool,
    /// A container or a snapshot was removed since the last look.
    user_removed: AtomicBool,
    /// The target digests of the lost images that were not made again yet. Their records and anchors may be gone already.
    images: Mutex<HashSet<String>>,
}

impl Loss {
    /// Records a loss.
    pub(super) fn notice(&self) {
        self.noticed.store(true, Ordering::Relaxed);
    }

    /// Begins a reconcile. Returns whether a loss was noticed since the last one that ended.
    pub(super) fn reconcile_begins(&self) -> bool {
        self.remains.store(false, Ordering::Relaxed);
        self.noticed.load(Ordering::Relaxed)
    }

    /// Ends a reconcile. One that is started again, as after another loss, does not end.
    pub(super) fn reconcile_ended(&self) {
        self.noticed.store(false, Ordering::Relaxed);
    }

    /// Whether an image is lost and has to be made again.
    pub(super) fn includes(&self, image: &Image) -> bool {
        self.images.lock().contains(&image.target.digest)
    }

    /// Records that an image is lost.
    pub(super) fn add(&self, image: &Image) {
        self.images.lock().insert(image.target.digest.clone());
    }

    /// Records that the image with this target digest is there.
    pub(super) fn remove(&self, digest: &str) {
        self.images.lock().remove(digest);
    }

    /// Forgets the images that have no record any more.
    pub(super) fn keep<'a>(&self, images: impl Iterator<Item = &'a Image>) {
        let mut lost = self.images.lock();
        if !lost.is_empty() {
            let records: HashSet<_> = images.map(|image| image.target.digest.as_str()).collect();
            lost.retain(|digest| records.contains(digest.as_str()));
        }
    }

    /// Records that an image could not be made ready.
    pub(super) fn failed(&self, error: &Error) {
        if is_lost(error) {
            self.remains.store(true, Ordering::Relaxed);
        }
    }

    /// Records that a container or a snapshot was removed: it may have stood on lost images.
    pub(super) fn user_removed(&self) {
        self.user_removed.store(true, Ordering::Relaxed);
    }

    /// Whether lost images may be made again now, since a user was removed after the last call.
    pub(super) fn may_heal(&self) -> bool {
        let was_removed = self.user_removed.swap(false, Ordering::Relaxed);
        was_removed && self.remains.load(Ordering::Relaxed)
    }
}

/// Whether an image is lost, and containers use it.
pub(super) fn is_lost(error: &Error) -> bool {
    error.state() == Some(State::Lost)
}
