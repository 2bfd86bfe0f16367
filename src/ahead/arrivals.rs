//! Makes images ready as they arrive.

use std::sync::Arc;

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;

use crate::containerd::{self, Image};
use crate::image;
use crate::logs;
use crate::metrics;
use crate::unpack::{Action, Outcome, Urgency, Want};

use super::origin::{self, Extraction};
use super::queue::Arrival;
use super::{Ahead, ManagedSnapshotter, demand, eager, is_news, may_pass, reconcile, volumes};

/// The limit of arrivals that are handled at the same time. Most need only a look at the store, and the
/// engine limits the unpacks.
const AT_ONCE: usize = 16;

/// Runs until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>, arrivals: mpsc::Receiver<Arrival>) {
    let queue = &ahead.queue;
    let next = |mut arrivals: mpsc::Receiver<Arrival>| async move {
        let arrival = arrivals.recv().await?;
        metrics::queued(queue.length());
        Some((arrival, arrivals))
    };
    let arrivals = stream::unfold(arrivals, next);
    let work = |arrival| arrived(ahead.clone(), arrival);
    arrivals.for_each_concurrent(AT_ONCE, work).await;
}

async fn arrived(ahead: Arc<Ahead>, arrival: Arrival) {
    match arrival {
        Arrival::Image(name) => image_arrived(&ahead, &name).await,
        Arrival::Layer(extraction) => layer_arrives(&ahead, &extraction).await,
        Arrival::Failed { snapshotter, chain } => {
            demand::unpack_failed(&ahead, &snapshotter, &chain).await;
        }
        Arrival::Volume {
            snapshotter,
            target,
        } => volumes::make_ready(&ahead, &snapshotter, &target).await,
    }
}

async fn image_arrived(ahead: &Ahead, name: &str) {
    // The record of the same image under its id adds nothing.
    if !image::is_pullable(name) {
        return;
    }
    let image = match ahead.node.containerd.image(name).await {
        Ok(image) => image,
        Err(e) if e.is_not_found() => return,
        Err(e) => return not_looked_at(ahead, name, &e),
    };
    let name = match name_for_labels(ahead, &image).await {
        Ok(name) => name,
        Err(e) => return not_looked_at(ahead, name, &e),
    };
    let is_pinned = eager::is_pinned(&image) || is_sandbox(ahead, &image).await;
    let want = Want::Image(name.clone());
    let (managed, config) = (ahead.managed().await, ahead.node.config());
    let work = managed.iter().map(|snapshotter| async {
        let is_eager = eager::is_eager(&config, snapshotter, is_pinned);
        if !is_eager && !demand::is_wanted(ahead, snapshotter, &image).await {
            return;
        }
        if !is_pinned && ahead.is_at_limit(&snapshotter.name) {
            return;
        }
        let is_lazy = eager::is_without_content(&config, snapshotter, is_pinned);
        let arrived = arrive(ahead, snapshotter, want.clone(), &image, is_lazy);
        let Some(arrived) = arrived.await else {
            return;
        };
        match arrived {
            Ok(_) if eager::is_eager_in_a_pull(&config, snapshotter) => {
                name_layers(ahead, &name, &snapshotter.name).await;
            }
            Err(e) if is_news(&e) => {
                log::warn!(image = name.as_str(), snapshotter = snapshotter.name.as_str(), error:% = e; "image that arrived could not be made ready ahead");
            }
            _ => {}
        }
    });
    join_all(work).await;
}

/// Puts the image's name into the labels of its layers. The work may have begun during the pull, under another name.
async fn name_layers(ahead: &Ahead, image: &str, snapshotter: &str) {
    match ahead.node.engine.name_layers(image, snapshotter).await {
        Ok(0) => {}
        Ok(layers) => {
            log::debug!(image, snapshotter, layers; "labels name the image by the tag that it was pulled by")
        }
        Err(e) => {
            log::debug!(image, snapshotter, error:% = e; "labels keep the image's name by digest: its tag could not be set")
        }
    }
}

/// Logs the error and schedules a reconcile, which finds the image.
fn not_looked_at(ahead: &Ahead, image: &str, error: &containerd::Error) {
    log::debug!(image, error:% = error; "image that arrived could not be looked up");
    ahead.queue.reconcile_later();
}

/// Whether the image is the pause image, which need not be pinned.
async fn is_sandbox(ahead: &Ahead, image: &Image) -> bool {
    let Some(handlers) = ahead.node.handlers_now() else {
        return false;
    };
    let records = std::slice::from_ref(image);
    let sandbox = reconcile::sandbox_target(ahead, &handlers, records).await;
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

/// Makes the image of a layer ready while it is being pulled. A failure is logged at debug only: the pull may
/// fail as well, and when it ends, the image arrives.
async fn layer_arrives(ahead: &Ahead, extraction: &Extraction) {
    let node = &ahead.node;
    let chain = extraction.chain.as_str();
    let Some(handlers) = node.handlers_now() else {
        return;
    };
    let mut managed = ahead.managed().await;
    managed.retain(|snapshotter| eager::is_eager_in_a_pull(&node.config(), snapshotter));
    let default = handlers.default_name();
    if Some(extraction.snapshotter.as_str()) != default || managed.is_empty() {
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
    managed.retain(|snapshotter| is_known || ahead.takes_any_name(&snapshotter.name));
    managed.retain(|snapshotter| !ahead.is_at_limit(&snapshotter.name));
    let work = managed.iter().map(|snapshotter| async {
        let want = Want::Arriving(image.clone());
        // During a pull the content may not be there yet; this holds for each value of `eager`.
        let arrived = arrive(ahead, snapshotter, want, &image, true);
        if let Some(Err(e)) = arrived.await {
            log::debug!(image = image.name.as_str(), snapshotter = snapshotter.name.as_str(), error:% = e; "image that is being pulled is not ready yet");
        }
    });
    join_all(work).await;
}

/// Makes an arriving image ready. Returns `None` if there is too little free space (a reconcile follows when there
/// is enough), or if the image is wanted only without its content (`is_lazy`) and the snapshotter needs the content.
async fn arrive(
    ahead: &Ahead,
    snapshotter: &ManagedSnapshotter,
    want: Want,
    record: &Image,
    is_lazy: bool,
) -> Option<Outcome> {
    if !ahead.node.free_space.is_enough(snapshotter.root.as_deref()) {
        return None;
    }
    let (image, name) = (want.name().to_owned(), snapshotter.name.as_str());
    if is_lazy && ahead.needs_content(&want, name).await {
        return None;
    }
    let started = tokio::time::Instant::now();
    let digest = &record.target.digest;
    let entry = ahead.unready.enter(name, want, digest, record.created_at);
    let outcome = ahead.make_ready(&entry, Urgency::Arrived).await;
    match &outcome {
        Ok(done) if done.action == Action::None => {
            log::debug!(image, snapshotter = name, action:% = done.action; "image that arrives is ready already");
        }
        Ok(done) => {
            log::info!(image, snapshotter = name, state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(started.elapsed()); "image is ready ahead");
        }
        Err(e) if may_pass(e) => ahead.queue.reconcile_later(),
        Err(_) => {}
    }
    Some(outcome)
}
