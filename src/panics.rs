//! Background work goes on after a panic: a fault of this program, or of a library that met what it does not expect. It
//! costs the piece of work in which it happened, and nothing else. The panic itself was logged and counted when it
//! happened (`logs`).

use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures::FutureExt;

/// The pause after a panic: what comes next may panic as well.
const PAUSE: Duration = Duration::from_secs(1);

/// Runs a piece of work. Returns `None`, after a pause, if it has panicked.
pub(crate) fn contain<T>(work: impl Future<Output = T>) -> impl Future<Output = Option<T>> {
    // Work is large, and would be on the stack of each future around it.
    let work = Box::pin(work);
    async move {
        // No lock is held across an await point, and none is poisoned.
        match AssertUnwindSafe(work).catch_unwind().await {
            Ok(done) => Some(done),
            Err(_) => {
                tokio::time::sleep(PAUSE).await;
                None
            }
        }
    }
}

/// Runs work that has no end, and begins it again after a panic.
pub(crate) async fn begin_again<F: Future<Output = ()>>(mut work: impl FnMut() -> F) {
    while contain(work()).await.is_none() {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn work_begins_again_after_each_panic_and_a_pause() {
        let began = tokio::time::Instant::now();
        let mut runs = 0;
        begin_again(|| {
            runs += 1;
            let is_third = runs == 3;
            async move { assert!(is_third, "a panic of the test") }
        })
        .await;
        assert_eq!((runs, began.elapsed()), (3, 2 * PAUSE));
        assert_eq!(contain(async { 7 }).await, Some(7));
    }
}
