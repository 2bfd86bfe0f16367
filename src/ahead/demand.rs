//! Images that a container waits for and that containerd cannot unpack by itself.
//!
//! containerd unpacks a missing image inside `CreateContainer`, before it calls any hook. Where a layer's
//! blob is gone, that unpack fails at every retry of the kubelet, and no hook is called for the container. But
//! containerd removes the extraction snapshot of the layer, and sends an event. On that event the image is
//! made ready for the next try. If a pod of the snapshotter waits for its first container, or
//! containers of it have used the repository before, such an image is made ready as soon as it arrives.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::config::Eager;
use crate::containerd::Image;
use crate::image;
use crate::logs;
use crate::unpack::{Action, Urgency, Want};

use super::eager::ManagedSnapshotter;
use super::{Ahead, is_news};

/// The limit of images that are made ready for one failed layer, newest first. The next failure is of a layer
/// that fewer images share.
const MAX_IMAGES: usize = 8;

/// How long a pod counts as waiting for its first container: the time to pull a large image.
const PULLS: Duration = Duration::from_secs(10 * 60);

/// The limit of pods of one snapshotter that are remembered as waiting. The kubelet runs 110 pods by default.
const MAX_PODS: usize = 128;

/// The limit of repositories of one snapshotter that are remembered.
const MAX_REPOSITORIES: usize = 1024;

/// The limit of failures that are remembered, so that each is logged as a warning once.
const MAX_REPORTED: usize = 256;

/// Signs that containers need images, for all snapshotters.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// The failed layers (snapshotter, chain id) whose images are being made ready. Another failure of the same
    /// layer adds no work.
    working: Mutex<HashSet<(String, String)>>,
    /// (Snapshotter, image) of the failures that were logged as a warning.
    reported: Mutex<HashSet<(String, String)>>,
    by_snapshotter: Mutex<HashMap<String, Signs>>,
}

/// Signs that an image may be needed in a snapshotter.
#[derive(Debug, Default)]
struct Signs {
    /// Pods without a container, with the time of their start.
    waiting: HashMap<String, Instant>,
    /// The repositories of images that containers have used.
    repositories: HashSet<String>,
}

/// Keeps a layer in `Demand::working` until it is dropped.
struct Working<'a> {
    demand: &'a Demand,
    key: (String, String),
}

impl Demand {
    /// Records a pod of this snapshotter that was started.
    pub(super) fn pod_waits(&self, snapshotter: &str, pod: &str) {
        let mut all = self.by_snapshotter.lock();
        let signs = all.entry(snapshotter.to_owned()).or_default();
        signs.waiting.retain(|_, since| since.elapsed() < PULLS);
        if signs.waiting.len() < MAX_PODS {
            signs.waiting.insert(pod.to_owned(), Instant::now());
        }
    }

    /// Records that a container of this pod is being created.
    pub(super) fn container_comes(&self, snapshotter: &str, pod: &str, image: Option<&str>) {
        if let Some(signs) = self.by_snapshotter.lock().get_mut(snapshotter) {
            signs.waiting.remove(pod);
        }
        if let Some(image) = image {
            self.uses(snapshotter, image);
        }
    }

    /// Records that a container of this snapshotter uses this image.
    pub(super) fn uses(&self, snapshotter: &str, image: &str) {
        let Some(repository) = image::repository(image) else {
            return;
        };
        let mut all = self.by_snapshotter.lock();
        let signs = all.entry(snapshotter.to_owned()).or_default();
        if signs.repositories.len() < MAX_REPOSITORIES {
            signs.repositories.insert(repository);
        }
    }

    /// Forgets the logged failures: after a removal each may be logged as a warning again.
    pub(super) fn image_removed(&self) {
        self.reported.lock().clear();
    }

    fn may_want(&self, snapshotter: &str, image: &str) -> bool {
        let mut all = self.by_snapshotter.lock();
        let Some(signs) = all.get_mut(snapshotter) else {
            return false;
        };
        signs.waiting.retain(|_, since| since.elapsed() < PULLS);
        let is_used = || image::repository(image).is_some_and(|r| signs.repositories.contains(&r));
        !signs.waiting.is_empty() || is_used()
    }

    fn begin(&self, snapshotter: &str, chain: &str) -> Option<Working<'_>> {
        let key = (snapshotter.to_owned(), chain.to_owned());
        let is_new = self.working.lock().insert(key.clone());
        is_new.then_some(Working { demand: self, key })
    }

    fn is_new_failure(&self, snapshotter: &str, image: &str) -> bool {
        let mut reported = self.reported.lock();
        if reported.len() >= MAX_REPORTED {
            reported.clear();
        }
        reported.insert((snapshotter.to_owned(), image.to_owned()))
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.demand.working.lock().remove(&self.key);
    }
}

/// Whether an image that arrived is made ready in a snapshotter although it is not in the eager set: a container
/// may need it there soon, and containerd cannot unpack it.
pub(super) async fn is_wanted(
    ahead: &Ahead,
    snapshotter: &ManagedSnapshotter,
    image: &Image,
) -> bool {
    let config = ahead.node.config();
    let name = snapshotter.name.as_str();
    if config.snapshotter(name).eager != Eager::Auto || !ahead.demand.may_want(name, &image.name) {
        return false;
    }
    let stuck = ahead.node.engine.is_stuck(name, image).await;
    stuck.unwrap_or_else(|e| {
        log::debug!(image = image.name.as_str(), snapshotter = name, error:% = e; "image that arrived could not be looked up");
        false
    })
}

/// Handles a failure of containerd to unpack the layer `chain` in a snapshotter.
pub(super) async fn unpack_failed(ahead: &Ahead, snapshotter: &str, chain: &str) {
    let is_kept = |managed: &ManagedSnapshotter| managed.name == snapshotter;
    if !ahead.managed().await.iter().any(is_kept) {
        return;
    }
    let Some(_working) = ahead.demand.begin(snapshotter, chain) else {
        return;
    };
    // Empty where a pull was cancelled: its image has no record yet.
    match ahead.node.engine.stuck_at(snapshotter, chain).await {
        Ok(images) => {
            let mut tried = 0;
            for image in &images {
                tried += usize::from(make_ready(ahead, snapshotter, image).await);
                if tried == MAX_IMAGES {
                    break;
                }
            }
        }
        Err(e) => {
            log::debug!(snapshotter, chain, error:% = e; "images of a layer that containerd failed to unpack could not be looked up");
        }
    }
}

/// Makes one image ready. Returns whether it was tried: excluded images are not.
async fn make_ready(ahead: &Ahead, snapshotter: &str, image: &Image) -> bool {
    let (name, started) = (image.name.as_str(), Instant::now());
    let want = Want::Image(name.to_owned());
    let record = &image.target.digest;
    let entry = ahead
        .unready
        .enter(snapshotter, want, record, image.created_at);
    let outcome = ahead.make_ready(&entry, Urgency::Asked).await;
    let is_left_to_containerd = outcome.as_ref().is_err_and(|e| e.is_left_to_containerd());
    match outcome {
        Ok(done) if done.action == Action::None => {}
        Ok(done) => {
            log::info!(image = name, snapshotter, state:% = done.found, action:% = done.action, took_ms = logs::milliseconds(started.elapsed()); "containerd failed to unpack the image; it is ready for the next try");
        }
        Err(e)
            if (is_news(&e) || e.is_left_to_containerd())
                && ahead.demand.is_new_failure(snapshotter, name) =>
        {
            log::warn!(image = name, snapshotter, error:% = e; "containerd failed to unpack the image, and it cannot be made ready: containers of it fail");
        }
        Err(e) => {
            log::debug!(image = name, snapshotter, error:% = e; "image that containerd failed to unpack could not be made ready");
        }
    }
    !is_left_to_containerd
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_image_may_be_wanted_while_a_pod_waits_or_where_its_repository_is_used() {
        let demand = Demand::default();
        let image = "r.example/app:2";
        assert!(!demand.may_want("erofs", image));
        demand.pod_waits("erofs", "pod-1");
        assert!(demand.may_want("erofs", image));
        assert!(!demand.may_want("native", image));
        demand.container_comes("erofs", "pod-1", Some("r.example/other:1"));
        assert!(!demand.may_want("erofs", image));
        demand.pod_waits("erofs", "pod-2");
        tokio::time::advance(PULLS).await;
        assert!(!demand.may_want("erofs", image));
        demand.uses("erofs", "r.example/app:1");
        assert!(demand.may_want("erofs", image));
        assert!(!demand.may_want("native", image));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let demand = Demand::default();
        for n in 0..2 * MAX_REPOSITORIES {
            demand.uses("erofs", &format!("r.example/app{n}:1"));
            demand.pod_waits("erofs", &format!("pod-{n}"));
            assert!(demand.is_new_failure("erofs", &format!("r.example/app{n}:1")));
        }
        let all = demand.by_snapshotter.lock();
        assert_eq!(all["erofs"].repositories.len(), MAX_REPOSITORIES);
        assert_eq!(all["erofs"].waiting.len(), MAX_PODS);
        assert!(demand.reported.lock().len() <= MAX_REPORTED);
    }

    #[test]
    fn one_layer_is_worked_on_once_at_a_time() {
        let demand = Demand::default();
        let working = demand.begin("erofs", "sha256:c");
        assert!(working.is_some() && demand.begin("erofs", "sha256:c").is_none());
        assert!(demand.begin("native", "sha256:c").is_some());
        drop(working);
        assert!(demand.begin("erofs", "sha256:c").is_some());
    }
}
