//! A look at all images: what should be ready ahead and is not is made so, one after another and with
//! rests, since nobody waits.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use tokio::time::{Duration, Instant};

use crate::containerd::{self, Image};
use crate::handlers::Handlers;
use crate::image;
use crate::logs;
use crate::metrics;
use crate::retry;
use crate::unpack::{Action, Listing, State, Urgency, Want};

use super::eager::{self, Known, Place};
use super::{Ahead, is_news};

/// Snapshots in one snapshotter from which on only pinned images are unpacked ahead: each labelled
/// `Prepare` has containerd walk all of them (some 8 ms more with each thousand), so filling a
/// snapshotter costs the square of what it holds.
pub const MAX_SNAPSHOTS: usize = 2000;

/// After each image that was unpacked there is a rest of as long as that took, so that containerd has
/// half of its time for others; not longer than this.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// One image for one snapshotter.
struct Piece {
    image: String,
    place: Place,
    /// What it was when it was looked at.
    state: State,
}

/// What a look has come to.
#[derive(Debug, Default)]
struct Tally {
    ready: usize,
    made: usize,
    failed: usize,
    left: usize,
    /// Images in a snapshotter by state.
    states: BTreeMap<(String, &'static str), usize>,
}

/// Looks whenever that is asked for. Goes on until it is dropped.
pub(super) async fn run(ahead: Arc<Ahead>) {
    let mut pauses = retry::pauses();
    loop {
        wanted(&ahead).await;
        let looked = tokio::select! {
            looked = reconcile(&ahead) => looked,
            () = ahead.node.reloaded() => {
                // With the other configuration, from the beginning. What is in the air is not lost.
                ahead.queue.reconcile();
                continue;
            }
        };
        match looked {
            Ok(()) => pauses = retry::pauses(),
            Err(e) => {
                log::debug!(error:% = e; "images not looked at; trying again");
                tokio::time::sleep(pauses.next().unwrap_or(LONGEST_REST)).await;
                ahead.queue.reconcile();
            }
        }
    }
}

/// Until a look is asked for, or it is time for one.
async fn wanted(ahead: &Ahead) {
    let every = ahead.node.config().unpack.reconcile_every;
    let elapsed = async {
        match every {
            Some(every) => tokio::time::sleep(every.as_duration()).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        () = ahead.queue.asked_to_reconcile() => {}
        () = ahead.node.reloaded() => {}
        () = elapsed => {}
    }
}

async fn reconcile(ahead: &Arc<Ahead>) -> Result<(), containerd::Error> {
    let node = &ahead.node;
    let started = Instant::now();
    let handlers = node.known_handlers().await;
    let listed = node.containerd.snapshotters().await?;
    let places = eager::places(&node.config(), &handlers, &listed);
    ahead.places.send_replace(Some(places.clone()));
    if places.is_empty() {
        return Ok(());
    }
    let images = node.containerd.images().await?;
    let sandbox = sandbox_target(ahead, &handlers, &images).await;
    let known = eager::in_order(images, sandbox.as_deref(), &ahead.used());
    let mut tally = Tally::default();
    let pieces = pieces(ahead, &places, &known, &mut tally).await;
    let parallel = node.config().unpack.parallel_images.count().get();
    let outcomes = stream::iter(pieces)
        .map(|piece| work(ahead.clone(), piece))
        .buffer_unordered(parallel);
    let outcomes: Vec<_> = outcomes.collect().await;
    for (snapshotter, state) in outcomes {
        if state == State::Ready {
            tally.made += 1;
        } else {
            tally.failed += 1;
        }
        tally.count(snapshotter, state);
    }
    metrics::reconciled(tally.states());
    tally.say(started);
    Ok(())
}

/// What the pause image's record stands for, where its name is configured and it is there.
async fn sandbox_target(ahead: &Ahead, handlers: &Handlers, images: &[Image]) -> Option<String> {
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

/// What is not ready, in the order in which it is to be made so.
async fn pieces(ahead: &Ahead, places: &[Place], known: &[Known], tally: &mut Tally) -> Vec<Piece> {
    let node = &ahead.node;
    let mut listings: HashMap<&str, (Listing, usize)> = HashMap::new();
    for place in places {
        match node.engine.list(&place.snapshotter).await {
            Ok(listing) => {
                let snapshots = listing.len();
                listings.insert(&place.snapshotter, (listing, snapshots));
            }
            Err(e) => {
                log::warn!(snapshotter = place.snapshotter.as_str(), error:% = e; "snapshotter does not answer: nothing is unpacked in it ahead");
            }
        }
    }
    let mut pieces = Vec::new();
    for known in known {
        for place in places {
            let Some((listing, snapshots)) = listings.get_mut(place.snapshotter.as_str()) else {
                continue;
            };
            if !eager::is_eager(&node.config(), place, known.is_pinned) {
                continue;
            }
            let Ok(look) = node.engine.look(&known.image, &known.names, listing).await else {
                continue;
            };
            if look.left_out {
                continue;
            }
            if look.state == State::Ready {
                tally.ready += 1;
                tally.count(place.snapshotter.clone(), look.state);
                continue;
            }
            let more = look.layers - look.committed;
            if *snapshots + more > MAX_SNAPSHOTS && !known.is_pinned {
                tally.left += 1;
                tally.count(place.snapshotter.clone(), look.state);
                continue;
            }
            *snapshots += more;
            pieces.push(Piece {
                image: known.image.name.clone(),
                place: place.clone(),
                state: look.state,
            });
        }
    }
    pieces
}

/// What the image is now, and where.
async fn work(ahead: Arc<Ahead>, piece: Piece) -> (String, State) {
    let Piece {
        image,
        place,
        state,
    } = piece;
    let snapshotter = place.snapshotter.as_str();
    ahead.room.wait(&place).await;
    let started = Instant::now();
    let want = Want::Image(image.clone());
    let state = match ahead
        .make_ready(snapshotter, want, Urgency::Background)
        .await
    {
        Ok(done) => {
            if done.action != Action::None {
                log::info!(image, snapshotter, state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(started.elapsed()); "image is ready ahead");
                tokio::time::sleep(started.elapsed().min(LONGEST_REST)).await;
            }
            State::Ready
        }
        Err(e) => {
            if is_news(&e) {
                log::warn!(image, snapshotter, error:% = e; "image cannot be made ready ahead");
            }
            state
        }
    };
    (place.snapshotter, state)
}

impl Tally {
    fn count(&mut self, snapshotter: String, state: State) {
        *self.states.entry((snapshotter, state.word())).or_default() += 1;
    }

    fn states(&self) -> impl Iterator<Item = (&str, &'static str, usize)> {
        let states = self.states.iter();
        states.map(|((snapshotter, state), count)| (snapshotter.as_str(), *state, *count))
    }

    fn say(&self, started: Instant) {
        let Self {
            ready,
            made,
            failed,
            left,
            ..
        } = *self;
        let took_ms = logs::milliseconds(started.elapsed());
        if made + failed + left == 0 {
            log::debug!(ready, took_ms; "looked at all images");
        } else {
            log::info!(ready, made, failed, left, took_ms; "looked at all images");
        }
        if left > 0 {
            log::warn!(left, max_snapshots = MAX_SNAPSHOTS; "a snapshotter is full enough: the images that came first are not unpacked ahead, but when a pod asks for them");
        }
    }
}
