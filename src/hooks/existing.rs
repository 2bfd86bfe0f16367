//! The containers that exist when a session begins: read from the runtime or from CRI, and checked in the background.

use std::collections::HashMap;

use nri::{Container, Pod};

use crate::ahead::Existing;
use crate::containerd::Labels;
use crate::handlers::Handlers;
use crate::kubernetes;
use crate::node::Node;

use super::{PodSnapshotter, Session, image_name};

impl Session {
    /// Checks the runtime's list of containers, when the handlers are known.
    pub(super) fn synchronized(&self, pods: Vec<Pod>, containers: Vec<Container>) {
        log::info!(pods = pods.len(), containers = containers.len(); "synchronized");
        kubernetes::synchronized(&self.node, &self.ahead);
        for image in containers.iter().filter_map(image_name) {
            self.ahead.is_used(image);
        }
        let node = self.node.clone();
        self.ahead.check_existing(move |handlers| {
            let pods: HashMap<_, _> = pods.iter().map(|pod| (pod.id.as_str(), pod)).collect();
            let existing = |container: Container| {
                let pod = pods.get(container.pod_sandbox_id.as_str())?;
                Some(Existing {
                    snapshotter: snapshotter_of(&node, handlers, pod)?,
                    image: image_name(&container).map(str::to_owned),
                    id: container.id,
                })
            };
            containers.into_iter().filter_map(existing).collect()
        });
    }

    pub(super) fn unsynchronized(&self) {
        log::info!(
            "the runtime sends no list of containers to a plugin that it launches: reading the list from CRI"
        );
        kubernetes::synchronized(&self.node, &self.ahead);
        let (node, ahead) = (self.node.clone(), self.ahead.clone());
        self.node.in_session(async move {
            // CRI answers only when containerd has started.
            let handlers = node.known_handlers().await;
            let containers = match node.containerd.cri_containers().await {
                Ok(containers) => containers,
                Err(e) => {
                    return log::warn!(error:% = e; "existing containers are not checked: CRI could not list them");
                }
            };
            log::info!(containers = containers.len(); "containers listed");
            let existing = containers.into_iter().filter_map(|container| {
                ahead.is_used(&container.image);
                let pod = Pod {
                    namespace: container.pod_namespace,
                    annotations: Labels::clone(&container.pod_annotations),
                    runtime_handler: container.runtime_handler,
                    ..Pod::default()
                };
                Some(Existing {
                    id: container.id,
                    snapshotter: snapshotter_of(&node, &handlers, &pod)?,
                    image: Some(container.image),
                })
            });
            let existing: Vec<_> = existing.collect();
            ahead.check_existing(|_| existing);
        });
    }
}

/// Returns the snapshotter of a pod; `None` if the pod is left to containerd or its handler is not known.
fn snapshotter_of(node: &Node, handlers: &Handlers, pod: &Pod) -> Option<String> {
    let profile = |snapshotter: &str| node.engine.profile(snapshotter);
    let pod = PodSnapshotter::of(&node.config(), handlers, profile, pod).ok()?;
    (!pod.left_to_containerd).then_some(pod.snapshotter)
}
