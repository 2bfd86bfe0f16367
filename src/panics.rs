//! Background work and hooks go on after a panic: a fault of this program, or of a library that met what it does not expect. It
//! costs the piece of work in which it happened, and nothing else. The panic itself was logged and counted when it
//! happened (`logs`).

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;
use tokio::time::Instant;

use crate::retry;

/// The first pause after a panic, and the longest: what comes next may panic as well.
const SHORTEST_PAUSE: Duration = Duration::from_secs(1);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Work that has run for so long did not panic because of how it began.
const STABLE: Duration = Duration::from_secs(5 * 60);

/// Runs a piece of work. Returns `None` if it has panicked.
pub(crate) fn contain<T>(work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    // Work is large, and would be on the stack of each future around it.
    let work = Box::pin(work);
    // A panic releases the locks of parking_lot and tokio, and poisons none.
    async move { AssertUnwindSafe(work).catch_unwind().await.ok() }
}

/// Runs work to its end, and begins it again after each panic, with pauses that grow.
pub(crate) async fn begin_again<F: Future<Output = ()>>(mut work: impl FnMut() -> F) {
    let pauses = || retry::pauses_between(SHORTEST_PAUSE, LONGEST_PAUSE);
    let mut left = pauses();
    loop {
        let began = Instant::now();
        if contain(work()).await.is_some() {
            return;
        }
        if began.elapsed() >= STABLE {
            left = pauses();
        }
        tokio::time::sleep(left.next().unwrap_or(LONGEST_PAUSE)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_begins_again_after_each_panic_and_a_growing_pause() {
        let began = Instant::now();
        let mut runs = Vec::new();
        begin_again(|| {
            runs.push(began.elapsed());
            let is_last = runs.len() == 10;
            async move { assert!(is_last, "a panic of the test") }
        })
        .await;
        let pauses: Vec<_> = runs.windows(2).map(|two| two[1] - two[0]).collect();
        assert!(pauses[0] >= SHORTEST_PAUSE && pauses[0] <= 2 * SHORTEST_PAUSE);
        assert!(pauses[8] >= LONGEST_PAUSE, "{pauses:?}");
        assert_eq!(contain(async { 7 }).await, Some(7));
    }
}
