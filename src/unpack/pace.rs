//! How fast blobs are applied here, so that nobody waits for what cannot be done in time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Bytes of a blob in a second, where nothing was measured: hardly a node applies more.
const FASTEST: u64 = 512 << 20;

/// Bytes from which on an apply is measured: with fewer it is the calls that take the time.
const TELLING: u64 = 4 << 20;

/// A quick moment may be this much quicker than all before.
const MARGIN: f64 = 2.0;

/// The most bytes in a second that were seen in each snapshotter.
#[derive(Debug, Default)]
pub(super) struct Pace(Mutex<HashMap<String, f64>>);

impl Pace {
    /// The least time in which a blob of so many bytes may be applied.
    pub(super) fn least(&self, snapshotter: &str, bytes: u64) -> Duration {
        let fastest = self.seen().get(snapshotter).map(|seen| seen * MARGIN);
        Duration::from_secs_f64(bytes as f64 / fastest.unwrap_or(FASTEST as f64))
    }

    /// A blob of so many bytes was applied.
    pub(super) fn measured(&self, snapshotter: &str, bytes: u64, took: Duration) {
        if bytes < TELLING || took.is_zero() {
            return;
        }
        let pace = bytes as f64 / took.as_secs_f64();
        let mut seen = self.seen();
        let fastest = seen.entry(snapshotter.to_owned()).or_default();
        *fastest = fastest.max(pace);
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, f64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_that_was_seen_is_the_measure() {
        let (pace, second) = (Pace::default(), Duration::from_secs(1));
        assert_eq!(pace.least("erofs", FASTEST), second);
        pace.measured("erofs", TELLING - 1, second);
        pace.measured("erofs", TELLING, Duration::ZERO);
        assert_eq!(pace.least("erofs", FASTEST), second);
        for bytes in [10 << 20, 50 << 20, 20 << 20] {
            pace.measured("erofs", bytes, second);
        }
        assert_eq!(pace.least("erofs", 100 << 20), second);
        assert_eq!(pace.least("native", FASTEST), second);
        assert_eq!(pace.least("native", 0), Duration::ZERO);
    }
}
