//! A plugin that records every call. The id of a container chooses what `create_container` does.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use nri::{Container, Events, HandlerResult, Plugin, Pod, RuntimeInfo, Session};
use tokio::io::{AsyncRead, AsyncWrite, duplex};
use tokio::sync::Semaphore;

use crate::runtime::{Registration, Runtime};

/// The buffer of the in-memory socket in bytes: more than one small message, less than a big one.
const SOCKET_BYTES: usize = 64 << 10;

pub(crate) struct Recorder {
    /// The events that `configure` returns.
    pub(crate) wants: Events,
    /// Every call: the method and its subject.
    calls: Mutex<Vec<String>>,
    pub(crate) runtime: Mutex<Option<RuntimeInfo>>,
    pub(crate) container: Mutex<Option<(Pod, Container)>>,
    /// The permits that the creation of a container `wait` waits for.
    pub(crate) permits: Semaphore,
    /// The step of the handshake that fails, and how.
    pub(crate) fault: Option<(&'static str, Fault)>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Error,
    Panic,
}

impl Recorder {
    pub(crate) fn new(wants: Events) -> Self {
        Self {
            wants,
            calls: Mutex::default(),
            runtime: Mutex::default(),
            container: Mutex::default(),
            permits: Semaphore::new(0),
            fault: None,
        }
    }

    pub(crate) fn failing(method: &'static str, fault: Fault) -> Self {
        Self {
            fault: Some((method, fault)),
            ..Self::new(Events::all())
        }
    }

    pub(crate) fn calls(&self) -> Vec<String> {
        self.calls.lock().unwrap().clone()
    }

    /// Forgets the calls so far.
    pub(crate) fn clear(&self) {
        self.calls.lock().unwrap().clear();
    }

    /// Waits until this call is recorded.
    pub(crate) async fn noted(&self, call: &str) {
        eventually(|| self.calls().iter().any(|noted| noted == call)).await;
    }

    fn note(&self, method: &str, what: &str) -> HandlerResult {
        let mut calls = self.calls.lock().unwrap();
        calls.push(format!("{method} {what}").trim_end().to_owned());
        drop(calls);
        match self.fault {
            Some((at, Fault::Error)) if at == method => Err(format!("no {method} today").into()),
            Some((at, Fault::Panic)) if at == method => panic!("no {method} at all"),
            _ => Ok(()),
        }
    }
}

/// Records that a handler was dropped while it waited.
struct Left<'a>(&'a Recorder);

impl Drop for Left<'_> {
    fn drop(&mut self) {
        let _ = self.0.note("left", "");
    }
}

#[async_trait]
impl Plugin for Recorder {
    async fn configure(&self, runtime: RuntimeInfo) -> HandlerResult<Events> {
        *self.runtime.lock().unwrap() = Some(runtime);
        self.note("configure", "")?;
        Ok(self.wants)
    }

    async fn synchronize(&self, pods: Vec<Pod>, containers: Vec<Container>) -> HandlerResult {
        let ids = pods.into_iter().map(|pod| pod.id);
        let ids: Vec<_> = ids.chain(containers.into_iter().map(|c| c.id)).collect();
        self.note("synchronize", &ids.join(" "))
    }

    async fn run_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        self.note("run_pod_sandbox", &pod.id)
    }

    async fn update_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        self.note("update_pod_sandbox", &pod.id)
    }

    async fn post_update_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        self.note("post_update_pod_sandbox", &pod.id)
    }

    async fn stop_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        self.note("stop_pod_sandbox", &pod.id)
    }

    async fn remove_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        self.note("remove_pod_sandbox", &pod.id)
    }

    async fn create_container(&self, pod: Pod, container: Container) -> HandlerResult {
        let id = container.id.clone();
        self.note("create_container", &format!("{} {id}", pod.id))?;
        *self.container.lock().unwrap() = Some((pod, container));
        match id.as_str() {
            "fail" => Err("the image is not ready".into()),
            "panic" => panic!("a bug"),
            "wait" => {
                self.permits.acquire().await?.forget();
                Ok(())
            }
            "forever" => {
                let _left = Left(self);
                std::future::pending().await
            }
            _ => Ok(()),
        }
    }

    async fn post_create_container(&self, pod: Pod, container: Container) -> HandlerResult {
        self.note(
            "post_create_container",
            &format!("{} {}", pod.id, container.id),
        )
    }

    async fn start_container(&self, pod: Pod, container: Container) -> HandlerResult {
        self.note("start_container", &format!("{} {}", pod.id, container.id))
    }

    async fn post_start_container(&self, pod: Pod, container: Container) -> HandlerResult {
        self.note(
            "post_start_container",
            &format!("{} {}", pod.id, container.id),
        )
    }

    async fn update_container(&self, pod: Pod, container: Container) -> HandlerResult {
        self.note("update_container", &format!("{} {}", pod.id, container.id))
    }

    async fn post_update_container(&self, pod: Pod, container: Container) -> HandlerResult {
        self.note(
            "post_update_container",
            &format!("{} {}", pod.id, container.id),
        )
    }

    async fn stop_container(&self, pod: Pod, container: Container) -> HandlerResult {
        self.note("stop_container", &format!("{} {}", pod.id, container.id))
    }

    async fn remove_container(&self, pod: Pod, container: Container) -> HandlerResult {
        self.note("remove_container", &format!("{} {}", pod.id, container.id))
    }

    async fn shutdown(&self) {
        let _ = self.note("shutdown", "");
    }
}

/// Waits until the condition holds. Fails after a time that no machine needs.
pub(crate) async fn eventually(is_so: impl Fn() -> bool) {
    let waiting = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let waited = tokio::time::timeout(Duration::from_secs(30), waiting).await;
    waited.expect("the condition did not hold in time");
}

/// Starts a session over an in-memory socket.
pub(crate) async fn started(plugin: &Arc<Recorder>) -> (Session, Runtime) {
    let (ours, theirs) = duplex(SOCKET_BYTES);
    started_over(ours, theirs, plugin).await
}

/// Starts a session over the two ends of a socket.
pub(crate) async fn started_over<T>(
    ours: T,
    theirs: T,
    plugin: &Arc<Recorder>,
) -> (Session, Runtime)
where
    T: AsyncRead + AsyncWrite + Send + 'static,
{
    let mut runtime = Runtime::accept(theirs, Registration::Accept).await;
    let identity = "10-recorder".parse().unwrap();
    let session = Session::start(ours, identity, plugin.clone());
    let (session, ()) = tokio::join!(session, runtime.start());
    plugin.clear();
    (session.unwrap(), runtime)
}
