//! When all images are looked at: when that is asked for, when the configuration says so, and in a while
//! where something did not succeed.

use std::sync::Arc;
use std::time::Duration;

use crate::retry;

use super::tally::Said;
use super::{Ahead, reconcile};

/// Between looks while something does not answer, at most: a look reads all that there is.
const LONGEST_PAUSE: Duration = Duration::from_secs(60);

/// Looks whenever that is asked for. Goes on until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    let mut said = Said::default();
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
            Ok(true) => later = Later::new(),
            Ok(false) => later.again(),
            Err(e) => {
                log::debug!(error:% = e; "images not looked at; trying again");
                later.again();
            }
        }
    }
}

/// When to look again at what did not succeed.
struct Later {
    pauses: Box<dyn Iterator<Item = Duration> + Send>,
    /// Something did not: after this long.
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

/// Until a look is asked for, or it is time for one.
async fn wanted(ahead: &Ahead, later: &mut Later) {
    let every = ahead.node.config().unpack.reconcile_every;
    let elapsed = async {
        match every {
            Some(every) => tokio::time::sleep(every.as_duration()).await,
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
