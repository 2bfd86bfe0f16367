//! The number of snapshots that a snapshotter holds, as far as it is known.

use parking_lot::Mutex;

use super::choice::MAX_SNAPSHOTS;

/// The number of snapshots; `None` before the first listing.
#[derive(Debug, Default)]
pub(super) struct SnapshotCount(Mutex<Option<Snapshots>>);

#[derive(Clone, Copy, Debug)]
struct Snapshots {
    listed: usize,
    /// The number added since the listing. It may be too high: several callers of one image each count its layers, and
    /// removals are not subtracted.
    more: usize,
}

impl SnapshotCount {
    /// Records how many snapshots a listing found.
    pub(super) fn listed(&self, listed: usize) {
        *self.0.lock() = Some(Snapshots { listed, more: 0 });
    }

    /// Records that so many snapshots were added.
    pub(super) fn more(&self, more: usize) {
        if let Some(snapshots) = &mut *self.0.lock() {
            snapshots.more += more;
        }
    }

    /// Whether the snapshotter has reached the limit for unpacking ahead; `None` if it may have, and has to be listed
    /// again.
    pub(super) fn is_at_limit(&self) -> Option<bool> {
        match *self.0.lock() {
            Some(it) if it.listed >= MAX_SNAPSHOTS => Some(true),
            Some(it) if it.listed + it.more >= MAX_SNAPSHOTS => None,
            _ => Some(false),
        }
    }
}
