//! Random numbers that a seed repeats.

use std::time::{Duration, SystemTime};

use anyhow::{Context, Result};

/// The environment variable with the seed.
pub(crate) const SEED: &str = "NRI_UNPACK_SEED";

/// Reproducible pseudo-random numbers.
pub(crate) struct Random(u64);

impl Random {
    /// Takes the seed from the environment, or from the clock.
    pub(crate) fn new() -> Result<Self> {
        let seed = match seed()? {
            Some(seed) => seed,
            None => seed_of_clock()?,
        };
        println!("{SEED}={seed}");
        Ok(Self(seed | 1))
    }

    /// Returns the numbers of a round, which do not depend on the rounds before.
    pub(crate) fn of_round(seed: u64, round: usize) -> Self {
        Self(
            seed.wrapping_add(round as u64)
                .wrapping_mul(0x9e37_79b9_7f4a_7c15)
                | 1,
        )
    }

    /// Returns a number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    /// Returns a time below `end`.
    pub(crate) fn time(&mut self, end: Duration) -> Duration {
        Duration::from_micros(self.below(end.as_micros() as usize) as u64)
    }
}

/// Returns the seed that the environment names.
pub(crate) fn seed() -> Result<Option<u64>> {
    let seed = std::env::var(SEED).ok();
    let parsed = seed.map(|seed| seed.parse().with_context(|| format!("{SEED}={seed}")));
    parsed.transpose()
}

pub(crate) fn seed_of_clock() -> Result<u64> {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?;
    Ok(now.as_nanos() as u64)
}
