//! Images that are removed while they are made ready: the work on them ends, and the log says so once.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;

use crate::containerd::events::{self, StoreEvent};
use crate::containerd::{Error, Image};
use crate::node::Node;
use crate::unpack;

use super::Ahead;
use super::unready::PendingGuard;

/// CRI takes away all names of an image, one after another: they are looked at together.
const GATHER: Duration = Duration::from_millis(20);

/// The plugin's part: what waits for its turn is taken out as well. Goes on until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    loop {
        ahead.removals.notified().await;
        tokio::time::sleep(GATHER).await;
        let next = ahead.unready.next();
        match ahead.node.engine.end_removed().await {
            Ok(images) => {
                let names = ahead.unready.take_removed(&records(&images), next);
                names.iter().for_each(|name| say(name));
            }
            Err(e) => {
                log::debug!(error:% = e; "images could not be listed after a removal: work on removed images is not stopped early")
            }
        }
    }
}

/// A command's part. Goes on until it is dropped, or containerd ends the stream: then a removal is noticed when
/// the work on the image begins, and when it ends.
pub async fn heard(node: Arc<Node>) {
    if let Err(e) = hear(&node).await {
        log::debug!(error:% = e; "events of removed images cannot be read: work on removed images is not stopped early");
    }
}

async fn hear(node: &Node) -> Result<(), Error> {
    let mut events = node.containerd.events(&events::REMOVALS).await?;
    while let Some(event) = events.next().await {
        if let Some(StoreEvent::ImageRemoved(name)) = StoreEvent::of(&event?) {
            node.engine.image_removed(&name);
            tokio::time::sleep(GATHER).await;
            node.engine.end_removed().await?;
        }
    }
    Ok(())
}

/// Work ended since there is no image of this name. One that has another name is found by the next look at all
/// images.
pub(super) async fn missing(ahead: &Ahead, entry: &PendingGuard<'_>, error: &unpack::Error) {
    let is_gone = match error {
        unpack::Error::Removed(_) => true,
        _ => match ahead.node.containerd.images().await {
            Ok(images) => !records(&images).contains(entry.record()),
            Err(_) => false,
        },
    };
    if !is_gone {
        ahead.queue.look_again();
    } else if let Some(name) = entry.take_removed() {
        say(&name);
    }
}

fn records(images: &[Image]) -> HashSet<&str> {
    images.iter().map(|i| i.target.digest.as_str()).collect()
}

fn say(image: &str) {
    log::info!(image; "image was removed before it was ready ahead: the work on it has ended");
}
