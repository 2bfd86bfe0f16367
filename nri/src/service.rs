//! The plugin as a service: calls are filtered, guarded, and their outcome put into an answer.
//!
//! Which RPC means what stands in `rpc`; that calls come over a socket, and in which order they
//! have to, is the session's business.

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

/// How many messages one state may come in. Each holds up to 4 MiB, of which a node with a thousand
/// containers needs a handful.
const MAX_SYNCHRONIZE_PARTS: usize = 64;

/// How far the runtime has come in starting the session.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    /// Set once `Configure` was answered well.
    pub(crate) configured: Option<Configured>,
    /// Set once the last part of `Synchronize` was answered well.
    pub(crate) synchronized: bool,
    /// Set when the plugin answered one of the two with an error.
    pub(crate) refused: Option<Refused>,
}

/// What `Configure` settled.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Configured {
    events: Events,
    pub(crate) request_timeout: Duration,
}

/// The plugin's own refusal of a session.
#[derive(Debug, Clone)]
pub(crate) struct Refused {
    pub(crate) method: &'static str,
    pub(crate) reason: String,
}

/// The parts of a state that has not come completely.
#[derive(Default)]
struct Parts {
    count: usize,
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
    /// Cancelled when the calls have to end.
    cancelled: CancellationToken,
}

/// What goes back to the runtime.
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

    /// Where both dialects meet: one event, to the method that it means. One that the plugin did
    /// not ask for is answered without it.
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

    /// Runs the plugin's part of a call: counted, ended by cancellation, and with a panic made an
    /// error. ttrpc itself would leave the runtime without an answer until its deadline.
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

    /// Notes that the plugin does not want this session, for [`crate::Session::start`] to return.
    fn refuse(&self, method: &'static str, error: ttrpc::Error) -> ttrpc::Error {
        let reason = match &error {
            ttrpc::Error::RpcStatus(status) => status.message().to_owned(),
            other => other.to_string(),
        };
        self.progress
            .send_modify(|progress| progress.refused = Some(Refused { method, reason }));
        error
    }

    /// Keeps one part; the whole state when it was the last.
    fn collect(&self, request: api::SynchronizeRequest) -> Result<Option<Parts>, HandlerError> {
        let mut parts = self.parts.lock();
        parts.count += 1;
        if parts.count > MAX_SYNCHRONIZE_PARTS {
            *parts = Parts::default();
            return Err(format!("more than {MAX_SYNCHRONIZE_PARTS} parts of one state").into());
        }
        parts.pods.extend(request.pods.into_iter().map(Pod::from));
        parts
            .containers
            .extend(request.containers.into_iter().map(Container::from));
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
