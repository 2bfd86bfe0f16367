//! What is known of the pods of this node and of the RuntimeClasses: which pod waits for which images, with which runtime
//! handler.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;

use crate::ahead::Ahead;
use crate::metrics;

use super::objects::{Pod, RuntimeClass};
use super::reflector::Kind;

/// The limit of RuntimeClasses: more than a cluster has.
const MAX_CLASSES: usize = 1024;

/// The limit of pods that wait for their RuntimeClass. Usually the classes are known before.
const MAX_WAITING: usize = 512;

/// Where the pods' wants go.
pub(super) trait Demand: Send + Sync {
    /// See [`Ahead::pod_bound`].
    fn pod_bound(&self, uid: &str, handler: &str, images: &[String]);
    /// See [`Ahead::pod_gone`].
    fn pod_gone(&self, uid: &str);
    /// See [`Ahead::retain_pods`].
    fn retain_pods(&self, is_there: &dyn Fn(&str) -> bool);
}

impl Demand for Arc<Ahead> {
    fn pod_bound(&self, uid: &str, handler: &str, images: &[String]) {
        Ahead::pod_bound(self, uid, handler, images);
    }

    fn pod_gone(&self, uid: &str) {
        Ahead::pod_gone(self, uid);
    }

    fn retain_pods(&self, is_there: &dyn Fn(&str) -> bool) {
        Ahead::retain_pods(self, is_there);
    }
}

/// What both watches know.
pub(super) struct Known {
    /// The name of this node.
    node: String,
    demand: Box<dyn Demand>,
    /// Whether a pod's annotation `nri-unpack/mode: skip` counts in this namespace.
    may_skip: MaySkip,
    inner: Mutex<Inner>,
}

type MaySkip = Box<dyn Fn(&str) -> bool + Send + Sync>;

#[derive(Default)]
struct Inner {
    /// The runtime handler of each RuntimeClass.
    classes: HashMap<String, String>,
    /// The pods whose RuntimeClass is not known, by their uid.
    waiting: HashMap<String, Waiting>,
    /// What the list that is being read has so far.
    listed_pods: HashSet<String>,
    listed_classes: HashSet<String>,
}

struct Waiting {
    class: String,
    images: Vec<String>,
}

impl Known {
    pub(super) fn new(node: &str, demand: impl Demand + 'static, may_skip: MaySkip) -> Self {
        Self {
            node: node.to_owned(),
            demand: Box::new(demand),
            may_skip,
            inner: Mutex::default(),
        }
    }

    fn pod(&self, pod: Pod) {
        let uid = pod.metadata.uid.clone();
        let class = pod.spec.runtime_class_name.clone();
        let name = format!("{}/{}", pod.metadata.namespace, pod.metadata.name);
        // A server that does not know the field selector would send all pods of the cluster.
        let is_here = pod.spec.node_name.as_ref() == Some(&self.node);
        let may_skip = (self.may_skip)(&pod.metadata.namespace);
        let images = match is_here {
            true => pod.into_images(may_skip),
            false => vec![],
        };
        let mut inner = self.inner.lock();
        inner.waiting.remove(&uid);
        if images.is_empty() {
            return self.demand.pod_gone(&uid);
        }
        let class = class.unwrap_or_default();
        let handler = match class.as_str() {
            "" => "",
            _ => match inner.classes.get(&class) {
                Some(handler) => handler,
                None if inner.waiting.len() >= MAX_WAITING => {
                    return metrics::bound_left_out();
                }
                None => {
                    log::debug!(pod = name.as_str(), class = class.as_str(); "RuntimeClass of a bound pod is not known yet");
                    inner.waiting.insert(uid, Waiting { class, images });
                    return;
                }
            },
        };
        log::debug!(pod = name.as_str(), handler, images = images.len(); "pod is bound to this node");
        self.demand.pod_bound(&uid, handler, &images);
    }

    fn pod_gone(&self, uid: &str) {
        self.inner.lock().waiting.remove(uid);
        self.demand.pod_gone(uid);
    }

    fn class(&self, class: RuntimeClass) {
        let (name, handler) = (class.metadata.name, class.handler);
        let mut inner = self.inner.lock();
        let inner = &mut *inner;
        if inner.classes.len() >= MAX_CLASSES && !inner.classes.contains_key(&name) {
            return;
        }
        let of_class = inner.waiting.extract_if(|_, pod| pod.class == name);
        for (uid, pod) in of_class {
            self.demand.pod_bound(&uid, &handler, &pod.images);
        }
        inner.classes.insert(name, handler);
    }
}

/// The pods that are bound to this node.
pub(super) struct Pods<'a>(pub(super) &'a Known);

impl Kind for Pods<'_> {
    type Object = Pod;
    const PATH: &'static str = "/api/v1/pods";
    const WORD: &'static str = "pods";

    fn fields(node: &str) -> Option<String> {
        Some(format!("spec.nodeName={node}"))
    }

    fn list_begins(&self) {
        self.0.inner.lock().listed_pods.clear();
    }

    fn listed(&self, mut pods: Vec<Pod>) {
        // Those that wait longest need their images first.
        pods.sort_by(|a, b| {
            let created = |pod: &Pod| pod.metadata.creation_timestamp.clone();
            created(a).cmp(&created(b))
        });
        for pod in pods {
            let uid = pod.metadata.uid.clone();
            self.0.inner.lock().listed_pods.insert(uid);
            self.applied(pod);
        }
    }

    fn list_ends(&self) {
        let mut inner = self.0.inner.lock();
        let listed = std::mem::take(&mut inner.listed_pods);
        inner.waiting.retain(|uid, _| listed.contains(uid));
        self.0.demand.retain_pods(&|uid| listed.contains(uid));
    }

    fn applied(&self, pod: Pod) {
        self.0.pod(pod);
    }

    fn deleted(&self, pod: Pod) {
        self.0.pod_gone(&pod.metadata.uid);
    }

    fn connected(is_connected: bool) {
        metrics::api_server_connected(is_connected);
    }
}

/// The RuntimeClasses of the cluster.
pub(super) struct Classes<'a>(pub(super) &'a Known);

impl Kind for Classes<'_> {
    type Object = RuntimeClass;
    const PATH: &'static str = "/apis/node.k8s.io/v1/runtimeclasses";
    const WORD: &'static str = "runtimeclasses";

    fn fields(_: &str) -> Option<String> {
        None
    }

    fn list_begins(&self) {
        self.0.inner.lock().listed_classes.clear();
    }

    fn listed(&self, classes: Vec<RuntimeClass>) {
        for class in classes {
            let name = class.metadata.name.clone();
            self.0.inner.lock().listed_classes.insert(name);
            self.applied(class);
        }
    }

    fn list_ends(&self) {
        let mut inner = self.0.inner.lock();
        let listed = std::mem::take(&mut inner.listed_classes);
        inner.classes.retain(|name, _| listed.contains(name));
    }

    fn applied(&self, class: RuntimeClass) {
        self.0.class(class);
    }

    /// Pods of this class keep what they want.
    fn deleted(&self, class: RuntimeClass) {
        self.0.inner.lock().classes.remove(&class.metadata.name);
    }

    fn connected(_: bool) {}
}

#[cfg(test)]
mod tests;
