//! The measured throughput of a snapshotter. With it, a caller does not wait for an unpack that cannot end in time.

use std::time::Duration;

use parking_lot::Mutex;

/// The assumed highest throughput in bytes of a blob per second, while few applies were measured. Hardly any node
/// exceeds it.
const FASTEST: f64 = (512 << 20) as f64;

/// The number of measured applies from which on the measurement is used: fewer may all have been slow.
const MIN_APPLIES: usize = 8;

/// The smallest blob that is measured, in bytes: the apply of a smaller one takes mostly the time of its calls.
const MIN_BYTES: u64 = 4 << 20;

/// The factor by which a later apply may be faster than all measured ones.
const MARGIN: f64 = 2.0;

/// The throughput of one snapshotter.
#[derive(Debug, Default)]
pub(crate) struct Throughput(Mutex<Measured>);

#[derive(Debug, Default)]
struct Measured {
    applies: usize,
    /// The highest throughput in bytes per second.
    fastest: f64,
}

impl Throughput {
    /// Returns the shortest time in which a blob of this size may be applied.
    pub(crate) fn least(&self, bytes: u64) -> Duration {
        let measured = self.0.lock();
        let highest = match measured.applies >= MIN_APPLIES {
            true => measured.fastest * MARGIN,
            false => FASTEST,
        };
        Duration::from_secs_f64(bytes as f64 / highest)
    }

    /// Records the apply of a blob of this size.
    pub(crate) fn measured(&self, bytes: u64, took: Duration) {
        if bytes < MIN_BYTES || took.is_zero() {
            return;
        }
        let throughput = bytes as f64 / took.as_secs_f64();
        let mut measured = self.0.lock();
        measured.applies += 1;
        measured.fastest = measured.fastest.max(throughput);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_uses_the_highest_measured_throughput() {
        let (throughput, second) = (Throughput::default(), Duration::from_secs(1));
        assert_eq!(throughput.least(512 << 20), second);
        for _ in 0..MIN_APPLIES {
            throughput.measured(MIN_BYTES - 1, second);
            throughput.measured(MIN_BYTES, Duration::ZERO);
        }
        for n in 1..MIN_APPLIES as u64 {
            throughput.measured((10 + n) << 20, second);
        }
        assert_eq!(throughput.least(512 << 20), second);
        throughput.measured(50 << 20, second);
        throughput.measured(20 << 20, second);
        assert_eq!(throughput.least(100 << 20), second);
        assert_eq!(throughput.least(0), Duration::ZERO);
    }
}
