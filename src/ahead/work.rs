//! Does the jobs of a worker: makes the image of an event ready in the worker's snapshotter.

use std::time::Duration;

use crate::containerd::Image;
use crate::free_space::Reservation;
use crate::image;
use crate::logs;
use crate::panics;
use crate::unpack::{Action, Outcome, Urgency, Want};

use super::choice::EXPANSION;
use super::eager::{self, Why};
use super::job::{Arrived, Job};
use super::worker::Worker;
use super::{Ahead, arrivals, demanded, failed, is_news, may_pass, volumes};

/// A use is recorded so long after the container's creation has begun: containerd's database has one writer at a time, and
/// the creation writes the container's record next.
const AFTER_CREATION: Duration = Duration::from_secs(1);

pub(super) async fn run(ahead: &Ahead, worker: &Worker, job: Job) {
    match job {
        Job::Arrived(arrived) => image_arrived(ahead, worker, &arrived).await,
        Job::Again(image) => {
            // A panic must not keep it from the next try.
            panics::contain(try_again(ahead, worker, &image)).await;
            worker.retries.tried(&image);
        }
        Job::Pulled(image) => image_arrives(ahead, worker, &image).await,
        Job::Raised(want) => raise(ahead, worker, &want).await,
        Job::Bound(image) => pod_bound(ahead, worker, &image).await,
        Job::Failed { chain } => failed::unpack_failed(ahead, worker, &chain).await,
        Job::Used(reference) => record_use(ahead, worker, &reference).await,
        Job::Volume { target } => volumes::make_ready(ahead, worker, &target).await,
    }
}

async fn image_arrived(ahead: &Ahead, worker: &Worker, arrived: &Arrived) {
    let (image, snapshotter) = (arrived.name.as_str(), worker.name());
    match make_ready(ahead, worker, arrived, Urgency::Arrived).await {
        Some(Ok(_)) if eager::is_eager_in_a_pull(&ahead.node.config(), &worker.snapshotter) => {
            ahead.name_layers(image, snapshotter).await;
        }
        Some(Err(e)) if is_news(&e) => {
            log::warn!(image, snapshotter, error:% = e; "image that arrived could not be made ready ahead: the plugin tries again");
        }
        _ => {}
    }
}

/// Tries an image again. The first failure was logged.
async fn try_again(ahead: &Ahead, worker: &Worker, image: &str) {
    let snapshotter = worker.name();
    match arrivals::look_at(ahead, image).await {
        Ok(Some(arrived)) => {
            let outcome = make_ready(ahead, worker, &arrived, Urgency::Background).await;
            if let Some(Err(e)) = outcome {
                log::debug!(image, snapshotter, error:% = e; "image could not be made ready ahead: the plugin tries again");
            }
        }
        Ok(None) => {}
        Err(e) => {
            log::debug!(image, snapshotter, error:% = e; "image could not be looked up: a reconcile finds it");
            worker.reconcile_later.notify_one();
        }
    }
}

/// Makes an image ready that a bound pod waits for. An image that is not in the store yet arrives later.
async fn pod_bound(ahead: &Ahead, worker: &Worker, image: &str) {
    let snapshotter = worker.name();
    let found = match image::find(ahead.node.containerd.as_ref(), image).await {
        Ok(record) => arrivals::look_at(ahead, &record.name).await,
        Err(image::Error::Containerd { source, .. }) => Err(source),
        Err(_) => Ok(None),
    };
    match found {
        Ok(Some(arrived)) => {
            let outcome = make_ready(ahead, worker, &arrived, Urgency::Bound).await;
            if let Some(Err(e)) = outcome
                && is_news(&e)
            {
                log::warn!(image, snapshotter, error:% = e; "image of a bound pod could not be made ready ahead: the plugin tries again");
            }
        }
        Ok(None) => {
            log::debug!(image, snapshotter; "image of a bound pod is not in the store yet");
        }
        Err(e) => {
            log::debug!(image, snapshotter, error:% = e; "image of a bound pod could not be looked up: a reconcile finds it");
            worker.reconcile_later.notify_one();
        }
    }
}

/// Makes an image ready if it is wanted ahead. Returns `None` if it is not tried.
async fn make_ready(
    ahead: &Ahead,
    worker: &Worker,
    arrived: &Arrived,
    urgency: Urgency,
) -> Option<Outcome> {
    let Arrived {
        record,
        name,
        is_pinned,
    } = arrived;
    let (node, config) = (&ahead.node, ahead.node.config());
    let demanded = || demanded::why(ahead, worker, record, name);
    let is_bound = ahead.is_bound(worker, [&record.name, name]);
    let is_lost = worker.loss.includes(record);
    let mut why = match eager::why(&config, &worker.snapshotter, *is_pinned) {
        Some(Why::Pinned) => Why::Pinned,
        _ if is_bound => Why::PodBound,
        None | Some(Why::WithoutContent) if is_lost => Why::Lost,
        Some(why) => why,
        None => demanded().await?,
    };
    let urgency = match is_bound {
        true => urgency.max(Urgency::Bound),
        false => urgency,
    };
    let want = Want::Image(name.clone());
    if why == Why::Pinned {
        return Some(arrive(ahead, worker, want, record, urgency, why).await);
    }
    if worker.is_at_limit() {
        return None;
    }
    if why == Why::WithoutContent {
        if !worker.needs_content(node, &want).await {
            return Some(arrive(ahead, worker, want, record, urgency, why).await);
        }
        why = demanded().await?;
    }
    let Some(_space) = space_for(ahead, worker, &want, record, EXPANSION).await else {
        worker.reconcile_later.notify_one();
        return None;
    };
    Some(arrive(ahead, worker, want, record, urgency, why).await)
}

/// Reserves the space for all layers of an image, so many times the size of its blobs: some may be there. A reconcile,
/// which has a list of them, decides on images of the eager set that do not fit.
async fn space_for<'a>(
    ahead: &'a Ahead,
    worker: &'a Worker,
    want: &Want,
    record: &Image,
    times: u64,
) -> Option<Option<Reservation<'a>>> {
    let node = &ahead.node;
    let bytes = match node.engine.supports_guest_pull(worker.name()) {
        true => 0,
        // The unpack that would follow fails for the same reason.
        false => node.engine.bytes(record).await.ok()?,
    };
    let bytes = bytes.saturating_mul(times);
    worker.reserve_space(node, want, bytes).await
}

/// Joins the work on an image that is on its way, with a higher priority, or begins it.
async fn raise(ahead: &Ahead, worker: &Worker, want: &Want) {
    let engine = &ahead.node.engine;
    let mut ticket = worker.begin(engine, want, Urgency::Asked).await;
    match ticket.outcome().await {
        Ok(_) => worker.unready.remove(want.name()),
        Err(e) => engine.replace_if_in_use(&e, worker.name()),
    }
}

/// Makes an image ready while it is being pulled. A failure is logged at debug only: the pull may fail as well, and
/// when it ends, the image arrives.
async fn image_arrives(ahead: &Ahead, worker: &Worker, image: &Image) {
    let want = Want::Arriving(image.clone());
    if worker.snapshotter.is_proxy {
        // During a pull the content may not be there yet; this holds for each value of `eager`.
        if !worker.needs_content(&ahead.node, &want).await {
            let why = Why::WithoutContent;
            arrives(ahead, worker, want, image, why).await;
        }
        return;
    }
    let why = match eager::why(&ahead.node.config(), &worker.snapshotter, false) {
        Some(why) => Some(why),
        None => demanded::why_in_pull(ahead, worker, image, &image.name).await,
    };
    let Some(why) = why else {
        return;
    };
    // The pull itself is about to take space for the blobs, and for containerd's own unpack.
    if let Some(_space) = space_for(ahead, worker, &want, image, 2 * EXPANSION + 1).await {
        arrives(ahead, worker, want, image, why).await;
    }
}

async fn arrives(ahead: &Ahead, worker: &Worker, want: Want, image: &Image, why: Why) {
    if let Err(e) = arrive(ahead, worker, want, image, Urgency::Arrived, why).await {
        log::debug!(image = image.name.as_str(), snapshotter = worker.name(), error:% = e; "image that is being pulled is not ready yet");
    }
}

/// Records that a container uses the image of this reference.
async fn record_use(ahead: &Ahead, worker: &Worker, reference: &str) {
    let snapshotter = worker.name();
    tokio::time::sleep(AFTER_CREATION).await;
    let recorded = panics::contain(ahead.node.engine.record_use(reference, snapshotter)).await;
    if !matches!(recorded, Some(Ok(()))) {
        worker.demand.forget_use(reference);
    }
    if let Some(Err(e)) = recorded {
        log::debug!(image = reference, snapshotter, error:% = e; "use of the image could not be recorded: the next container of it tries again");
    }
}

/// Makes an arriving image ready.
async fn arrive(
    ahead: &Ahead,
    worker: &Worker,
    want: Want,
    record: &Image,
    urgency: Urgency,
    why: Why,
) -> Outcome {
    let (image, snapshotter) = (want.name().to_owned(), worker.name());
    let started = tokio::time::Instant::now();
    let digest = &record.target.digest;
    let entry = worker.unready.enter(want, digest, record.created_at);
    let outcome = ahead.make_ready(worker, &entry, urgency).await;
    match &outcome {
        Ok(done) if done.action == Action::None => {
            log::debug!(image, snapshotter, action:% = done.action; "image that arrives is ready already");
        }
        Ok(done) => {
            log::info!(image, snapshotter, state:% = done.found, action:% = done.action, why:%, took_ms = logs::milliseconds(started.elapsed()); "image is ready ahead");
        }
        Err(e) if may_pass(e) => worker.reconcile_later.notify_one(),
        Err(_) => {}
    }
    outcome
}
