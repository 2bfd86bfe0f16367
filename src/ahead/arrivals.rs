//! Looks at events, and gives the jobs that they cause to the workers of the snapshotters. A look is quick, and asks
//! no snapshotter that a pod waits for.

use std::sync::Arc;

use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;

use crate::containerd::{self, Image};
use crate::image;
use crate::panics;

use super::job::{Arrived, Job};
use super::origin::{self, Extraction};
use super::queue::Arrival;
use super::{Ahead, eager, reconcile};

/// The limit of events that are looked at at the same time.
const AT_ONCE: usize = 16;

/// Runs until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>, arrivals: mpsc::Receiver<Arrival>) {
    let ahead = &ahead;
    let next = |mut arrivals: mpsc::Receiver<Arrival>| async move {
        let arrival = arrivals.recv().await?;
        ahead.count_queued();
        Some((arrival, arrivals))
    };
    let arrivals = stream::unfold(arrivals, next);
    let looks = arrivals.for_each_concurrent(AT_ONCE, |arrival| async move {
        if panics::contain(look(ahead, arrival)).await.is_none() {
            // It finds the image.
            ahead.queue.reconcile();
        }
    });
    looks.await;
}

async fn look(ahead: &Ahead, arrival: Arrival) {
    match arrival {
        Arrival::Image(name) => image_arrived(ahead, &name).await,
        Arrival::Layer(extraction) => layer_arrives(ahead, &extraction).await,
    }
}

async fn image_arrived(ahead: &Ahead, name: &str) {
    // The record of the same image under its id adds nothing.
    if !image::is_pullable(name) {
        return;
    }
    match look_at(ahead, name).await {
        Ok(Some(arrived)) => {
            let arrived = Arc::new(arrived);
            for worker in ahead.workers().await {
                worker.push(Job::Arrived(arrived.clone()));
            }
            ahead.count_queued();
        }
        Ok(None) => {}
        Err(e) => not_looked_at(ahead, name, &e).await,
    }
}

/// Reads the record of an image; `None` if it was removed.
pub(super) async fn look_at(
    ahead: &Ahead,
    name: &str,
) -> Result<Option<Arrived>, containerd::Error> {
    let record = match ahead.node.containerd.image(name).await {
        Ok(record) => record,
        Err(e) if e.is_not_found() => return Ok(None),
        Err(e) => return Err(e),
    };
    Ok(Some(Arrived {
        name: name_for_labels(ahead, &record).await?,
        is_pinned: eager::is_pinned(&record) || is_sandbox(ahead, &record).await,
        record,
    }))
}

/// Logs the error and schedules a reconcile, which finds the image.
async fn not_looked_at(ahead: &Ahead, image: &str, error: &containerd::Error) {
    log::debug!(image, error:% = error; "image that arrived could not be looked up");
    for worker in ahead.workers().await {
        worker.reconcile_later.notify_one();
    }
}

/// Whether the image is the pause image, which need not be pinned.
async fn is_sandbox(ahead: &Ahead, image: &Image) -> bool {
    let Some(handlers) = ahead.node.handlers_now() else {
        return false;
    };
    let records = std::slice::from_ref(image);
    let sandbox =
        reconcile::sandbox_target(ahead.node.containerd.as_ref(), &handlers, records).await;
    sandbox.as_deref() == Some(image.target.digest.as_str())
}

/// Returns the image's name for the labels. A pull by a tag makes a record by the digest as well, and both
/// arrive together: the labels carry the tag, whichever record is handled first.
async fn name_for_labels(ahead: &Ahead, image: &Image) -> Result<String, containerd::Error> {
    if !image.name.contains('@') {
        return Ok(image.name.clone());
    }
    let names = image::names_of(image, &ahead.node.containerd.images().await?);
    Ok(image::name_for_labels(None, &names).unwrap_or_else(|| image.name.clone()))
}

/// Has the image of a layer made ready while it is being pulled.
async fn layer_arrives(ahead: &Ahead, extraction: &Extraction) {
    let node = &ahead.node;
    let chain = extraction.chain.as_str();
    let Some(handlers) = node.handlers_now() else {
        return;
    };
    let mut workers = ahead.workers().await;
    workers.retain(|worker| eager::is_eager_in_a_pull(&node.config(), &worker.snapshotter));
    let default = handlers.default_name();
    if Some(extraction.snapshotter.as_str()) != default || workers.is_empty() {
        return;
    }
    let found = ahead
        .pulls
        .image_of(node.containerd.as_ref(), chain, extraction.removals);
    let mut image = match found.await {
        Ok(Some(image)) => image,
        Ok(None) => return,
        Err(e) => {
            return log::debug!(chain, error:% = e; "image of a layer that is being pulled could not be looked up");
        }
    };
    let is_known = match origin::complete(node.containerd.as_ref(), &mut image, extraction).await {
        Ok(is_known) => is_known,
        Err(e) => {
            return log::debug!(chain, error:% = e; "name of an image that is being pulled could not be found");
        }
    };
    log::debug!(image = image.name.as_str(), chain; "found the image of a layer that is being pulled");
    workers.retain(|worker| is_known || worker.takes_any_name(node));
    workers.retain(|worker| !worker.is_at_limit());
    let image = Arc::new(image);
    for worker in workers {
        worker.push(Job::Pulled(image.clone()));
    }
    ahead.count_queued();
}
