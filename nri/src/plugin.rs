//! What a plugin implements: one method per event, each of which does nothing until it is written.
//!
//! The trait knows no wire: which of NRI's two dialects brought an event does not show here.

use async_trait::async_trait;

use crate::events::Events;
use crate::types::{Container, Pod, RuntimeInfo};

/// Any error. Its text is what the runtime, and in the end the user, gets to read.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// What a handler answers.
pub type HandlerResult<T = ()> = Result<T, HandlerError>;

/// A plugin.
///
/// The runtime holds one lock across every call: while a handler thinks, no pod and no container
/// of the node moves on, and a handler that needs longer than [`RuntimeInfo::request_timeout`] gets
/// the plugin cut off. So:
///
/// - Answer soon. Work that takes longer belongs in a task that the plugin owns.
/// - A handler's future is dropped where it waits when the runtime's deadline passes or the session
///   ends. What must not be left half done belongs in such a task as well.
/// - An error fails the operation: the pod, or the creation of the container. A panic counts as an
///   error, and the session lives on.
///
/// Requests to change a container (NRI's adjustments, updates and evictions) are not part of this
/// trait yet; the answers leave every container as it is.
///
/// In a container event the pod may be nameless: when a container outlives its pod, the runtime
/// only knows the id ([`Container::pod_sandbox_id`], which is then [`Pod::id`] too).
#[async_trait]
#[allow(unused_variables, reason = "the names are for who implements it")]
pub trait Plugin: Send + Sync + 'static {
    /// The first call of a session: who the runtime is, and the plugin's own configuration.
    /// Returns the events that the plugin wants; by default every one. An error ends the session.
    async fn configure(&self, runtime: RuntimeInfo) -> HandlerResult<Events> {
        Ok(Events::all())
    }

    /// The second call: all pods and containers that there are. Everything that happens later is
    /// an event. An error ends the session.
    async fn synchronize(&self, pods: Vec<Pod>, containers: Vec<Container>) -> HandlerResult {
        Ok(())
    }

    /// A pod's sandbox was created and started; none of its containers exists yet.
    async fn run_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        Ok(())
    }

    /// A pod's resources are about to change. From NRI 0.12.
    async fn update_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        Ok(())
    }

    /// A pod's resources changed. From NRI 0.12.
    async fn post_update_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        Ok(())
    }

    /// A pod's sandbox stops.
    async fn stop_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        Ok(())
    }

    /// A pod's sandbox is removed.
    async fn remove_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        Ok(())
    }

    /// A container is being created: with containerd, its snapshot exists, its record does not.
    async fn create_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// A container was created.
    async fn post_create_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// A container is about to start.
    async fn start_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// A container started.
    async fn post_start_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// A container's resources are about to change.
    async fn update_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// A container's resources changed.
    async fn post_update_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// A container stopped, or its creation was undone.
    async fn stop_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// A container is removed.
    async fn remove_container(&self, pod: Pod, container: Container) -> HandlerResult {
        Ok(())
    }

    /// The runtime is going down. The connection ends soon after.
    async fn shutdown(&self) {}
}
