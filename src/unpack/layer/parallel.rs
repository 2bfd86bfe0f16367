//! Unpacks the missing layers of one chain at the same time: each is applied without a parent, and committed
//! onto the layer below as soon as that is committed.
//!
//! The result is the same as that of an unpack of one layer after another, failures included: a layer that
//! fails stops the layers above it, while those below go on. A layer that needs its parent waits until the
//! layer below is committed, and is unpacked then.

use futures::stream::{FuturesUnordered, Stream};
use tokio::sync::{Semaphore, oneshot};
use tokio_util::sync::CancellationToken;

use super::content::Content;
use super::fallback::ContentFallback;
use super::unpack::{Apart, Committed, Failure, Unpack};

/// Returns the tokens that stop each of `layers` layers, the lowest first. To stop a layer also stops those
/// above it.
pub(crate) fn stops(stop: &CancellationToken, layers: usize) -> Vec<CancellationToken> {
    let below = Some(stop.child_token());
    let stops = std::iter::successors(below, |below| Some(below.child_token()));
    stops.take(layers).collect()
}

/// Unpacks the layers, given the lowest first, whose tokens are from [`stops`]. Returns the outcome of each,
/// with its index among them, as soon as it ends. `window` limits the layers that have a snapshot and are not
/// applied yet. A semaphore in `Layers` limits the applies of the whole process.
pub(crate) fn unpack<'a>(
    layers: &'a [Unpack<'a>],
    fallback: &'a ContentFallback,
    window: &'a Semaphore,
) -> impl Stream<Item = (usize, Result<Committed, Failure>)> + 'a {
    let mut below = None;
    let outcomes = FuturesUnordered::new();
    for (i, layer) in layers.iter().enumerate() {
        let (committed, above) = oneshot::channel();
        let below = below.replace(above);
        outcomes.push(async move {
            let outcome = one(layer, fallback, window, below).await;
            match (&outcome, layers.get(i + 1)) {
                (_, None) => {}
                // Fails if the layer above has failed already.
                (Ok(_), Some(_)) => drop(committed.send(())),
                (Err(_), Some(above)) => above.stop.cancel(),
            }
            (i, outcome)
        });
    }
    outcomes
}

/// Unpacks one of them. `below` reports that the layer below is committed; the lowest layer does not wait.
async fn one(
    layer: &Unpack<'_>,
    fallback: &ContentFallback,
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
    let below_is_committed = async {
        match below {
            Some(below) => below.await.is_ok(),
            None => true,
        }
    };
    let below_is_committed = layer.stop.run_until_cancelled(below_is_committed).await;
    match (below_is_committed, filled) {
        (Some(true), Some(filled)) => layer.settle(filled, &content).await,
        (Some(true), None) => fallback.unpack(layer).await,
        (_, Some(filled)) => {
            layer.abort(filled).await;
            Err(Failure::Stopped)
        }
        (_, None) => Err(Failure::Stopped),
    }
}
