//! The schedule of a worker's reconciles: on request, at the configured interval, and after a pause when something did not answer.

use std::time::Duration;

use crate::config::Interval;
use crate::panics;
use crate::retry;

use super::summary::{LastReported, Rest};
use super::worker::Worker;
use super::{Ahead, reconcile};

/// The longest pause between reconciles while something does not answer: a reconcile reads the whole store.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Runs the scheduled reconciles, until it is dropped.
pub(super) async fn run(ahead: &Ahead, worker: &Worker) {
    let mut reported = LastReported::default();
    let mut later = Later::new();
    loop {
        wanted(ahead, worker, &mut later).await;
        let reconciled = panics::contain(reconcile::run(ahead, worker, &mut reported));
        let result = tokio::select! {
            // After a panic it is tried again.
            result = reconciled => result.unwrap_or(Ok(Rest::Unanswered)),
            () = worker.restart.notified() => {
                // The reconcile starts again with the new configuration. Flights that have begun go on.
                worker.reconcile.notify_one();
                continue;
            }
        };
        match result {
            Ok(Rest::Nothing) => later = Later::new(),
            Ok(Rest::Unanswered) => later.again(),
            Err(e) => {
                log::debug!(snapshotter = worker.name(), error:% = e; "reconcile failed: trying again");
                later.again();
            }
        }
    }
}

/// When to reconcile again after something did not answer.
struct Later {
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    /// The pause after something did not answer.
    next: Option<Duration>,
}

impl Later {
    fn new() -> Self {
        Self {
            pauses: Box::new(retry::pauses_up_to(LONGEST_PAUSE)),
            next: None,
        }
    }

    fn again(&mut self) {
        self.next = self.pauses.next();
    }
}

/// Waits until a reconcile is requested or due.
async fn wanted(ahead: &Ahead, worker: &Worker, later: &mut Later) {
    let every = ahead.node.config().unpack.reconcile_every;
    let every = every.map(Interval::as_duration);
    let elapsed = async {
        match every {
            Some(every) => tokio::time::sleep(every).await,
            None => std::future::pending().await,
        }
    };
    let again = async {
        if later.next.is_none() {
            worker.reconcile_later.notified().await;
            later.again();
        }
        tokio::time::sleep(later.next.unwrap_or(LONGEST_PAUSE)).await;
    };
    tokio::select! {
        () = worker.reconcile.notified() => {}
        () = worker.restart.notified() => {}
        () = again => {}
        () = elapsed => {}
    }
}
