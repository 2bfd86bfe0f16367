//! How fast blobs are applied here, so that nobody waits for what cannot be done in time.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

/// Bytes of a blob in a second, while little was measured: hardly a node applies more.
const FASTEST: f64 = (512 << 20) as f64;

/// Applies after which what was measured is believed: a few may have been slow ones.
const BELIEVED: usize = 8;

/// Bytes from which on an apply is measured: with fewer it is the calls that take the time.
const TELLING: u64 = 4 << 20;

/// A quick moment may be this much quicker than all before.
const MARGIN: f64 = 2.0;

/// How fast it went in each snapshotter.
#[derive(Debug, Default)]
pub(crate) struct Throughput(Mutex<HashMap<String, Seen>>);

#[derive(Debug, Default)]
struct Seen {
    applies: usize,
    /// The most bytes in a second.
    fastest: f64,
}

impl Throughput {
    /// The least time in which a blob of so many bytes may be applied.
    pub(crate) fn least(&self, snapshotter: &str, bytes: u64) -> Duration {
        let pace = match self.seen().get(snapshotter) {
            Some(seen) if seen.applies >= BELIEVED => seen.fastest * MARGIN,
            _ => FASTEST,
        };
        Duration::from_secs_f64(bytes as f64 / pace)
    }

    /// A blob of so many bytes was applied.
    pub(crate) fn measured(&self, snapshotter: &str, bytes: u64, took: Duration) {
        if bytes < TELLING || took.is_zero() {
            return;
        }
        let pace = bytes as f64 / took.as_secs_f64();
        let mut seen = self.seen();
        let seen = seen.entry(snapshotter.to_owned()).or_default();
        seen.applies += 1;
        seen.fastest = seen.fastest.max(pace);
    }

    fn seen(&self) -> MutexGuard<'_, HashMap<String, Seen>> {
        self.0.lock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_fastest_that_was_seen_is_the_measure() {
        let (throughput, second) = (Throughput::default(), Duration::from_secs(1));
        assert_eq!(throughput.least("erofs", 512 << 20), second);
        for _ in 0..BELIEVED {
            throughput.measured("erofs", TELLING - 1, second);
            throughput.measured("erofs", TELLING, Duration::ZERO);
        }
        for n in 1..BELIEVED as u64 {
            throughput.measured("erofs", (10 + n) << 20, second);
        }
        assert_eq!(throughput.least("erofs", 512 << 20), second);
        throughput.measured("erofs", 50 << 20, second);
        throughput.measured("erofs", 20 << 20, second);
        assert_eq!(throughput.least("erofs", 100 << 20), second);
        assert_eq!(throughput.least("native", 512 << 20), second);
        assert_eq!(throughput.least("native", 0), Duration::ZERO);
    }
}
