//! Checks the images of the containers that exist when a session begins, for later containers.

use std::collections::BTreeMap;

use futures::future::join_all;

use crate::handlers::Handlers;
use crate::panics;
use crate::unpack::{ParentChain, Request, Urgency, Want};

use super::{Ahead, is_news};

/// A container that exists when a session begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Existing {
    /// The container's id, which is the key of its snapshot.
    pub id: String,
    /// The snapshotter of its snapshot.
    pub snapshotter: String,
    /// The image's name in the container's annotation.
    pub image: Option<String>,
}

/// Checks the containers when the handlers are known. Containers of one snapshotter are checked one after another, and
/// those of several at the same time. Their layers are there: a repair needs no free space. A chain that cannot be
/// repaired below its container is replaced when the container is gone; no private chain is made.
pub(super) async fn check(ahead: &Ahead, existing: impl FnOnce(&Handlers) -> Vec<Existing> + Send) {
    let handlers = ahead.node.known_handlers().await;
    let workers = ahead.workers().await;
    let mut by_snapshotter: BTreeMap<String, Vec<Existing>> = BTreeMap::new();
    for container in existing(&handlers) {
        let worker = workers
            .iter()
            .find(|worker| worker.name() == container.snapshotter);
        if let (Some(worker), Some(image)) = (worker, &container.image) {
            worker.demand.uses(image);
            ahead.container_uses(worker.name(), image);
        }
        let those = by_snapshotter.entry(container.snapshotter.clone());
        those.or_default().push(container);
    }
    let checks = by_snapshotter.into_values().map(|containers| async {
        for container in containers {
            panics::contain(check_one(ahead, container)).await;
        }
    });
    join_all(checks).await;
}

async fn check_one(ahead: &Ahead, container: Existing) {
    let Existing {
        id,
        snapshotter,
        image,
    } = container;
    let engine = &ahead.node.engine;
    let chain = match engine
        .parent_chain(&snapshotter, &id, image.as_deref(), false)
        .await
    {
        Ok(ParentChain::Unknown { chain }) => chain,
        Ok(ParentChain::Ready | ParentChain::Scratch) => return,
        Err(e) => {
            return log::debug!(container = id.as_str(), error:% = e; "existing container is not checked: its snapshot could not be looked up");
        }
    };
    let want = Want::Container {
        key: id.clone(),
        chain,
        name: image,
        left_to_containerd: false,
    };
    let request = Request {
        want,
        snapshotter: snapshotter.clone(),
        urgency: Urgency::Background,
    };
    match engine.ensure(request).outcome().await {
        Ok(done) => {
            log::debug!(container = id.as_str(), snapshotter = snapshotter.as_str(), state:% = done.found, action:% = done.action; "image of an existing container is ready");
        }
        Err(e) if e.is_left_to_containerd() => {
            log::debug!(container = id.as_str(), error:% = e; "image of an existing container is left to containerd");
        }
        Err(e) => {
            if is_news(&e) {
                log::warn!(container = id.as_str(), snapshotter = snapshotter.as_str(), error:% = e; "image of an existing container could not be made ready");
            }
            engine.replace_if_in_use(&e, &snapshotter);
        }
    }
}
