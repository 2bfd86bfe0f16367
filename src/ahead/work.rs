//! Does the jobs of a worker: makes the image of an event ready in the worker's snapshotter.

use crate::containerd::Image;
use crate::logs;
use crate::unpack::{Action, Outcome, Urgency, Want};

use super::job::{Arrived, Job};
use super::worker::Worker;
use super::{Ahead, eager, failed, is_news, may_pass, volumes};

pub(super) async fn run(ahead: &Ahead, worker: &Worker, job: Job) {
    match job {
        Job::Arrived(arrived) => image_arrived(ahead, worker, &arrived).await,
        Job::Pulled(image) => image_arrives(ahead, worker, &image).await,
        Job::Failed { chain } => failed::unpack_failed(ahead, worker, &chain).await,
        Job::Volume { target } => volumes::make_ready(ahead, worker, &target).await,
    }
}

async fn image_arrived(ahead: &Ahead, worker: &Worker, arrived: &Arrived) {
    let Arrived {
        record,
        name,
        is_pinned,
    } = arrived;
    let config = ahead.node.config();
    let (image, snapshotter) = (name.as_str(), &worker.snapshotter);
    let is_eager = eager::is_eager(&config, snapshotter, *is_pinned);
    if !is_eager && !failed::is_wanted(ahead, worker, record).await {
        return;
    }
    if !is_pinned && worker.is_at_limit() {
        return;
    }
    let want = Want::Image(name.clone());
    let is_lazy = eager::is_without_content(&config, snapshotter, *is_pinned);
    match arrive(ahead, worker, want, record, is_lazy).await {
        Some(Ok(_)) if eager::is_eager_in_a_pull(&config, snapshotter) => {
            name_layers(ahead, image, worker.name()).await;
        }
        Some(Err(e)) if is_news(&e) => {
            log::warn!(image, snapshotter = worker.name(), error:% = e; "image that arrived could not be made ready ahead");
        }
        _ => {}
    }
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

/// Makes an image ready while it is being pulled. A failure is logged at debug only: the pull may fail as well, and
/// when it ends, the image arrives.
async fn image_arrives(ahead: &Ahead, worker: &Worker, image: &Image) {
    let want = Want::Arriving(image.clone());
    // During a pull the content may not be there yet; this holds for each value of `eager`.
    if let Some(Err(e)) = arrive(ahead, worker, want, image, true).await {
        log::debug!(image = image.name.as_str(), snapshotter = worker.name(), error:% = e; "image that is being pulled is not ready yet");
    }
}

/// Makes an arriving image ready. Returns `None` if there is too little free space (a reconcile follows when there
/// is enough), or if the image is wanted only without its content (`is_lazy`) and the snapshotter needs the content.
async fn arrive(
    ahead: &Ahead,
    worker: &Worker,
    want: Want,
    record: &Image,
    is_lazy: bool,
) -> Option<Outcome> {
    let root = worker.snapshotter.root.as_deref();
    if !ahead.node.free_space.is_enough(root) {
        return None;
    }
    let (image, snapshotter) = (want.name().to_owned(), worker.name());
    if is_lazy && worker.needs_content(&ahead.node, &want).await {
        return None;
    }
    let started = tokio::time::Instant::now();
    let digest = &record.target.digest;
    let entry = worker.unready.enter(want, digest, record.created_at);
    let outcome = ahead.make_ready(worker, &entry, Urgency::Arrived).await;
    match &outcome {
        Ok(done) if done.action == Action::None => {
            log::debug!(image, snapshotter, action:% = done.action; "image that arrives is ready already");
        }
        Ok(done) => {
            log::info!(image, snapshotter, state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(started.elapsed()); "image is ready ahead");
        }
        Err(e) if may_pass(e) => worker.reconcile_later.notify_one(),
        Err(_) => {}
    }
    Some(outcome)
}
