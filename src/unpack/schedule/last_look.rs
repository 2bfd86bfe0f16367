//! What the layers of an image know of another client that unpacks it at the same time. A small layer takes less time than
//! a look for the other client, so not each of them looks.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// The compressed bytes after which the next layer looks.
const BYTES: u64 = 1 << 20;

/// The least that a layer counts for, in bytes: every eighth of the smallest layers looks.
const LEAST: u64 = BYTES / 8;

/// The last look for another client.
#[derive(Debug)]
pub(crate) struct LastLook {
    /// The bytes of the layers since the last look that found no other client.
    since: AtomicU64,
    /// Whether a look has found one.
    has_found: AtomicBool,
}

impl Default for LastLook {
    fn default() -> Self {
        Self {
            since: AtomicU64::new(BYTES),
            has_found: AtomicBool::default(),
        }
    }
}

impl LastLook {
    /// Whether the next layer looks, which has so many bytes.
    pub(crate) fn is_due(&self, bytes: u64) -> bool {
        let bytes = bytes.max(LEAST);
        self.since.fetch_add(bytes, Ordering::Relaxed) >= BYTES
    }

    /// Whether another client was found.
    pub(crate) fn has_found(&self) -> bool {
        self.has_found.load(Ordering::Relaxed)
    }

    /// Records a look that found another client.
    pub(crate) fn found(&self) {
        self.has_found.store(true, Ordering::Relaxed);
        self.since.store(BYTES, Ordering::Relaxed);
    }

    /// Records a look that found no other client, before a layer of so many bytes.
    pub(crate) fn found_none(&self, bytes: u64) {
        self.since.store(bytes.max(LEAST), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_large_layer_and_every_eighth_small_one_looks() {
        let looks = |bytes: u64| {
            let last = LastLook::default();
            let looks = (0..17).filter(|_| {
                let is_due = last.is_due(bytes);
                if is_due {
                    last.found_none(bytes);
                }
                is_due
            });
            looks.count()
        };
        assert_eq!((looks(0), looks(BYTES)), (3, 17));
    }
}
