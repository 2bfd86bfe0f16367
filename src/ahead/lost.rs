//! Notices that a snapshotter has lost its state. Each pod of its handler fails then before a hook is called, and no
//! event comes: so the plugin looks at regular intervals. Images below a container stay lost until it is removed.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::unpack::{Error, Look, State};

use super::Ahead;
use super::worker::Worker;

/// The pause between two looks. The kubelet tries a failed sandbox again after some ten seconds.
const LOOK: Duration = Duration::from_secs(5);

/// What is known of a loss of one snapshotter.
#[derive(Debug, Default)]
pub(super) struct Loss {
    /// A loss was noticed since the last reconcile.
    noticed: AtomicBool,
    /// Images stay lost, since containers use them.
    remains: AtomicBool,
    /// A container or a snapshot was removed since the last look.
    user_removed: AtomicBool,
}

impl Loss {
    /// Returns whether a loss was noticed since the last call.
    pub(super) fn take(&self) -> bool {
        self.remains.store(false, Ordering::Relaxed);
        self.noticed.swap(false, Ordering::Relaxed)
    }

    /// Records that an image could not be made ready.
    pub(super) fn failed(&self, error: &Error) {
        if is_lost(error) {
            self.remains.store(true, Ordering::Relaxed);
        }
    }

    /// Records that a container or a snapshot was removed: it may have stood on lost images.
    pub(super) fn user_removed(&self) {
        self.user_removed.store(true, Ordering::Relaxed);
    }

    fn may_heal(&self) -> bool {
        let was_removed = self.user_removed.swap(false, Ordering::Relaxed);
        was_removed && self.remains.load(Ordering::Relaxed)
    }
}

/// Whether an image is lost, and containers use it.
pub(super) fn is_lost(error: &Error) -> bool {
    error.state() == Some(State::Lost)
}

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
            worker.loss.noticed.store(true, Ordering::Relaxed);
            worker.reconcile.notify_one();
        }
        Err(e) => {
            log::debug!(snapshotter, error:% = e; "whether the snapshotter has lost its snapshots could not be looked up");
        }
    }
}
