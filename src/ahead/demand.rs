//! Signs that containers need images in a snapshotter.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::image;

/// How long a pod counts as waiting for its first container: the time to pull a large image.
const PULLS: Duration = Duration::from_secs(10 * 60);

/// How long after its start an image that begins to arrive counts as that of a pod without a container.
const ARRIVAL_WINDOW: Duration = Duration::from_secs(60);

/// The limit of images that count as those of one pod: other pods of the node pull images at the same time.
const MAX_IMAGES: usize = 4;

/// The limit of pods that are remembered as waiting. The kubelet runs 110 pods by default.
const MAX_PODS: usize = 128;

/// The limit of repositories that are remembered.
const MAX_REPOSITORIES: usize = 1024;

/// The limit of failures that are remembered, so that each is logged as a warning once.
const MAX_REPORTED: usize = 256;

/// The limit of recorded uses that are remembered, more images than a node has. Beyond it all are forgotten, and looked
/// up once more.
const MAX_RECORDED: usize = 1024;

/// Signs that containers need images in a snapshotter.
#[derive(Debug, Default)]
pub(super) struct Demand {
    /// The chain ids of failed layers whose images are being made ready. Another failure of the same layer adds no
    /// work.
    working: Mutex<HashSet<String>>,
    /// The images whose failures were logged as a warning.
    reported: Mutex<HashSet<String>>,
    signs: Mutex<Signs>,
    /// The references of images whose use by a container is recorded in the store, or about to be.
    recorded: Mutex<HashSet<String>>,
}

#[derive(Debug, Default)]
struct Signs {
    /// Pods without a container.
    waiting: HashMap<String, WaitingPod>,
    /// The repositories of images that containers have used.
    repositories: HashSet<String>,
}

#[derive(Debug)]
struct WaitingPod {
    /// The time of its start.
    since: Instant,
    /// The repositories of the images that have arrived for it.
    images: Vec<String>,
}

/// Keeps a layer in `Demand::working` until it is dropped.
pub(super) struct Working<'a> {
    demand: &'a Demand,
    chain: String,
}

impl Demand {
    /// Records a pod that was started.
    pub(super) fn pod_waits(&self, pod: &str) {
        let mut signs = self.signs.lock();
        signs.forget_old_pods();
        if signs.waiting.len() < MAX_PODS {
            let waiting = WaitingPod {
                since: Instant::now(),
                images: Vec::new(),
            };
            signs.waiting.insert(pod.to_owned(), waiting);
        }
    }

    /// Records that a container of this pod is being created.
    pub(super) fn container_comes(&self, pod: &str, image: Option<&str>) {
        self.signs.lock().waiting.remove(pod);
        if let Some(image) = image {
            self.uses(image);
        }
    }

    /// Records that a container uses this image.
    pub(super) fn uses(&self, image: &str) {
        let Some(repository) = image::repository(image) else {
            return;
        };
        let mut signs = self.signs.lock();
        if signs.repositories.len() < MAX_REPOSITORIES {
            signs.repositories.insert(repository);
        }
    }

    /// Whether the use of this image by a container has to be recorded in the store. `true` once for each image.
    pub(super) fn is_new_use(&self, image: &str) -> bool {
        let mut recorded = self.recorded.lock();
        if recorded.len() >= MAX_RECORDED {
            recorded.clear();
        }
        recorded.insert(image.to_owned())
    }

    /// Forgets a use that could not be recorded.
    pub(super) fn forget_use(&self, image: &str) {
        self.recorded.lock().remove(image);
    }

    /// Forgets the logged failures: after a removal each may be logged as a warning again. Forgets the recorded uses,
    /// since the image may be pulled again.
    pub(super) fn image_removed(&self) {
        self.reported.lock().clear();
        self.recorded.lock().clear();
    }

    /// Whether a container may need this image soon.
    pub(super) fn may_want(&self, image: &str) -> bool {
        let mut signs = self.signs.lock();
        signs.forget_old_pods();
        let is_used = || image::repository(image).is_some_and(|r| signs.repositories.contains(&r));
        !signs.waiting.is_empty() || is_used()
    }

    /// Whether an image that arrives counts as that of a pod that was started shortly before and has no container yet. It
    /// then takes one of the pod's few images. The digest and the tag of one image count once. An image that has begun to
    /// arrive in time stays that of its pod.
    pub(super) fn counts_for_pod(&self, image: &str) -> bool {
        let Some(repository) = image::repository(image) else {
            return false;
        };
        let mut signs = self.signs.lock();
        signs.forget_old_pods();
        let mut pods: Vec<_> = signs.waiting.values_mut().collect();
        if pods.iter().any(|pod| pod.images.contains(&repository)) {
            return true;
        }
        pods.retain(|pod| pod.since.elapsed() < ARRIVAL_WINDOW && pod.images.len() < MAX_IMAGES);
        match pods.into_iter().min_by_key(|pod| pod.since) {
            Some(pod) => {
                pod.images.push(repository);
                true
            }
            None => false,
        }
    }

    /// Begins the work on a failed layer; `None` if it goes on already.
    pub(super) fn begin(&self, chain: &str) -> Option<Working<'_>> {
        let is_new = self.working.lock().insert(chain.to_owned());
        is_new.then_some(Working {
            demand: self,
            chain: chain.to_owned(),
        })
    }

    /// Whether the failure of this image was not logged yet.
    pub(super) fn is_new_failure(&self, image: &str) -> bool {
        let mut reported = self.reported.lock();
        if reported.len() >= MAX_REPORTED {
            reported.clear();
        }
        reported.insert(image.to_owned())
    }
}

impl Signs {
    fn forget_old_pods(&mut self) {
        self.waiting.retain(|_, pod| pod.since.elapsed() < PULLS);
    }
}

impl Drop for Working<'_> {
    fn drop(&mut self) {
        self.demand.working.lock().remove(&self.chain);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_image_may_be_wanted_while_a_pod_waits_or_where_its_repository_is_used() {
        let demand = Demand::default();
        let image = "r.example/app:2";
        assert!(!demand.may_want(image));
        demand.pod_waits("pod-1");
        assert!(demand.may_want(image));
        demand.container_comes("pod-1", Some("r.example/other:1"));
        assert!(!demand.may_want(image));
        demand.pod_waits("pod-2");
        tokio::time::advance(PULLS).await;
        assert!(!demand.may_want(image));
        demand.uses("r.example/app:1");
        assert!(demand.may_want(image));
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_pod_takes_a_few_images_for_a_minute() {
        let demand = Demand::default();
        let name = |n: usize| format!("r.example/app{n}:1");
        assert!(!demand.counts_for_pod(&name(0)));
        demand.pod_waits("pod-1");
        for n in 0..MAX_IMAGES {
            assert!(demand.counts_for_pod(&name(n)), "{n}");
        }
        assert!(!demand.counts_for_pod(&name(MAX_IMAGES)));
        // During the pull it has its digest for a name.
        let digest = format!("r.example/app0@sha256:{}", "0".repeat(64));
        assert!(demand.counts_for_pod(&digest));
        demand.pod_waits("pod-2");
        assert!(demand.counts_for_pod(&name(MAX_IMAGES)));
        demand.container_comes("pod-2", None);
        assert!(!demand.counts_for_pod(&name(MAX_IMAGES)));
        tokio::time::advance(ARRIVAL_WINDOW).await;
        assert!(!demand.counts_for_pod(&name(MAX_IMAGES)));
        // Its pull took long.
        assert!(demand.counts_for_pod(&name(0)));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let demand = Demand::default();
        for n in 0..2 * MAX_REPOSITORIES {
            demand.uses(&format!("r.example/app{n}:1"));
            demand.pod_waits(&format!("pod-{n}"));
            assert!(demand.is_new_failure(&format!("r.example/app{n}:1")));
        }
        let signs = demand.signs.lock();
        assert_eq!(signs.repositories.len(), MAX_REPOSITORIES);
        assert_eq!(signs.waiting.len(), MAX_PODS);
        assert!(demand.reported.lock().len() <= MAX_REPORTED);
    }

    #[test]
    fn one_layer_is_worked_on_once_at_a_time() {
        let demand = Demand::default();
        let working = demand.begin("sha256:c");
        assert!(working.is_some() && demand.begin("sha256:c").is_none());
        drop(working);
        assert!(demand.begin("sha256:c").is_some());
    }
}
