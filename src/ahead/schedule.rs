//! When all images are looked at: when that is asked for, when the configuration says so, and in a while
//! where something did not succeed.

use std::sync::Arc;
use std::time::Duration;

use crate::config::Interval;
use crate::retry;

use super::summary::{LastReported, Rest};
use super::{Ahead, reconcile};

/// Between looks while something does not answer, at most: a look reads all that there is.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Before the next look while images cannot be made ready as they are: what they lack may have been brought
/// without an event, and who watches the metrics sees that they still fail.
const FAILED: Duration = Duration::from_secs(10 * 60);

/// Looks whenever that is asked for. Goes on until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    let mut said = LastReported::default();
    let mut later = Later::new();
    loop {
        wanted(&ahead, &mut later).await;
        let looked = tokio::select! {
            looked = reconcile::look(&ahead, &mut said) => looked,
            () = ahead.node.reloaded() => {
                // With the other configuration, from the beginning. What is in the air is not lost.
                ahead.queue.reconcile();
                continue;
            }
        };
        match looked {
            Ok(Rest::Nothing) => later = Later::new(),
            Ok(Rest::Failed) => {
                later = Later {
                    at_last: Some(FAILED),
                    ..Later::new()
                };
            }
            Ok(Rest::Unanswered) => later.again(),
            Err(e) => {
                log::debug!(error:% = e; "reconcile failed: trying again");
                later.again();
            }
        }
    }
}

/// When to look again at what did not succeed.
struct Later {
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    /// Something did not answer: after this long.
    next: Option<Duration>,
    /// Images cannot be made ready: after this long, unless it is asked for before.
    at_last: Option<Duration>,
}

impl Later {
    fn new() -> Self {
        Self {
            pauses: Box::new(retry::pauses_up_to(LONGEST_PAUSE)),
            next: None,
            at_last: None,
        }
    }

    fn again(&mut self) {
        self.next = self.pauses.next();
    }
}

/// Until a look is asked for, or it is time for one.
async fn wanted(ahead: &Ahead, later: &mut Later) {
    let every = ahead.node.config().unpack.reconcile_every;
    let every = every.map(Interval::as_duration).into_iter();
    let every = every.chain(later.at_last).min();
    let elapsed = async {
        match every {
            Some(every) => tokio::time::sleep(every).await,
            None => std::future::pending().await,
        }
    };
    let again = async {
        if later.next.is_none() {
            ahead.queue.asked_to_look_again().await;
            later.again();
        }
        tokio::time::sleep(later.next.unwrap_or(LONGEST_PAUSE)).await;
    };
    tokio::select! {
        () = ahead.queue.asked_to_reconcile() => {}
        () = ahead.node.reloaded() => {}
        () = ahead.node.room.again() => {}
        () = again => {}
        () = elapsed => {}
    }
}
