//! What has just arrived, unpacked as it comes.

use std::sync::Arc;

use futures::future::join_all;
use futures::stream::{self, StreamExt};
use tokio::sync::mpsc;

use crate::containerd::{self, Image};
use crate::image;
use crate::logs;
use crate::metrics;
use crate::unpack::{Action, Outcome, Urgency, Want};

use super::queue::Arrival;
use super::{Ahead, Place, eager, is_news};

/// Arrivals that are worked on at the same time. Most are nothing but a look, and the engine bounds
/// what is unpacked at once.
const AT_ONCE: usize = 16;

/// Goes on until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>, arrivals: mpsc::Receiver<Arrival>) {
    let next = |mut arrivals: mpsc::Receiver<Arrival>| async {
        let arrival = arrivals.recv().await?;
        metrics::queued(arrivals.len());
        Some((arrival, arrivals))
    };
    let arrivals = stream::unfold(arrivals, next);
    let work = |arrival| arrived(ahead.clone(), arrival);
    arrivals.for_each_concurrent(AT_ONCE, work).await;
}

async fn arrived(ahead: Arc<Ahead>, arrival: Arrival) {
    match arrival {
        Arrival::Image(name) => image_arrived(&ahead, &name).await,
        Arrival::Layer { snapshotter, chain } => {
            layer_arrives(&ahead, &snapshotter, &chain).await;
        }
        // One that is pulled again under a running container is ready, but not anchored any more.
        Arrival::Removed => ahead.node.engine.image_removed(),
    }
}

async fn image_arrived(ahead: &Ahead, name: &str) {
    // The image's other records, by its id, say nothing new.
    if !image::is_pullable(name) {
        return;
    }
    let Ok(image) = ahead.node.containerd.image(name).await else {
        return;
    };
    let Ok(name) = name_for_labels(ahead, &image).await else {
        return;
    };
    let is_pinned = eager::is_pinned(&image);
    let want = Want::Image(name.clone());
    let (places, config) = (ahead.places().await, ahead.node.config());
    let eager = places
        .iter()
        .filter(|place| eager::is_eager(&config, place, is_pinned));
    let work = eager.map(|place| async {
        if let Some(Err(e)) = arrive(ahead, place, want.clone()).await
            && is_news(&e)
        {
            log::warn!(image = name.as_str(), snapshotter = place.snapshotter.as_str(), error:% = e; "image that arrived is not ready");
        }
    });
    join_all(work).await;
}

/// A pull by a tag makes a record of the digest as well. The two arrive together, and whichever is
/// looked at first, the labels are to carry what was asked for.
async fn name_for_labels(ahead: &Ahead, image: &Image) -> Result<String, containerd::Error> {
    if !image.name.contains('@') {
        return Ok(image.name.clone());
    }
    let names = image::names_of(image, &ahead.node.containerd.images().await?);
    Ok(image::name_for_labels(None, &names).unwrap_or_else(|| image.name.clone()))
}

/// A failure is no news: the pull may fail as well, and when it ends, the image arrives.
async fn layer_arrives(ahead: &Ahead, extracted_in: &str, chain: &str) {
    let node = &ahead.node;
    let Some(handlers) = node.handlers_now() else {
        return;
    };
    let mut places = ahead.places().await;
    places.retain(|place| eager::is_eager_in_a_pull(&node.config(), place));
    if extracted_in != handlers.default_snapshotter().value || places.is_empty() {
        return;
    }
    let image = match ahead.pulls.image_of(node.containerd.as_ref(), chain).await {
        Ok(Some(image)) => image,
        Ok(None) => return,
        Err(e) => return log::debug!(chain, error:% = e; "image that is being pulled not found"),
    };
    let work = places.iter().map(|place| async {
        let want = Want::Arriving(image.clone());
        if let Some(Err(e)) = arrive(ahead, place, want).await {
            log::debug!(image = image.name.as_str(), snapshotter = place.snapshotter.as_str(), error:% = e; "image that is being pulled is not ready yet");
        }
    });
    join_all(work).await;
}

/// `None` where there is no room for it now: a reconcile waits until there is.
async fn arrive(ahead: &Ahead, place: &Place, want: Want) -> Option<Outcome> {
    if !ahead.room.is_enough(place) {
        ahead.queue.reconcile();
        return None;
    }
    let image = want.name().to_owned();
    let started = tokio::time::Instant::now();
    let outcome = ahead
        .make_ready(&place.snapshotter, want, Urgency::Arrived)
        .await;
    if let Ok(done) = &outcome
        && done.action != Action::None
    {
        log::info!(image, snapshotter = place.snapshotter.as_str(), state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(started.elapsed()); "image is ready ahead");
    }
    Some(outcome)
}
