//! Images that are removed while they are made ready: ends the work on them, and logs that once for each.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::containerd::events::{self, StoreEvent};
use crate::containerd::{Error, Image};
use crate::node::Node;
use crate::unpack;

use super::Ahead;
use super::unready::PendingGuard;
use super::worker::Worker;

/// CRI removes all names of an image, one after another: the removals in this time are handled together.
const GATHER: Duration = Duration::from_millis(20);

/// Handles removals for the plugin: ends flights of removed images, and removes images that wait. Runs until it is
/// dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    loop {
        ahead.removals.notified().await;
        tokio::time::sleep(GATHER).await;
        let workers = ahead.known_workers();
        let workers: Vec<_> = workers.iter().map(|w| (w, w.unready.next())).collect();
        match ahead.node.engine.end_removed().await {
            Ok(images) => {
                let kept = records(&images);
                let gone = workers
                    .into_iter()
                    .flat_map(|(worker, next)| worker.unready.take_removed(&kept, next));
                // An image may wait in several snapshotters.
                let gone: BTreeMap<_, _> = gone.collect();
                gone.values().for_each(|name| say(name));
            }
            Err(e) => {
                log::debug!(error:% = e; "images could not be listed after a removal: work on removed images is not stopped early")
            }
        }
    }
}

/// Handles removals for a command. Runs until it is dropped, or until containerd ends the event stream: after that, a
/// removal is noticed only when the work on the image begins, and when it ends.
pub async fn watch_removals(node: Arc<Node>) {
    if let Err(e) = watch(&node).await {
        log::debug!(error:% = e; "events of removed images cannot be read: work on removed images is not stopped early");
    }
}

async fn watch(node: &Node) -> Result<(), Error> {
    let mut events = node.containerd.events(&events::REMOVALS).await?;
    while let Some(event) = events.next().await {
        if let Some(StoreEvent::ImageRemoved(name)) = StoreEvent::of(&event?) {
            node.engine.images_removed(Some(&name));
            tokio::time::sleep(GATHER).await;
            node.engine.end_removed().await?;
        }
    }
    Ok(())
}

/// Handles work that ended because the store has no image of this name. If the image has another name, a reconcile
/// is scheduled, which finds it.
pub(super) async fn missing(
    ahead: &Ahead,
    worker: &Worker,
    entry: &PendingGuard<'_>,
    error: &unpack::Error,
) {
    let is_gone = match error {
        unpack::Error::Removed(_) => true,
        _ => match ahead.node.containerd.images().await {
            Ok(images) => !records(&images).contains(entry.record()),
            Err(_) => false,
        },
    };
    if !is_gone {
        return worker.reconcile_later.notify_one();
    }
    let workers = ahead.known_workers();
    // It may wait in several snapshotters.
    let gone = workers.iter().fold(None, |name, worker| {
        worker.unready.take_record(entry.record()).or(name)
    });
    if let Some(name) = gone {
        say(&name);
    }
}

fn records(images: &[Image]) -> HashSet<&str> {
    images.iter().map(|i| i.target.digest.as_str()).collect()
}

fn say(image: &str) {
    log::info!(image; "image was removed before it was ready ahead: the work on it has ended");
}
