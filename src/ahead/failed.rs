//! Images that a container waits for and that containerd cannot unpack by itself.
//!
//! containerd unpacks a missing image inside `CreateContainer`, before it calls any hook. Where a layer's
//! blob is gone, that unpack fails at every retry of the kubelet, and no hook is called for the container. But
//! containerd removes the extraction snapshot of the layer, and sends an event. On that event the image is
//! made ready for the next try. If a pod of the snapshotter waits for its first container, or
//! containers of it have used the repository before, such an image is made ready as soon as it arrives.

use tokio::time::Instant;

use crate::containerd::Image;
use crate::logs;
use crate::unpack::{Action, Urgency, Want};

use super::worker::Worker;
use super::{Ahead, is_news};

/// The limit of images that are made ready for one failed layer, newest first. The next failure is of a layer
/// that fewer images share.
const MAX_IMAGES: usize = 8;

/// Whether an image that arrived is made ready in a snapshotter although it is not in the eager set: a container
/// may need it there soon, and containerd cannot unpack it.
pub(super) async fn is_wanted(ahead: &Ahead, worker: &Worker, image: &Image) -> bool {
    let name = worker.name();
    if !worker.demand.may_want(&image.name) {
        return false;
    }
    let stuck = ahead.node.engine.is_stuck(name, image).await;
    stuck.unwrap_or_else(|e| {
        log::debug!(image = image.name.as_str(), snapshotter = name, error:% = e; "image that arrived could not be looked up");
        false
    })
}

/// Handles a failure of containerd to unpack the layer `chain` in a snapshotter.
pub(super) async fn unpack_failed(ahead: &Ahead, worker: &Worker, chain: &str) {
    let Some(_working) = worker.demand.begin(chain) else {
        return;
    };
    // Empty where a pull was cancelled: its image has no record yet.
    match ahead.node.engine.stuck_at(worker.name(), chain).await {
        Ok(images) => {
            let mut tried = 0;
            for image in &images {
                tried += usize::from(make_ready(ahead, worker, image).await);
                if tried == MAX_IMAGES {
                    break;
                }
            }
        }
        Err(e) => {
            log::debug!(snapshotter = worker.name(), chain, error:% = e; "images of a layer that containerd failed to unpack could not be looked up");
        }
    }
}

/// Makes one image ready. Returns whether it was tried: excluded images are not.
async fn make_ready(ahead: &Ahead, worker: &Worker, image: &Image) -> bool {
    let (name, snapshotter, started) = (image.name.as_str(), worker.name(), Instant::now());
    let want = Want::Image(name.to_owned());
    let record = &image.target.digest;
    let entry = worker.unready.enter(want, record, image.created_at);
    let outcome = ahead.make_ready(worker, &entry, Urgency::Asked).await;
    let is_left_to_containerd = outcome.as_ref().is_err_and(|e| e.is_left_to_containerd());
    match outcome {
        Ok(done) if done.action == Action::None => {}
        Ok(done) => {
            log::info!(image = name, snapshotter, state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(started.elapsed()); "containerd failed to unpack the image; it is ready for the next try");
        }
        Err(e)
            if (is_news(&e) || e.is_left_to_containerd()) && worker.demand.is_new_failure(name) =>
        {
            log::warn!(image = name, snapshotter, error:% = e; "containerd failed to unpack the image, and it cannot be made ready: containers of it fail");
        }
        Err(e) => {
            log::debug!(image = name, snapshotter, error:% = e; "image that containerd failed to unpack could not be made ready");
        }
    }
    !is_left_to_containerd
}
