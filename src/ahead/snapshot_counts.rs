//! How many snapshots each snapshotter holds, as far as that is known.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use super::choice::MAX_SNAPSHOTS;

/// By snapshotter.
#[derive(Debug, Default)]
pub(super) struct SnapshotCounts(Mutex<HashMap<String, Snapshots>>);

#[derive(Clone, Copy, Debug)]
struct Snapshots {
    listed: usize,
    /// Counted since: too many, with several who ask for one image, and images that go.
    more: usize,
}

impl SnapshotCounts {
    /// It was found to hold so many.
    pub(super) fn listed(&self, snapshotter: &str, listed: usize) {
        let snapshots = Snapshots { listed, more: 0 };
        self.lock().insert(snapshotter.to_owned(), snapshots);
    }

    /// It holds so many more.
    pub(super) fn more(&self, snapshotter: &str, more: usize) {
        if let Some(snapshots) = self.lock().get_mut(snapshotter) {
            snapshots.more += more;
        }
    }

    /// Whether it holds so many that nothing more is unpacked in it ahead; `None` where it may, and has to
    /// be listed again.
    pub(super) fn is_full(&self, snapshotter: &str) -> Option<bool> {
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
