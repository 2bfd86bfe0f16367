//! Unpacks the missing layers of one chain at the same time: each is applied alone, and committed onto its parent as
//! soon as that is committed.
//!
//! The result is that of an unpack of one layer after another, also after a failure: a layer that fails stops those
//! above it, and those below go on. A layer that needs its parent for the apply waits for it.

use futures::stream::{FuturesUnordered, Stream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::content::Content;
use super::fallback::ContentFallback;
use super::unpack::{Apart, Committed, Failure, Unpack};

/// The tokens that stop each of `layers` layers, the lowest first: what stops one stops those above
/// it.
pub(crate) fn stops(stop: &CancellationToken, layers: usize) -> Vec<CancellationToken> {
    let below = Some(stop.child_token());
    let stops = std::iter::successors(below, |below| Some(below.child_token()));
    stops.take(layers).collect()
}

/// Unpacks the layers, the lowest first, whose tokens are from [`stops`]. Answers what became of each,
/// by its place among them, as it happens. `window` bounds those that have a snapshot and are not
/// applied yet; how many are applied at once in the whole process is the layers' own gate's to say.
pub(crate) fn unpack<'a>(
    layers: &'a [Unpack<'a>],
    missing: &'a ContentFallback,
    window: &'a Semaphore,
) -> impl Stream<Item = (usize, Result<Committed, Failure>)> + 'a {
    let mut below = None;
    let outcomes = FuturesUnordered::new();
    for (i, layer) in layers.iter().enumerate() {
        let (stands, above) = oneshot::channel();
        let below = below.replace(above);
        outcomes.push(async move {
            let outcome = one(layer, missing, window, below).await;
            match (&outcome, layers.get(i + 1)) {
                (_, None) => {}
                // Refused where the one above has failed already.
                (Ok(_), Some(_)) => drop(stands.send(())),
                (Err(_), Some(above)) => above.stop.cancel(),
            }
            (i, outcome)
        });
    }
    outcomes
}

/// One of them. `below` says when it is its turn to be committed; the lowest need not wait.
async fn one(
    layer: &Unpack<'_>,
    missing: &ContentFallback,
    window: &Semaphore,
    below: Option<oneshot::Receiver<()>>,
) -> Result<Committed, Failure> {
    let content = Content::of_image(layer.layer);
    let _lock = layer.lock().await?;
    let window = layer.stop.run_until_cancelled(window.acquire()).await;
    let window = window.ok_or(Failure::Stopped)?;
    let filled = match layer.fill_apart(&content).await? {
        Apart::Filled(filled) => Some(filled),
        Apart::Exists => return Ok(Committed::Existed),
        Apart::NeedsBelow => None,
    };
    drop(window);
    let turn = async {
        match below {
            Some(below) => below.await.is_ok(),
            None => true,
        }
    };
    let turn = layer.stop.run_until_cancelled(turn).await;
    match (turn, filled) {
        (Some(true), Some(filled)) => layer.settle(filled, &content).await,
        (Some(true), None) => missing.unpack(layer).await,
        (_, Some(filled)) => {
            layer.abort(filled).await;
            Err(Failure::Stopped)
        }
        (_, None) => Err(Failure::Stopped),
    }
}
