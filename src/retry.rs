//! How long to wait before the next try.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Quick at first: a restart of containerd takes about a second.
const SHORTEST: Duration = Duration::from_millis(100);

/// The sockets are local and an attempt costs nothing. A container that is created before the plugin is back starts
/// without the plugin.
const LONGEST: Duration = Duration::from_secs(2);

/// Pauses with jitter that grow to some seconds. Never ends.
pub(crate) fn pauses() -> impl Iterator<Item = Duration> + Send {
    pauses_up_to(LONGEST)
}

/// Pauses with jitter that grow to `longest`. Never ends.
pub(crate) fn pauses_up_to(longest: Duration) -> impl Iterator<Item = Duration> + Send {
    pauses_between(SHORTEST, longest)
}

/// Pauses with jitter that grow from `shortest` to `longest`. Never ends.
pub(crate) fn pauses_between(
    shortest: Duration,
    longest: Duration,
) -> impl Iterator<Item = Duration> + Send {
    let growing = ExponentialBuilder::default()
        .with_min_delay(shortest)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times();
    growing.build().chain(std::iter::repeat(longest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_never_end() {
        let pauses: Vec<_> = pauses().take(100).collect();
        assert_eq!(pauses.len(), 100);
        assert!(
            pauses[0] >= SHORTEST && pauses[0] <= 2 * SHORTEST,
            "{:?}",
            pauses[0]
        );
        assert!(
            pauses[99] >= LONGEST && pauses[99] <= 2 * LONGEST,
            "{:?}",
            pauses[99]
        );
    }
}
