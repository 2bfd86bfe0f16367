//! The reconcile of a worker: looks at all images of the store and makes those of the snapshotter's eager set ready
//! that are not, one after another and with pauses between them: pinned images, repairs, images without content, unpacks.

use std::collections::{HashMap, HashSet};
use std::sync::atomic::Ordering;
use std::time::SystemTime;

use futures::stream::{self, StreamExt};
use tokio::time::{Duration, Instant};

use crate::containerd::{self, Containerd, Image};
use crate::handlers::Handlers;
use crate::image;
use crate::logs;
use crate::unpack::{Action, Outcome, State, Urgency, Want};

use super::choice::{Choice, Kind, choice};
use super::eager::{self, StoreImage, Why};
use super::summary::{LastReported, ReconcileSummary, Rest};
use super::unready::PendingGuard;
use super::worker::Worker;
use super::{Ahead, is_settled, is_tried_again, learned};

/// The limit of the pause after an unpacked image. The pause is as long as the unpack took, so that containerd
/// has half of its time for other clients.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// The number of images that are looked at before other tasks run: some tenths of a millisecond.
const LOOKS_AT_ONCE: usize = 16;

/// One image to make ready. While it waits, a new pod of the snapshotter raises its priority.
struct WorkItem<'a> {
    image: String,
    /// The target digest of the image's record.
    record: String,
    created_at: Option<SystemTime>,
    /// The state of its chain when it was read; `None` if it was not read.
    state: Option<State>,
    kind: Kind,
    /// The estimated space that it takes, in bytes.
    bytes: u64,
    /// Why it is made ready.
    why: Why,
    /// Whether it is made ready only if the snapshotter needs no content for it.
    is_lazy: bool,
    /// `None` while it is not known whether the image is made ready at all: then a pod does not raise its priority,
    /// and its layers do not count towards the limit of snapshots.
    pending: Option<PendingGuard<'a>>,
}

/// How the work on an image ended.
struct Worked {
    image: String,
    /// The state before the work.
    state: Option<State>,
    ended: Ended,
}

impl Worked {
    /// Whether no later try is needed before a pod may come.
    fn is_settled(&self) -> bool {
        match &self.ended {
            Ended::Tried(Ok(_)) => true,
            Ended::Tried(Err(e)) => is_settled(e),
            Ended::NoFreeSpace | Ended::TooMany | Ended::NeedsContent => false,
        }
    }
}

enum Ended {
    /// Not begun: too little free space for its layers.
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
    worker: &Worker,
    reported: &mut LastReported,
) -> Result<Rest, containerd::Error> {
    let node = &ahead.node;
    let started = Instant::now();
    let handlers = node.known_handlers().await;
    let images = node.containerd.images().await?;
    let sandbox = sandbox_target(node.containerd.as_ref(), &handlers, &images).await;
    let used = ahead.used_of(&images);
    let store_images = eager::in_order(images, sandbox.as_deref(), &used);
    let mut summary = ReconcileSummary::new(worker.name());
    let has_lost = worker.loss.reconcile_begins();
    // Pods wait for the pinned images, and the engine looks at each of them itself: so their work does not wait for
    // the scan of the others.
    let pinned = work(ahead, worker, pinned(ahead, worker, &store_images));
    worker.loss.keep(store_images.iter().map(|it| &it.image));
    let (pinned, scan) = futures::join!(
        pinned,
        scan(
            ahead,
            worker,
            &store_images,
            has_lost,
            reported,
            &mut summary
        )
    );
    // The work may take long.
    drop(store_images);
    let has_pinned = scan.has_listed && pinned.iter().all(Worked::is_settled);
    worker.has_pinned.send_replace(has_pinned);
    worker.left.store(summary.has_left(), Ordering::Relaxed);
    for mut worked in pinned {
        worked.state = scan.pinned.get(&worked.image).copied();
        count(&mut summary, reported, worked);
    }
    for image in scan.unnamed {
        ahead.name_layers(&image, worker.name()).await;
    }
    for worked in work(ahead, worker, scan.items).await {
        count(&mut summary, reported, worked);
    }
    worker.left.store(summary.has_left(), Ordering::Relaxed);
    if scan.has_listed {
        worker.loss.reconcile_ended();
    }
    Ok(summary.report(reported, started))
}

fn count(summary: &mut ReconcileSummary<'_>, reported: &LastReported, worked: Worked) {
    match worked.ended {
        Ended::NoFreeSpace => summary.no_room(worked.image, worked.state),
        Ended::TooMany => summary.left(worked.state),
        Ended::NeedsContent => summary.needs_content(worked.state),
        Ended::Tried(Ok(done)) if done.action == Action::None => summary.ready(),
        Ended::Tried(Ok(_)) => summary.made(),
        Ended::Tried(Err(e)) => summary.failed(reported, worked.image, worked.state, &e),
    }
}

/// Returns the target digest of the pause image, if its name is configured and the image is in the store.
pub(super) async fn sandbox_target(
    containerd: &dyn Containerd,
    handlers: &Handlers,
    images: &[Image],
) -> Option<String> {
    let name = &handlers.sandbox_image()?.value;
    let exactly = images.iter().find(|image| image.name == *name);
    match exactly {
        Some(image) => Some(image.target.digest.clone()),
        None => {
            let found = image::find(containerd, name).await;
            found.ok().map(|image| image.target.digest)
        }
    }
}

fn pinned<'a>(ahead: &Ahead, worker: &'a Worker, store_images: &[StoreImage]) -> Vec<WorkItem<'a>> {
    let Some(why) = eager::why(&ahead.node.config(), &worker.snapshotter, true) else {
        return Vec::new();
    };
    let pinned = store_images.iter().filter(|image| image.is_pinned);
    let items = pinned.map(|image| {
        let mut item = WorkItem::new(image, why);
        item.pending = Some(item.enter(worker));
        item
    });
    items.collect()
}

impl<'a> WorkItem<'a> {
    /// Work that takes no space.
    fn new(store_image: &StoreImage, why: Why) -> Self {
        Self {
            image: store_image.image.name.clone(),
            record: store_image.image.target.digest.clone(),
            created_at: store_image.created_at,
            state: None,
            kind: Kind::Repair,
            bytes: 0,
            why,
            is_lazy: false,
            pending: None,
        }
    }

    fn want(&self) -> Want {
        Want::Image(self.image.clone())
    }

    /// Enters the image into the images that are known not to be ready.
    fn enter(&self, worker: &'a Worker) -> PendingGuard<'a> {
        worker
            .unready
            .enter(self.want(), &self.record, self.created_at)
    }
}

/// The result of the scan of the images.
#[derive(Default)]
struct Scan<'a> {
    /// Whether the snapshotter has listed its snapshots.
    has_listed: bool,
    /// The images that are not ready, in the order in which they are made ready.
    items: Vec<WorkItem<'a>>,
    /// The images that were made ready in their pull, and whose labels do not have their name yet.
    unnamed: Vec<String>,
    /// The states of the pinned images, which are made ready at the same time, by name.
    pinned: HashMap<String, State>,
}

async fn scan<'a>(
    ahead: &Ahead,
    worker: &'a Worker,
    store_images: &[StoreImage],
    mut has_lost: bool,
    reported: &LastReported,
    summary: &mut ReconcileSummary<'_>,
) -> Scan<'a> {
    let node = &ahead.node;
    let mut scan = Scan::default();
    let listing = match node.engine.list(worker.name()).await {
        Ok(listing) => listing,
        Err(e) => {
            summary.silent(reported, &e);
            return scan;
        }
    };
    scan.has_listed = true;
    // Pinned images come first, so they show the loss before the other images are looked at.
    let mut held = listing.len();
    let has_marks = listing.has_loss();
    worker.count.listed(held);
    let learned = match eager::takes_demand(&node.config(), &worker.snapshotter) {
        true => learned::wanted(&node.engine, store_images, &listing).await,
        false => HashSet::new(),
    };
    for (n, store_image) in store_images.iter().enumerate() {
        // Most looks wait for nothing, and a hook waits until this task yields.
        if n % LOOKS_AT_ONCE == 0 {
            tokio::task::yield_now().await;
        }
        let config = node.config();
        let (image, snapshotter) = (&store_image.image, &worker.snapshotter);
        let why = match eager::why(&config, snapshotter, store_image.is_pinned) {
            Some(Why::Pinned) => Some(Why::Pinned),
            _ if ahead.is_bound(worker, &store_image.names) => Some(Why::PodBound),
            None | Some(Why::WithoutContent) if learned.contains(&image.target.digest) => {
                Some(Why::Used)
            }
            why => why,
        };
        let is_marked = has_marks && node.engine.is_marked_lost(image, &listing).await;
        if why.is_none() && !has_lost && !is_marked && !worker.loss.includes(image) {
            continue;
        }
        let status = node
            .engine
            .image_status(image, &store_image.names, &listing)
            .await;
        let status = match status {
            Ok(status) => status,
            Err(e) => {
                if has_lost && node.engine.had(image, &listing).await {
                    worker.loss.add(image);
                }
                if is_tried_again(&e) {
                    worker.retries.failed(&image.name);
                }
                summary.unseen(reported, image.name.clone(), &e);
                continue;
            }
        };
        let mut is_lost = status.state == State::Lost;
        has_lost |= is_lost;
        // The work on another lost image may have removed its records already, but its anchor or a mark is there.
        if status.committed < status.layers {
            is_lost |= is_marked || (has_lost && node.engine.had(image, &listing).await);
        }
        match status.state {
            State::Ready => {
                worker.loss.remove(&image.target.digest);
                if is_marked {
                    // containerd has made it again.
                    node.engine.unmark_lost(image, worker.name()).await;
                }
            }
            _ if is_lost => worker.loss.add(image),
            _ => is_lost = worker.loss.includes(image),
        }
        let Some(why) = why.or(is_lost.then_some(Why::Lost)) else {
            continue;
        };
        if why == Why::Pinned {
            scan.pinned.insert(image.name.clone(), status.state);
            continue;
        }
        let is_lazy = !is_lost && why == Why::WithoutContent;
        match choice(&status, held, is_lazy) {
            Choice::Excluded => {}
            Choice::Ready => {
                summary.ready();
                if status.has_name_of_pull {
                    scan.unnamed.push(image.name.clone());
                }
            }
            Choice::TooMany => summary.left(Some(status.state)),
            Choice::Make { kind, more, bytes } => {
                let mut item = WorkItem {
                    state: Some(status.state),
                    kind,
                    bytes,
                    is_lazy: is_lazy && more > 0,
                    ..WorkItem::new(store_image, why)
                };
                // An image that may not be made ready is counted only when it is made.
                if !item.is_lazy || worker.takes_any_name(node) {
                    held += more;
                    item.pending = Some(item.enter(worker));
                }
                scan.items.push(item);
            }
        }
    }
    // Images of one kind keep their order.
    scan.items.sort_by_key(|item| item.kind);
    scan
}

/// Works on the items, as many at once as the engine allows for background work. With one more, the engine would
/// start it during the pause of another, and containerd would have no pause.
async fn work<'a>(ahead: &Ahead, worker: &'a Worker, items: Vec<WorkItem<'a>>) -> Vec<Worked> {
    let parallel = ahead.node.config().unpack.parallel_images.count().get();
    let parallel = parallel.saturating_sub(1).max(1);
    let work = items.into_iter().map(|item| work_on(ahead, worker, item));
    let work: Vec<_> = work.collect();
    let work = stream::iter(work).buffer_unordered(parallel);
    work.collect().await
}

async fn work_on<'a>(ahead: &Ahead, worker: &'a Worker, mut item: WorkItem<'a>) -> Worked {
    let (node, want) = (&ahead.node, item.want());
    // A full file system does not delay the images of others: a reconcile follows when it has enough free space.
    let ended = if item.pending.is_none() && worker.count.is_at_limit() != Some(false) {
        Ended::TooMany
    } else if item.is_lazy && worker.needs_content(node, &want).await {
        Ended::NeedsContent
    } else {
        match worker.reserve_space(node, &want, item.bytes).await {
            None => Ended::NoFreeSpace,
            Some(_space) => {
                let pending = item.pending.take();
                let pending = pending.unwrap_or_else(|| item.enter(worker));
                Ended::Tried(make(ahead, worker, pending, item.why).await)
            }
        }
    };
    Worked {
        image: item.image,
        state: item.state,
        ended,
    }
}

/// Makes the image ready, and pauses.
async fn make(ahead: &Ahead, worker: &Worker, pending: PendingGuard<'_>, why: Why) -> Outcome {
    let started = Instant::now();
    let ended = ahead
        .make_ready(worker, &pending, Urgency::Background)
        .await;
    let image = pending.want().name().to_owned();
    drop(pending);
    if let Ok(done) = &ended
        && done.action != Action::None
    {
        let (took, snapshotter) = (started.elapsed(), worker.name());
        log::info!(image, snapshotter, state:% = done.found, action:% = done.action, why:%, took_ms = logs::milliseconds(took); "image is ready ahead");
        tokio::time::sleep(took.min(LONGEST_REST)).await;
    }
    ended
}
