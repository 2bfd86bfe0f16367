//! Decides whether an image outside of a snapshotter's eager set is wanted there, because a container is known to need
//! it soon.

use crate::containerd::Image;

use super::eager::{self, Why};
use super::worker::Worker;
use super::{Ahead, failed, learned};

/// Returns why an image of the store is wanted; `None` if no container is known to need it.
pub(super) async fn why(ahead: &Ahead, worker: &Worker, record: &Image, name: &str) -> Option<Why> {
    if let Some(why) = why_in_pull(ahead, worker, record, name).await {
        return Some(why);
    }
    let is_stuck = eager::takes_demand(&ahead.node.config(), &worker.snapshotter)
        && failed::is_wanted(ahead, worker, record).await;
    is_stuck.then_some(Why::Stuck)
}

/// Returns the same for an image that is still being pulled.
pub(super) async fn why_in_pull(
    ahead: &Ahead,
    worker: &Worker,
    image: &Image,
    name: &str,
) -> Option<Why> {
    if !eager::takes_demand(&ahead.node.config(), &worker.snapshotter) {
        return None;
    }
    if worker.demand.counts_for_pod(name) {
        return Some(Why::PodWaits);
    }
    let (snapshotter, target) = (worker.name(), &image.target.digest);
    let learned = learned::is_wanted(ahead, snapshotter, name, target).await;
    let is_learned = learned.unwrap_or_else(|e| {
        log::debug!(image = name, snapshotter, error:% = e; "whether containers have used the image's repository could not be looked up");
        false
    });
    is_learned.then_some(Why::Used)
}
