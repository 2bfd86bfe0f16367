//! Calls the plugin: filters events, catches panics, and turns results into answers.
//!
//! `rpc` maps RPCs to these calls. The session knows the socket and the order of the calls.

use std::any::Any;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use parking_lot::Mutex;
use protobuf::MessageField;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use ttrpc::{Code, get_status};

use crate::api::{self, Event};
use crate::events::Events;
use crate::plugin::{HandlerError, HandlerResult, Plugin};
use crate::types::{Container, Pod, RuntimeInfo, optional};

/// The largest number of messages in which the runtime may send its state. Each has up to 4 MiB, and a
/// node with a thousand containers needs a few of them.
const MAX_SYNCHRONIZE_PARTS: usize = 64;

/// The limit of the whole state in memory, in bytes, without what this crate does not read: that of 250 pods with all the
/// annotations that Kubernetes allows (256 KiB). Beyond it the state is dropped, and the session goes on.
const MAX_STATE: usize = 64 << 20;

/// The steps of the session's start that are done.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Set after a successful `Configure`.
    pub(crate) configured: Option<Configured>,
    /// Set after the last part of a successful `Synchronize`.
    pub(crate) synchronized: bool,
    /// Set after the plugin failed one of the two.
    pub(crate) refused: Option<Refused>,
}

/// The result of `Configure`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Configured {
    events: Events,
    pub(crate) request_timeout: Duration,
}

/// The plugin's error that refuses a session.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) method: &'static str,
    pub(crate) reason: String,
}

/// The parts of a state that has not arrived completely.
#[derive(Default)]
struct Parts {
    count: usize,
    /// What they take in memory, in bytes, about.
    bytes: usize,
    pods: Vec<Pod>,
    containers: Vec<Container>,
}

/// The service of one session.
pub(crate) struct Service {
    plugin: Arc<dyn Plugin>,
    progress: watch::Sender<Progress>,
    parts: Mutex<Parts>,
    /// Holds a token for every call that is being handled.
    calls: TaskTracker,
    /// Cancelled when all calls have to end.
    cancelled: CancellationToken,
}

/// The answer to the runtime.
pub(crate) type Answer<T> = ttrpc::Result<T>;

impl Service {
    pub(crate) fn new(
        plugin: Arc<dyn Plugin>,
        calls: TaskTracker,
        cancelled: CancellationToken,
    ) -> Self {
        Self {
            plugin,
            progress: watch::Sender::default(),
            parts: Mutex::default(),
            calls,
            cancelled,
        }
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    pub(crate) async fn configure(
        &self,
        request: api::ConfigureRequest,
    ) -> Answer<api::ConfigureResponse> {
        const METHOD: &str = "configure";
        let runtime = RuntimeInfo::from(request);
        let wanted = self
            .guard(METHOD, self.plugin.configure(runtime.clone()))
            .await
            .map_err(|error| self.refuse(METHOD, error))?;
        let events = wanted.known_to(&runtime);
        log::debug!(
            runtime:% = runtime.name, version:% = runtime.version, nri:? = runtime.nri_version,
            events:%, withheld:% = wanted - events;
            "configured"
        );
        let configured = Configured {
            events,
            request_timeout: runtime.request_timeout,
        };
        self.progress
            .send_modify(|progress| progress.configured = Some(configured));
        Ok(api::ConfigureResponse {
            events: configured.events.to_wire(),
            ..Default::default()
        })
    }

    pub(crate) async fn synchronize(
        &self,
        request: api::SynchronizeRequest,
    ) -> Answer<api::SynchronizeResponse> {
        const METHOD: &str = "synchronize";
        let more = request.more;
        let handler = async {
            match self.collect(request)? {
                Some(state) => self.plugin.synchronize(state.pods, state.containers).await,
                None => Ok(()),
            }
        };
        self.guard(METHOD, handler)
            .await
            .map_err(|error| self.refuse(METHOD, error))?;
        if !more {
            self.progress
                .send_modify(|progress| progress.synchronized = true);
        }
        Ok(api::SynchronizeResponse {
            more,
            ..Default::default()
        })
    }

    pub(crate) async fn shutdown(&self) -> Answer<api::Empty> {
        let handler = async {
            self.plugin.shutdown().await;
            Ok(api::Empty::default())
        };
        self.guard("shutdown", handler).await
    }

    /// Relays an event of either dialect to the plugin's method. An event that the plugin has not subscribed
    /// to succeeds without a call of the plugin.
    pub(crate) async fn relay<T: Default>(
        &self,
        event: Event,
        pod: MessageField<api::PodSandbox>,
        container: MessageField<api::Container>,
    ) -> Answer<T> {
        let wanted = self
            .progress
            .borrow()
            .configured
            .map_or(Events::empty(), |c| c.events);
        let event = Events::of(event);
        if !wanted.intersects(event) {
            return Ok(T::default());
        }
        let container: Container = optional(container).unwrap_or_default();
        let mut pod: Pod = optional(pod).unwrap_or_default();
        if pod.id.is_empty() {
            pod.id.clone_from(&container.pod_sandbox_id);
        }
        let handler = self.dispatch(event, pod, container);
        self.guard(&event.to_string().to_lowercase(), handler)
            .await?;
        Ok(T::default())
    }

    async fn dispatch(&self, event: Events, pod: Pod, container: Container) -> HandlerResult {
        let plugin = &self.plugin;
        match event {
            Events::RUN_POD_SANDBOX => plugin.run_pod_sandbox(pod).await,
            Events::UPDATE_POD_SANDBOX => plugin.update_pod_sandbox(pod).await,
            Events::POST_UPDATE_POD_SANDBOX => plugin.post_update_pod_sandbox(pod).await,
            Events::STOP_POD_SANDBOX => plugin.stop_pod_sandbox(pod).await,
            Events::REMOVE_POD_SANDBOX => plugin.remove_pod_sandbox(pod).await,
            Events::CREATE_CONTAINER => plugin.create_container(pod, container).await,
            Events::POST_CREATE_CONTAINER => plugin.post_create_container(pod, container).await,
            Events::START_CONTAINER => plugin.start_container(pod, container).await,
            Events::POST_START_CONTAINER => plugin.post_start_container(pod, container).await,
            Events::UPDATE_CONTAINER => plugin.update_container(pod, container).await,
            Events::POST_UPDATE_CONTAINER => plugin.post_update_container(pod, container).await,
            Events::STOP_CONTAINER => plugin.stop_container(pod, container).await,
            Events::REMOVE_CONTAINER => plugin.remove_container(pod, container).await,
            _ => Ok(()),
        }
    }

    /// Runs a handler: counts it, ends it on cancellation, and turns a panic into an error. After a panic,
    /// ttrpc itself would send no answer, and the runtime would wait until its deadline.
    async fn guard<T>(
        &self,
        method: &str,
        handler: impl Future<Output = HandlerResult<T>>,
    ) -> Answer<T> {
        let _counted = self.calls.token();
        let outcome = tokio::select! {
            biased;
            outcome = AssertUnwindSafe(handler).catch_unwind() => outcome,
            () = self.cancelled.cancelled() => {
                return Err(status(Code::UNAVAILABLE, "the plugin is closing its session"));
            }
        };
        match outcome {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(status(Code::UNKNOWN, error)),
            Err(panic) => {
                let text = format!("the plugin panicked in {method}: {}", panic_text(&*panic));
                log::error!(method; "{text}");
                Err(status(Code::INTERNAL, text))
            }
        }
    }

    /// Records that the plugin refuses this session, so that [`crate::Session::start`] returns the error.
    fn refuse(&self, method: &'static str, error: ttrpc::Error) -> ttrpc::Error {
        let reason = match &error {
            ttrpc::Error::RpcStatus(status) => status.message().to_owned(),
            other => other.to_string(),
        };
        self.progress
            .send_modify(|progress| progress.refused = Some(Refused { method, reason }));
        error
    }

    /// Refuses this session because of a part of the state.
    pub(crate) fn refuse_state(&self, error: ttrpc::Error) -> ttrpc::Error {
        self.refuse("synchronize", error)
    }

    /// Adds one part of the state. Returns the whole state after the last part; an empty one if it takes too much memory.
    fn collect(&self, request: api::SynchronizeRequest) -> Result<Option<Parts>, HandlerError> {
        let mut parts = self.parts.lock();
        parts.count += 1;
        if parts.count > MAX_SYNCHRONIZE_PARTS {
            *parts = Parts::default();
            return Err(format!("the state has more than {MAX_SYNCHRONIZE_PARTS} parts").into());
        }
        let pods: Vec<Pod> = request.pods.into_iter().map(Pod::from).collect();
        let containers = request.containers.into_iter().map(Container::from);
        let containers: Vec<Container> = containers.collect();
        let sizes = pods.iter().map(Pod::bytes);
        let sizes = sizes.chain(containers.iter().map(Container::bytes));
        let was_within = parts.bytes <= MAX_STATE;
        parts.bytes = sizes.fold(parts.bytes, usize::saturating_add);
        if parts.bytes <= MAX_STATE {
            parts.pods.extend(pods);
            parts.containers.extend(containers);
        } else if was_within {
            (parts.pods, parts.containers) = Default::default();
            log::warn!(
                limit_mib = MAX_STATE >> 20;
                "the pods and containers that exist take more memory than the limit: the plugin is not told of them"
            );
        }
        Ok((!request.more).then(|| std::mem::take(&mut *parts)))
    }
}

fn status(code: Code, text: impl ToString) -> ttrpc::Error {
    ttrpc::Error::RpcStatus(get_status(code, text.to_string()))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<&str>().copied();
    text.or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
