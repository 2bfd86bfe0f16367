//! Notices that a snapshotter has lost its state. Each pod of its handler fails then before a hook is called, and no
//! event comes: so the plugin looks at regular intervals.

use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;

use crate::unpack::Look;

use super::Ahead;

/// The pause between two looks. The kubelet tries a failed sandbox again after some ten seconds.
const LOOK: Duration = Duration::from_secs(5);

/// Runs until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    loop {
        tokio::time::sleep(LOOK).await;
        let managed = ahead.managed().await;
        join_all(managed.iter().map(|managed| look(&ahead, &managed.name))).await;
    }
}

async fn look(ahead: &Ahead, snapshotter: &str) {
    match ahead.node.engine.look(snapshotter).await {
        Ok(Look::Kept) => {}
        Ok(Look::Removed) => ahead.queue.reconcile_later(),
        Ok(Look::Lost) => {
            log::warn!(snapshotter; "snapshotter has lost its snapshots: the plugin removes their records and makes the images again");
            ahead.lost.lock().insert(snapshotter.to_owned());
            ahead.queue.reconcile();
        }
        Err(e) => {
            log::debug!(snapshotter, error:% = e; "whether the snapshotter has lost its snapshots could not be looked up");
        }
    }
}
