//! The images of the pods that are bound to this node and wait for their containers. They are wanted in the snapshotter
//! of the pod's handler until the pod has its containers, or is gone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use crate::config::Eager;
use crate::handlers::Handlers;
use crate::image;
use crate::metrics;

use super::Ahead;
use super::job::Job;
use super::worker::Worker;

/// The limit of pods. The kubelet runs 110 pods by default, and few of them wait for their containers at the same time.
const MAX_PODS: usize = 512;

/// The limit of images of one pod.
const MAX_IMAGES: usize = 32;

/// The limit of an image's name, in bytes: a registry's host (253), a repository (255), a tag (128) and a digest fit.
const MAX_NAME: usize = 1024;

/// The bound pods, and the images that they want.
#[derive(Debug, Default)]
pub(super) struct Bound {
    known: Mutex<Known>,
    /// Whether the log says already that a limit was exceeded.
    is_reported: AtomicBool,
}

#[derive(Debug, Default)]
struct Known {
    /// By the pod's uid.
    pods: HashMap<Box<str>, Wants>,
    /// For each image the handlers that want it, each with the number of its pods. The names are those of CRI's records.
    images: HashMap<Arc<str>, Vec<(Arc<str>, usize)>>,
}

/// What one pod wants.
#[derive(Debug)]
struct Wants {
    handler: Arc<str>,
    images: Vec<Arc<str>>,
}

impl Bound {
    /// Records that a pod of this handler waits for containers of these images. Returns the images that no other pod of
    /// the handler wanted.
    fn insert(&self, uid: &str, handler: &str, images: &[String]) -> Vec<Arc<str>> {
        let mut known = self.known.lock();
        let before = known.pods.remove(uid);
        if before.is_none() && known.pods.len() >= MAX_PODS {
            self.left_out("pods", MAX_PODS);
            return Vec::new();
        }
        let mut names: Vec<_> = images.iter().map(|name| image::record_name(name)).collect();
        names.sort_unstable();
        names.dedup();
        names.retain(|name| !name.is_empty() && name.len() <= MAX_NAME);
        if names.len() > MAX_IMAGES {
            self.left_out("images of a pod", MAX_IMAGES);
            names.truncate(MAX_IMAGES);
        }
        let handler = known.handler(handler);
        let mut new = Vec::new();
        let mut wanted = Vec::with_capacity(names.len());
        for name in names {
            let (name, is_new) = known.want(&name, &handler);
            wanted.push(name.clone());
            if is_new {
                new.push(name);
            }
        }
        // After the new wants, so that an image in both stays wanted.
        if let Some(before) = before {
            known.forget(&before);
        }
        let images = wanted;
        known.pods.insert(uid.into(), Wants { handler, images });
        metrics::bound_pods(known.pods.len());
        new
    }

    fn remove(&self, uid: &str) {
        let mut known = self.known.lock();
        if let Some(wants) = known.pods.remove(uid) {
            known.forget(&wants);
            metrics::bound_pods(known.pods.len());
        }
    }

    fn retain(&self, is_there: impl Fn(&str) -> bool) {
        let mut known = self.known.lock();
        let gone: Vec<_> = known
            .pods
            .extract_if(|uid, _| !is_there(uid))
            .map(|(_, wants)| wants)
            .collect();
        gone.iter().for_each(|wants| known.forget(wants));
        metrics::bound_pods(known.pods.len());
    }

    /// Whether a pod wants an image with one of these names in this snapshotter.
    fn wants<'a>(
        &self,
        handlers: &Handlers,
        snapshotter: &str,
        mut names: impl Iterator<Item = &'a str>,
    ) -> bool {
        let known = self.known.lock();
        let is_here = |handler: &str| {
            let resolved = handlers.snapshotter(handler);
            resolved.is_ok_and(|resolved| resolved.snapshotter == snapshotter)
        };
        !known.pods.is_empty()
            && names.any(|name| {
                let of_image = known.images.get(name);
                of_image.is_some_and(|of| of.iter().any(|(handler, _)| is_here(handler)))
            })
    }

    fn is_empty(&self) -> bool {
        self.known.lock().pods.is_empty()
    }

    /// Counts pods or images beyond a limit, and logs it once.
    fn left_out(&self, what: &str, limit: usize) {
        metrics::bound_left_out();
        if !self.is_reported.swap(true, Ordering::Relaxed) {
            log::warn!(limit; "too many {what} are bound to this node: the images of those beyond the limit are made ready when a hook asks for them");
        }
    }
}

impl Known {
    /// Returns the shared name of a handler.
    fn handler(&self, name: &str) -> Arc<str> {
        let mut known = self.pods.values().map(|wants| &wants.handler);
        let same = known.find(|known| known.as_ref() == name);
        same.cloned().unwrap_or_else(|| name.into())
    }

    /// Adds a want. Returns the shared name of the image, and whether no other pod of the handler wants it.
    fn want(&mut self, image: &str, handler: &Arc<str>) -> (Arc<str>, bool) {
        let name = match self.images.get_key_value(image) {
            Some((name, _)) => name.clone(),
            None => image.into(),
        };
        let handlers = self.images.entry(name.clone()).or_default();
        match handlers.iter_mut().find(|(known, _)| known == handler) {
            Some((_, pods)) => {
                *pods += 1;
                (name, false)
            }
            None => {
                handlers.push((handler.clone(), 1));
                (name, true)
            }
        }
    }

    fn forget(&mut self, wants: &Wants) {
        for image in &wants.images {
            let Entry::Occupied(mut entry) = self.images.entry(image.clone()) else {
                continue;
            };
            let handlers = entry.get_mut();
            for (handler, pods) in handlers.iter_mut() {
                *pods -= usize::from(*handler == wants.handler);
            }
            handlers.retain(|(_, pods)| *pods > 0);
            if handlers.is_empty() {
                entry.remove();
            }
        }
    }
}

/// What Kubernetes says.
impl Ahead {
    /// Records a pod of this runtime handler that is bound to this node and waits for containers of these images. Those
    /// that are in the store are made ready at once, the others as they arrive. An empty handler is the default one.
    pub fn pod_bound(&self, uid: &str, handler: &str, images: &[String]) {
        let new = self.bound.insert(uid, handler, images);
        let Some(handlers) = self.node.handlers_now().filter(|_| !new.is_empty()) else {
            return;
        };
        if let Ok(resolved) = handlers.snapshotter(handler) {
            for image in new {
                self.push(&resolved.snapshotter, Job::Bound(image));
            }
        }
    }

    /// Forgets what a pod wants: it has its containers, or is gone.
    pub fn pod_gone(&self, uid: &str) {
        self.bound.remove(uid);
    }

    /// Forgets what pods want that are no longer there.
    pub fn retain_pods(&self, is_there: impl Fn(&str) -> bool) {
        self.bound.retain(is_there);
    }

    /// Whether a bound pod wants an image with one of these names in the snapshotter of this worker. With
    /// `eager = "none"` none does.
    pub(super) fn is_bound<'a>(
        &self,
        worker: &Worker,
        names: impl IntoIterator<Item = &'a String>,
    ) -> bool {
        if self.bound.is_empty() {
            return false;
        }
        let eager = self.node.config().snapshotter(worker.name()).eager;
        let names = names.into_iter().map(String::as_str);
        eager != Eager::None
            && self
                .node
                .handlers_now()
                .is_some_and(|handlers| self.bound.wants(&handlers, worker.name(), names))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::handlers::Running;

    const CRI: &str = r#"{"containerd": {"snapshotter": "overlayfs", "defaultRuntimeName": "runc",
        "runtimes": {"runc": {}, "kata": {"snapshotter": "erofs"}, "kata-2": {"snapshotter": "erofs"}}}}"#;

    fn handlers() -> Handlers {
        let running = Running {
            cri_status_config: Some(CRI),
            ..Running::default()
        };
        Handlers::resolve(&Config::default(), running, None)
    }

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&name| name.to_owned()).collect()
    }

    fn inserted(bound: &Bound, uid: &str, handler: &str, images: &[&str]) -> Vec<String> {
        let new = bound.insert(uid, handler, &names(images));
        new.iter().map(ToString::to_string).collect()
    }

    fn wants(bound: &Bound, snapshotter: &str, name: &str) -> bool {
        bound.wants(&handlers(), snapshotter, [name].into_iter())
    }

    const BUSYBOX: &str = "docker.io/library/busybox:latest";
    const DIGEST: &str = "sha256:aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    #[test]
    fn an_image_is_wanted_until_its_last_pod_is_gone() {
        let bound = Bound::default();
        assert_eq!(
            inserted(&bound, "1", "kata", &["busybox", "busybox:latest"]),
            [BUSYBOX]
        );
        assert_eq!(inserted(&bound, "2", "kata", &["busybox"]), [""; 0]);
        assert_eq!(inserted(&bound, "3", "kata-2", &["busybox"]), [BUSYBOX]);
        assert!(wants(&bound, "erofs", BUSYBOX) && !wants(&bound, "overlayfs", BUSYBOX));
        assert!(!wants(&bound, "erofs", "docker.io/library/busybox:1"));
        // Another event of a known pod.
        assert_eq!(inserted(&bound, "2", "kata", &["busybox"]), [""; 0]);
        for gone in ["1", "3", "3"] {
            bound.remove(gone);
            assert!(wants(&bound, "erofs", BUSYBOX));
        }
        bound.retain(|uid| uid != "2");
        assert!(!wants(&bound, "erofs", BUSYBOX));
        let known = bound.known.lock();
        assert!(known.pods.is_empty() && known.images.is_empty());
    }

    #[test]
    fn names_are_those_of_the_records_that_a_pull_makes() {
        let bound = Bound::default();
        let (tagged, plain) = (
            format!("r.example/app:1@{DIGEST}"),
            format!("r.example/app@{DIGEST}"),
        );
        assert_eq!(inserted(&bound, "1", "kata", &[&tagged]), [&*plain]);
        assert!(wants(&bound, "erofs", &plain));
    }

    #[test]
    fn a_pod_whose_image_changes_wants_the_new_one_only() {
        let bound = Bound::default();
        inserted(&bound, "1", "kata", &["busybox", "r.example/app:1"]);
        assert_eq!(
            inserted(&bound, "1", "kata", &["busybox", "r.example/app:2"]),
            ["r.example/app:2"]
        );
        assert!(wants(&bound, "erofs", BUSYBOX));
        assert!(!wants(&bound, "erofs", "r.example/app:1"));
        bound.remove("1");
        assert!(bound.known.lock().images.is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let bound = Bound::default();
        let images: Vec<_> = (0..2 * MAX_IMAGES)
            .map(|n| format!("r.example/app:{n:03}"))
            .collect();
        for n in 0..2 * MAX_PODS {
            bound.insert(&n.to_string(), "kata", &images);
        }
        let long = format!("r.example/{}:1", "a".repeat(MAX_NAME));
        bound.remove("0");
        assert_eq!(inserted(&bound, "0", "kata", &[&long]), [""; 0]);
        // A known pod is not beyond the limit.
        inserted(&bound, "1", "kata", &["busybox"]);
        let known = bound.known.lock();
        assert_eq!(known.pods.len(), MAX_PODS);
        assert_eq!(known.images.len(), MAX_IMAGES + 1);
    }
}
