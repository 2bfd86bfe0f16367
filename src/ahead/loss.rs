//! What is known of a snapshotter that has lost its state. Images below a container stay lost until the container is
//! removed.

use std::sync::atomic::{AtomicBool, Ordering};

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
