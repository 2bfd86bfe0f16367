//! The trait that a plugin implements: one method for each event, which does nothing by default.
//!
//! The trait does not depend on the protocol: an event calls the same method in both of NRI's dialects.

use async_trait::async_trait;

use crate::events::Events;
use crate::types::{Container, Pod, RuntimeInfo};

/// The error of a handler. The runtime passes its text on to the user.
pub type HandlerError = Box<dyn std::error::Error + Send + Sync>;

/// The result of a handler.
pub type HandlerResult<T = ()> = Result<T, HandlerError>;

/// A plugin.
///
/// The runtime holds one lock during every call. While a handler runs, all operations on pods and
/// containers of the node wait. If a handler needs longer than [`RuntimeInfo::request_timeout`], the
/// runtime closes the connection of the plugin. So:
///
/// - Answer soon. Work that takes longer belongs in a task that the plugin owns.
/// - A handler's future is dropped when the runtime's deadline passes or the session ends. Work that
///   must not be interrupted belongs in such a task as well.
/// - An error fails the operation: the start of the pod, or the creation of the container. A panic
///   counts as an error, and the session continues.
///
/// Requests to change a container (NRI's adjustments, updates and evictions) are not part of this
/// trait yet. The answers change no container.
///
/// In a container event the pod may have no name. When a container outlives its pod, the runtime only
/// knows the pod's id ([`Container::pod_sandbox_id`], which is then also [`Pod::id`]).
#[async_trait]
#[allow(unused_variables, reason = "the names are for who implements it")]
pub trait Plugin: Send + Sync + 'static {
    /// Takes the runtime's name and versions and the plugin's own configuration: the first call of a
    /// session. Returns the events that the plugin wants, by default all. An error ends the session.
    async fn configure(&self, runtime: RuntimeInfo) -> HandlerResult<Events> {
        Ok(Events::all())
    }

    /// Takes all existing pods and containers: the second call of a session. Later changes are events.
    /// An error ends the session.
    async fn synchronize(&self, pods: Vec<Pod>, containers: Vec<Container>) -> HandlerResult {
        Ok(())
    }

    /// A pod's sandbox was created and started, and none of its containers exists yet.
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

    /// The runtime is stopping. The connection ends soon after.
    async fn shutdown(&self) {}
}
