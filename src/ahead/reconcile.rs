//! A look at all images: what should be ready ahead and is not is made so, one after another and with
//! rests, since nobody waits.

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
use super::eager::{self, Known, Place};
use super::tally::{Rest, Said, Tally};
use super::unready::Entry;

/// After each image that was unpacked there is a rest of as long as that took, so that containerd has
/// half of its time for others; not longer than this.
const LONGEST_REST: Duration = Duration::from_secs(2);

/// One image for one snapshotter. While it waits for its turn, a pod pushes it.
struct Piece<'a> {
    known: &'a Known,
    place: &'a Place,
    /// What it was when it was looked at, if it was.
    state: Option<State>,
    /// It is made ready only if the snapshotter needs no content for it.
    is_lazy: bool,
    /// While that is not known, no pod pushes it, and it takes no place.
    entry: Option<Entry<'a>>,
}

/// How one ended.
struct Worked<'a> {
    image: String,
    place: &'a Place,
    /// As before.
    state: Option<State>,
    ended: Ended,
}

enum Ended {
    /// There was no room for it.
    NoRoom,
    /// The snapshotter holds too many by then.
    TooMany,
    /// The snapshotter needs its content, so it waits until a pod asks.
    NeedsContent,
    Tried(Outcome),
}

/// Answers what is left to be done.
pub(super) async fn look(ahead: &Ahead, said: &mut Said) -> Result<Rest, containerd::Error> {
    let node = &ahead.node;
    let started = Instant::now();
    let handlers = node.known_handlers().await;
    let listed = node.containerd.snapshotters().await?;
    let places = eager::places(&node.config(), &handlers, &listed);
    ahead.places.send_replace(Some(places.clone()));
    if places.is_empty() {
        return Ok(Rest::Nothing);
    }
    let images = node.containerd.images().await?;
    let sandbox = sandbox_target(ahead, &handlers, &images).await;
    let used = ahead.used_of(&images);
    let known = eager::in_order(images, sandbox.as_deref(), &used);
    let mut tally = Tally::default();
    // Pods wait for the pinned ones, and the engine looks at each: they do not wait for the others.
    let pinned = work(ahead, pinned(ahead, &places, &known));
    let (pinned, scan) = futures::join!(pinned, scan(ahead, &places, &known, said, &mut tally));
    ahead.left.store(tally.has_left(), Ordering::Relaxed);
    for mut worked in pinned {
        let key = (worked.image.as_str(), worked.place.snapshotter.as_str());
        worked.state = scan.pinned.get(&key).copied();
        count(&mut tally, said, worked);
    }
    for worked in work(ahead, scan.pieces).await {
        count(&mut tally, said, worked);
    }
    ahead.left.store(tally.has_left(), Ordering::Relaxed);
    Ok(tally.say(said, started))
}

fn count(tally: &mut Tally, said: &Said, worked: Worked<'_>) {
    let snapshotter = worked.place.snapshotter.as_str();
    match worked.ended {
        Ended::NoRoom => tally.no_room(snapshotter, worked.state),
        Ended::TooMany => tally.left(snapshotter, worked.state),
        Ended::NeedsContent => tally.needs_content(snapshotter, worked.state),
        Ended::Tried(Ok(done)) if done.action == Action::None => tally.ready(snapshotter),
        Ended::Tried(Ok(_)) => tally.made(snapshotter),
        Ended::Tried(Err(e)) => {
            let piece = (worked.image, snapshotter.to_owned());
            tally.failed(said, piece, worked.state, &e);
        }
    }
}

/// What the pause image's record stands for, where its name is configured and it is there.
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

fn pinned<'a>(ahead: &'a Ahead, places: &'a [Place], known: &'a [Known]) -> Vec<Piece<'a>> {
    let config = ahead.node.config();
    let pinned = known.iter().filter(|known| known.is_pinned);
    let everywhere = pinned.flat_map(|known| places.iter().map(move |place| (known, place)));
    let wanted = everywhere.filter(|(_, place)| eager::is_eager(&config, place, true));
    wanted
        .map(|(known, place)| Piece {
            known,
            place,
            state: None,
            is_lazy: false,
            entry: Some(enter(ahead, known, place)),
        })
        .collect()
}

fn enter<'a>(ahead: &'a Ahead, known: &Known, place: &Place) -> Entry<'a> {
    let want = Want::Image(known.image.name.clone());
    let record = &known.image.target.digest;
    ahead
        .unready
        .enter(&place.snapshotter, want, record, known.created_at)
}

/// What a look at the images was.
struct Scan<'a> {
    /// What is not ready, in the order in which it is to be made so.
    pieces: Vec<Piece<'a>>,
    /// The states of pinned images, which are worked on meanwhile: name and snapshotter.
    pinned: HashMap<(&'a str, &'a str), State>,
}

async fn scan<'a>(
    ahead: &'a Ahead,
    places: &'a [Place],
    known: &'a [Known],
    said: &Said,
    tally: &mut Tally,
) -> Scan<'a> {
    let node = &ahead.node;
    let mut listings: HashMap<&str, (Listing, usize)> = HashMap::new();
    for place in places {
        match node.engine.list(&place.snapshotter).await {
            Ok(listing) => {
                let held = listing.len();
                ahead.held.listed(&place.snapshotter, held);
                listings.insert(&place.snapshotter, (listing, held));
            }
            Err(e) => tally.silent(said, &place.snapshotter, &e),
        }
    }
    let mut scan = Scan {
        pieces: Vec::new(),
        pinned: HashMap::new(),
    };
    let everywhere = known
        .iter()
        .flat_map(|k| places.iter().map(move |p| (k, p)));
    let everywhere: Vec<_> = everywhere.collect();
    for (known, place) in everywhere {
        let snapshotter = place.snapshotter.as_str();
        let Some((listing, held)) = listings.get_mut(snapshotter) else {
            continue;
        };
        if !eager::is_eager(&node.config(), place, known.is_pinned) {
            continue;
        }
        let look = match node.engine.look(&known.image, &known.names, listing).await {
            Ok(look) => look,
            Err(e) => {
                let piece = (known.image.name.clone(), snapshotter.to_owned());
                tally.unseen(said, piece, &e);
                continue;
            }
        };
        if known.is_pinned {
            let key = (known.image.name.as_str(), snapshotter);
            scan.pinned.insert(key, look.state);
            continue;
        }
        match choice(&look, *held) {
            Choice::LeftOut => {}
            Choice::Ready => tally.ready(snapshotter),
            Choice::TooMany => tally.left(snapshotter, Some(look.state)),
            Choice::Make { more } => {
                let config = node.config();
                let is_lazy = more > 0 && eager::is_without_content(&config, place, false);
                let is_certain = !is_lazy || ahead.takes_any_name(snapshotter);
                // Others may come to nothing: they are counted when they are made.
                *held += if is_certain { more } else { 0 };
                scan.pieces.push(Piece {
                    known,
                    place,
                    state: Some(look.state),
                    is_lazy,
                    entry: is_certain.then(|| enter(ahead, known, place)),
                });
            }
        }
    }
    scan
}

/// One after another, as many at once as the engine lets in of what nobody waits for: one more would be
/// let in while another rests, and containerd had no rest.
async fn work<'a>(ahead: &'a Ahead, pieces: Vec<Piece<'a>>) -> Vec<Worked<'a>> {
    let parallel = ahead.node.config().unpack.parallel_images.count().get();
    let parallel = parallel.saturating_sub(1).max(1);
    let work = pieces.into_iter().map(|piece| work_on(ahead, piece));
    let work: Vec<_> = work.collect();
    let work = stream::iter(work).buffer_unordered(parallel);
    work.collect().await
}

async fn work_on<'a>(ahead: &'a Ahead, piece: Piece<'a>) -> Worked<'a> {
    let Piece {
        known,
        place,
        state,
        is_lazy,
        entry,
    } = piece;
    let image = known.image.name.clone();
    let snapshotter = place.snapshotter.as_str();
    let want = Want::Image(image.clone());
    // A place without room does not keep the others waiting: it is looked at again when it has some.
    let ended = if !ahead.node.room.is_enough(place.root.as_deref()) {
        Ended::NoRoom
    } else if entry.is_none() && ahead.held.is_full(snapshotter) != Some(false) {
        Ended::TooMany
    } else if is_lazy && ahead.needs_content(&want, snapshotter).await {
        Ended::NeedsContent
    } else {
        let entry = entry.unwrap_or_else(|| enter(ahead, known, place));
        Ended::Tried(make(ahead, entry).await)
    };
    Worked {
        image,
        place,
        state,
        ended,
    }
}

/// Makes it ready, and rests.
async fn make(ahead: &Ahead, entry: Entry<'_>) -> Outcome {
    let started = Instant::now();
    let ended = ahead.make_ready(&entry, Urgency::Background).await;
    let image = entry.want().name().to_owned();
    let snapshotter = entry.snapshotter().to_owned();
    drop(entry);
    if let Ok(done) = &ended
        && done.action != Action::None
    {
        let took = started.elapsed();
        log::info!(image, snapshotter, state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(took); "image is ready ahead");
        tokio::time::sleep(took.min(LONGEST_REST)).await;
    }
    ended
}
