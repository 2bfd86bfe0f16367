//! The reconcile: looks at all images of the store and makes those of the eager sets ready that are not,
//! one after another and with pauses between them.

use std::collections::HashMap;
use std::sync::atomic::Ordering;

use futures::stream::{self, StreamExt};
use tokio::time::{Duration, Instant};

use crate::containerd::{self, Image};
use crate::handlers::Handlers;
use crate::image;
use crate::logs;
use crate::unpack::{Action, Listing, Outcome, State, Urgency, Want};

use super::Ahead;
use super::choice::{Choice, choice};
use super::eager::{self, ManagedSnapshotter, StoreImage};
use super::summary::{LastReported, ReconcileSummary, Rest};
use super::unready::PendingGuard;

/// The limit of the pause after an unpacked image. The pause is as long as the unpack took, so that containerd
/// has half of its time for other clients.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// One image to make ready in one snapshotter. While it waits, a new pod of that snapshotter raises its priority.
struct WorkItem<'a> {
    store_image: &'a StoreImage,
    snapshotter: &'a ManagedSnapshotter,
    /// The state of its chain when it was read; `None` if it was not read.
    state: Option<State>,
    /// Whether it is made ready only if the snapshotter needs no content for it.
    is_lazy: bool,
    /// `None` while it is not known whether the image is made ready at all: then a pod does not raise its priority,
    /// and its layers do not count towards the limit of snapshots.
    pending: Option<PendingGuard<'a>>,
}

/// How the work on an image in a snapshotter ended.
struct Worked<'a> {
    image: String,
    snapshotter: &'a ManagedSnapshotter,
    /// The state before the work.
    state: Option<State>,
    ended: Ended,
}

enum Ended {
    /// Not begun: too little free space.
    NoFreeSpace,
    /// Not begun: the snapshotter has reached its limit of snapshots.
    TooMany,
    /// Not begun: the snapshotter needs its content. It is unpacked when a pod needs it.
    NeedsContent,
    Tried(Outcome),
}

/// Runs one reconcile. Returns what is left to be done.
pub(super) async fn run(
    ahead: &Ahead,
    reported: &mut LastReported,
) -> Result<Rest, containerd::Error> {
    let node = &ahead.node;
    let started = Instant::now();
    let handlers = node.known_handlers().await;
    let listed = node.containerd.snapshotters().await?;
    let managed = eager::managed(&node.config(), &handlers, &listed);
    ahead.managed.send_replace(Some(managed.clone()));
    if managed.is_empty() {
        return Ok(Rest::Nothing);
    }
    let images = node.containerd.images().await?;
    let sandbox = sandbox_target(ahead, &handlers, &images).await;
    let used = ahead.used_of(&images);
    let store_images = eager::in_order(images, sandbox.as_deref(), &used);
    let mut summary = ReconcileSummary::default();
    // Pods wait for the pinned images, and the engine looks at each of them itself: so their work does not wait for
    // the scan of the others.
    let pinned = work(ahead, pinned(ahead, &managed, &store_images));
    let (pinned, scan) = futures::join!(
        pinned,
        scan(ahead, &managed, &store_images, reported, &mut summary)
    );
    ahead.left.store(summary.has_left(), Ordering::Relaxed);
    for mut worked in pinned {
        let key = (worked.image.as_str(), worked.snapshotter.name.as_str());
        worked.state = scan.pinned.get(&key).copied();
        count(&mut summary, reported, worked);
    }
    for worked in work(ahead, scan.items).await {
        count(&mut summary, reported, worked);
    }
    ahead.left.store(summary.has_left(), Ordering::Relaxed);
    Ok(summary.report(reported, started))
}

fn count(summary: &mut ReconcileSummary, reported: &LastReported, worked: Worked<'_>) {
    let snapshotter = worked.snapshotter.name.as_str();
    match worked.ended {
        Ended::NoFreeSpace => summary.no_room(snapshotter, worked.state),
        Ended::TooMany => summary.left(snapshotter, worked.state),
        Ended::NeedsContent => summary.needs_content(snapshotter, worked.state),
        Ended::Tried(Ok(done)) if done.action == Action::None => summary.ready(snapshotter),
        Ended::Tried(Ok(_)) => summary.made(snapshotter),
        Ended::Tried(Err(e)) => {
            let item = (worked.image, snapshotter.to_owned());
            summary.failed(reported, item, worked.state, &e);
        }
    }
}

/// Returns the target digest of the pause image, if its name is configured and the image is in the store.
pub(super) async fn sandbox_target(
    ahead: &Ahead,
    handlers: &Handlers,
    images: &[Image],
) -> Option<String> {
    let name = &handlers.sandbox_image()?.value;
    let exactly = images.iter().find(|image| image.name == *name);
    match exactly {
        Some(image) => Some(image.target.digest.clone()),
        None => {
            let found = image::find(ahead.node.containerd.as_ref(), name).await;
            found.ok().map(|image| image.target.digest)
        }
    }
}

fn pinned<'a>(
    ahead: &'a Ahead,
    managed: &'a [ManagedSnapshotter],
    store_images: &'a [StoreImage],
) -> Vec<WorkItem<'a>> {
    let config = ahead.node.config();
    let pinned = store_images
        .iter()
        .filter(|store_image| store_image.is_pinned);
    let everywhere = pinned.flat_map(|store_image| {
        managed
            .iter()
            .map(move |snapshotter| (store_image, snapshotter))
    });
    let wanted = everywhere.filter(|(_, snapshotter)| eager::is_eager(&config, snapshotter, true));
    wanted
        .map(|(store_image, snapshotter)| WorkItem {
            store_image,
            snapshotter,
            state: None,
            is_lazy: false,
            pending: Some(enter(ahead, store_image, snapshotter)),
        })
        .collect()
}

fn enter<'a>(
    ahead: &'a Ahead,
    store_image: &StoreImage,
    snapshotter: &ManagedSnapshotter,
) -> PendingGuard<'a> {
    let want = Want::Image(store_image.image.name.clone());
    let record = &store_image.image.target.digest;
    ahead
        .unready
        .enter(&snapshotter.name, want, record, store_image.created_at)
}

/// The result of the scan of the images.
struct Scan<'a> {
    /// The images that are not ready, in the order in which they are made ready.
    items: Vec<WorkItem<'a>>,
    /// The states of the pinned images, which are made ready at the same time, by name and snapshotter.
    pinned: HashMap<(&'a str, &'a str), State>,
}

async fn scan<'a>(
    ahead: &'a Ahead,
    managed: &'a [ManagedSnapshotter],
    store_images: &'a [StoreImage],
    reported: &LastReported,
    summary: &mut ReconcileSummary,
) -> Scan<'a> {
    let node = &ahead.node;
    let mut lists = node.engine.lists();
    let mut listings: HashMap<&str, (Listing, usize)> = HashMap::new();
    for snapshotter in managed {
        let name = snapshotter.name.as_str();
        match lists.read(name).await {
            Ok(listing) => {
                let held = listing.len();
                ahead.snapshot_counts.listed(name, held);
                listings.insert(name, (listing, held));
            }
            Err(e) => summary.silent(reported, name, &e),
        }
    }
    let mut scan = Scan {
        items: Vec::new(),
        pinned: HashMap::new(),
    };
    let everywhere = store_images
        .iter()
        .flat_map(|k| managed.iter().map(move |s| (k, s)));
    let everywhere: Vec<_> = everywhere.collect();
    // Pinned images come first, so they show the loss before the other images are looked at.
    let mut lost = std::mem::take(&mut *ahead.lost.lock());
    for (store_image, snapshotter) in everywhere {
        let name = snapshotter.name.as_str();
        let Some((listing, held)) = listings.get_mut(name) else {
            continue;
        };
        let is_eager = eager::is_eager(&node.config(), snapshotter, store_image.is_pinned);
        if !is_eager && !lost.contains(name) {
            continue;
        }
        let status = match node
            .engine
            .image_status(&store_image.image, &store_image.names, listing)
            .await
        {
            Ok(status) => status,
            Err(e) => {
                let item = (store_image.image.name.clone(), name.to_owned());
                summary.unseen(reported, item, &e);
                continue;
            }
        };
        let is_lost = status.state == State::Lost;
        if is_lost {
            lost.insert(name.to_owned());
        } else if !is_eager {
            continue;
        }
        if store_image.is_pinned && is_eager {
            let key = (store_image.image.name.as_str(), name);
            scan.pinned.insert(key, status.state);
            continue;
        }
        match choice(&status, *held) {
            Choice::Excluded => {}
            Choice::Ready => summary.ready(name),
            Choice::TooMany => summary.left(name, Some(status.state)),
            Choice::Make { more } => {
                let config = node.config();
                let is_lazy =
                    more > 0 && !is_lost && eager::is_without_content(&config, snapshotter, false);
                let is_certain = !is_lazy || ahead.takes_any_name(name);
                // An image that may not be made ready is counted only when it is made.
                *held += if is_certain { more } else { 0 };
                scan.items.push(WorkItem {
                    store_image,
                    snapshotter,
                    state: Some(status.state),
                    is_lazy,
                    pending: is_certain.then(|| enter(ahead, store_image, snapshotter)),
                });
            }
        }
    }
    scan
}

/// Works on the items, as many at once as the engine allows for background work. With one more, the engine would
/// start it during the pause of another, and containerd would have no pause.
async fn work<'a>(ahead: &'a Ahead, items: Vec<WorkItem<'a>>) -> Vec<Worked<'a>> {
    let parallel = ahead.node.config().unpack.parallel_images.count().get();
    let parallel = parallel.saturating_sub(1).max(1);
    let work = items.into_iter().map(|item| work_on(ahead, item));
    let work: Vec<_> = work.collect();
    let work = stream::iter(work).buffer_unordered(parallel);
    work.collect().await
}

async fn work_on<'a>(ahead: &'a Ahead, item: WorkItem<'a>) -> Worked<'a> {
    let WorkItem {
        store_image,
        snapshotter,
        state,
        is_lazy,
        pending,
    } = item;
    let image = store_image.image.name.clone();
    let name = snapshotter.name.as_str();
    let want = Want::Image(image.clone());
    // A full file system does not delay the images of others: a reconcile follows when it has enough free space.
    let ended = if !ahead.node.free_space.is_enough(snapshotter.root.as_deref()) {
        Ended::NoFreeSpace
    } else if pending.is_none() && ahead.snapshot_counts.is_at_limit(name) != Some(false) {
        Ended::TooMany
    } else if is_lazy && ahead.needs_content(&want, name).await {
        Ended::NeedsContent
    } else {
        let pending = pending.unwrap_or_else(|| enter(ahead, store_image, snapshotter));
        Ended::Tried(make(ahead, pending).await)
    };
    Worked {
        image,
        snapshotter,
        state,
        ended,
    }
}

/// Makes the image ready, and pauses.
async fn make(ahead: &Ahead, pending: PendingGuard<'_>) -> Outcome {
    let started = Instant::now();
    let ended = ahead.make_ready(&pending, Urgency::Background).await;
    let image = pending.want().name().to_owned();
    let snapshotter = pending.snapshotter().to_owned();
    drop(pending);
    if let Ok(done) = &ended
        && done.action != Action::None
    {
        let took = started.elapsed();
        log::info!(image, snapshotter, state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(took); "image is ready ahead");
        tokio::time::sleep(took.min(LONGEST_REST)).await;
    }
    ended
}
