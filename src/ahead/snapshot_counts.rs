//! The number of snapshots that each snapshotter holds, as far as it is known.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use super::choice::MAX_SNAPSHOTS;

/// By snapshotter.
#[derive(Debug, Default)]
pub(super) struct SnapshotCounts(Mutex<HashMap<String, Snapshots>>);

#[derive(Clone, Copy, Debug)]
struct Snapshots {
    listed: usize,
    /// The number added since the listing. It may be too high: several callers of one image each count its layers, and
    /// removals are not subtracted.
    more: usize,
}

impl SnapshotCounts {
    /// Records how many snapshots a listing found.
    pub(super) fn listed(&self, snapshotter: &str, listed: usize) {
        let snapshots = Snapshots { listed, more: 0 };
        self.lock().insert(snapshotter.to_owned(), snapshots);
    }

    /// Records that so many snapshots were added.
    pub(super) fn more(&self, snapshotter: &str, more: usize) {
        if let Some(snapshots) = self.lock().get_mut(snapshotter) {
            snapshots.more += more;
        }
    }

    /// Whether the snapshotter has reached the limit for unpacking ahead; `None` if it may have, and has to be listed
    /// again.
    pub(super) fn is_at_limit(&self, snapshotter: &str) -> Option<bool> {
        let snapshots = self.lock().get(snapshotter).copied();
        match snapshots {
            Some(it) if it.listed >= MAX_SNAPSHOTS => Some(true),
            Some(it) if it.listed + it.more >= MAX_SNAPSHOTS => None,
            _ => Some(false),
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Snapshots>> {
        self.0.lock()
    }
}
