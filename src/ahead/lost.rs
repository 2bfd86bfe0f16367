//! Notices that a snapshotter has lost its state. Each pod of its handler fails then before a hook is called, and no
//! event comes: so the plugin looks at regular intervals.

use std::time::Duration;

use crate::unpack::Look;

use super::Ahead;
use super::worker::Worker;

/// The pause between two looks. The kubelet tries a failed sandbox again after some ten seconds.
const LOOK: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub(super) async fn run(ahead: &Ahead, worker: &Worker) {
    loop {
        tokio::time::sleep(LOOK).await;
        look(ahead, worker).await;
        if worker.loss.may_heal() {
            worker.reconcile.notify_one();
        }
    }
}

async fn look(ahead: &Ahead, worker: &Worker) {
    let snapshotter = worker.name();
    match ahead.node.engine.look(snapshotter).await {
        Ok(Look::Kept) => {}
        Ok(Look::Removed) => worker.reconcile_later.notify_one(),
        Ok(Look::Lost) => {
            log::warn!(snapshotter; "snapshotter has lost its snapshots: the plugin removes their records and makes the images again");
            worker.loss.notice();
            // The pause image comes first in a new reconcile; a running one may take long.
            worker.restart.notify_one();
        }
        Err(e) => {
            log::debug!(snapshotter, error:% = e; "whether the snapshotter has lost its snapshots could not be looked up");
        }
    }
}
