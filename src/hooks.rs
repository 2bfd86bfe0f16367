//! Turns NRI's events into requests to the engine and verdicts.
//!
//! A hook blocks the whole node. It does no work itself: it sends a request, waits for a bounded time, and
//! answers; the work goes on in the engine. By default a pod is allowed if nothing is known of its image.

mod creation;
mod decision;
mod existing;
mod pod_images;
mod pod_snapshotter;
mod sandbox;
#[cfg(test)]
mod tests;
mod volumes;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use nri::{Container, Events, HandlerResult, Plugin, Pod, RuntimeInfo};
use tokio::time::Instant;

use crate::ahead::Ahead;
use crate::config::Config;
use crate::containerd;
use crate::handlers::FileConfig;
use crate::kubernetes;
use crate::logs;
use crate::metrics;
use crate::node::Node;
use crate::panics;
use crate::policy::{Doubt, Strictness};
use crate::unpack::{
    Candidate, CandidateKind, LEAST_WAIT, Request, SwapDeadlines, Ticket, Urgency, Want,
};

use creation::Creation;
use decision::{Hook, NOTHING, Subject, Verdict};
use pod_snapshotter::{PodSnapshotter, is_skipped};

/// CRI's annotation with the image's name: on containerd 2 the name in the request, on 1.7 the first of
/// the image's names.
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// The part of the runtime's request timeout that is kept for sending the answer on a busy node.
/// After the timeout containerd closes the connection to the plugin.
pub const MARGIN: Duration = Duration::from_millis(100);

/// Why nothing is known of a pod. The panic itself is in the log (`panics`).
const PANICKED: &str = "the plugin failed while it looked at the pod, by a fault of its own: please report the panic in its log";

/// Opens the node when the runtime configures the plugin: a plugin that containerd launches gets its
/// configuration at that time.
pub type Open = Box<dyn Fn(&RuntimeInfo) -> HandlerResult<Arc<Node>> + Send + Sync>;

/// The plugin's side of NRI: one for each session.
pub struct Hooks {
    open: Open,
    session: OnceLock<Session>,
}

/// What is known once the runtime has configured the plugin.
struct Session {
    node: Arc<Node>,
    ahead: Arc<Ahead>,
    /// The runtime's request timeout.
    request_timeout: Duration,
}

impl Hooks {
    /// A plugin that has not been configured.
    pub fn new(open: Open) -> Arc<Self> {
        Arc::new(Self {
            open,
            session: OnceLock::new(),
        })
    }

    /// Handles a runtime that launched the plugin and sends no list of the existing containers: reads the list from
    /// CRI, in the background.
    pub fn unsynchronized(&self) {
        if let Some(session) = self.session.get() {
            session.unsynchronized();
        }
    }

    /// Returns the node; `None` before the plugin is configured.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.session.get().map(|session| session.node.clone())
    }
}

/// Returns a warning if `hooks.wait` is too short for a swap.
pub fn too_short(config: &Config) -> Option<String> {
    let wait = config.hooks.wait.as_duration();
    (config.hooks.swap && wait < LEAST_WAIT).then(|| {
        format!(
            "hooks.wait is {}: a container is moved onto another chain only with {} left or more, so with nydus \
             its creation is rejected instead; raise hooks.wait",
            humantime::format_duration(wait),
            humantime::format_duration(LEAST_WAIT)
        )
    })
}

/// Returns how long a hook may wait: the configured time, but less than the runtime's request timeout.
fn bounded_wait(wait: Duration, request_timeout: Duration) -> Duration {
    wait.min(
        request_timeout
            .saturating_sub(MARGIN)
            .max(request_timeout / 2),
    )
}

#[async_trait]
impl Plugin for Hooks {
    async fn configure(&self, runtime: RuntimeInfo) -> HandlerResult<Events> {
        let node = match (self.open)(&runtime) {
            Ok(node) => node,
            // If a plugin that containerd 1.7 launched does not register, containerd ends. So the plugin registers, for
            // no events.
            Err(e) => {
                log::error!(
                    "{e}; the plugin does nothing until this is corrected and containerd is restarted"
                );
                return Ok(Events::empty());
            }
        };
        if self.session.get().is_some() {
            return Err("configured twice in one session".into());
        }
        let config = node.config();
        let wait = config.hooks.wait.as_duration();
        // NRI before 0.8 does not send its timeout; containerd's configuration file may have it.
        let version = containerd::numbers(&runtime.version);
        let file = FileConfig::read(config.containerd.config.as_ref(), version);
        let written = file.settings().request_timeout();
        let request_timeout = written.map_or(runtime.request_timeout, |(timeout, _)| {
            timeout.min(runtime.request_timeout)
        });
        let bounded = bounded_wait(wait, request_timeout);
        log::info!(runtime = runtime.name.as_str(), version = runtime.version.as_str(), hook_wait:? = bounded; "registered");
        if bounded < wait {
            log::warn!(configured:? = wait, request_timeout:?; "hooks.wait is longer than the runtime waits for a plugin: hooks answer earlier");
        }
        if let Some(remark) = too_short(&config) {
            log::warn!("{remark}");
        }
        node.refresh();
        metrics::session_began();
        let ahead = Ahead::begin(&node);
        kubernetes::begin(&node, &ahead);
        self.session.get_or_init(|| Session {
            request_timeout,
            ahead,
            node,
        });
        Ok(Events::RUN_POD_SANDBOX | Events::CREATE_CONTAINER)
    }

    async fn synchronize(&self, pods: Vec<Pod>, containers: Vec<Container>) -> HandlerResult {
        if let Some(session) = self.session.get() {
            session.synchronized(pods, containers);
        }
        Ok(())
    }

    async fn run_pod_sandbox(&self, pod: Pod) -> HandlerResult {
        let started = Instant::now();
        let answer = match self.session.get() {
            Some(session) => session.run_pod_sandbox(&pod).await,
            None => Ok(()),
        };
        answers("RunPodSandbox", started);
        answer
    }

    async fn create_container(&self, pod: Pod, container: Container) -> HandlerResult {
        let started = Instant::now();
        let answer = match self.session.get() {
            Some(session) => session.create_container(&pod, &container).await,
            None => Ok(()),
        };
        answers("CreateContainer", started);
        answer
    }
}

/// Logs the duration of every hook call, also for pods without another log line: it blocked the node for so long.
fn answers(hook: &str, started: Instant) {
    log::trace!(hook, took_ms = logs::milliseconds(started.elapsed()); "answers");
}

impl Session {
    /// Returns how long a hook may wait.
    fn wait(&self) -> Duration {
        let wait = self.node.config().hooks.wait.as_duration();
        bounded_wait(wait, self.request_timeout)
    }

    async fn run_pod_sandbox(&self, pod: &Pod) -> HandlerResult {
        let started = Instant::now();
        let deadline = started + self.wait();
        let pod_snapshotter = match self.pod_snapshotter(pod, deadline).await {
            Ok(Some(pod_snapshotter)) => pod_snapshotter,
            Ok(None) => return Ok(()),
            Err(why) => {
                let subject = Subject::sandbox(pod, "", "", started);
                subject.say(Verdict::Unresolved, None, NOTHING, &why);
                return Ok(());
            }
        };
        if let Some(why) = pod_snapshotter.skip_ignored {
            log::warn!(pod:% = format_args!("{}/{}", pod.namespace, pod.name), snapshotter = pod_snapshotter.snapshotter.as_str(), why; "annotation nri-unpack/mode: skip does not count in this namespace: the pod is managed");
        }
        let failed = || {
            let subject = Subject::sandbox(pod, "", &pod_snapshotter.snapshotter, started);
            subject.note(Verdict::LetPass, None, NOTHING, PANICKED);
            Verdict::LetPass
        };
        let prepared = async {
            if pod_snapshotter.left_to_containerd {
                return None;
            }
            let snapshotter = &pod_snapshotter.snapshotter;
            self.ahead.pod_waits(snapshotter, &pod.id);
            let ready = panics::contain(self.make_ready(pod, snapshotter, started, deadline));
            Some(ready.await.unwrap_or_else(failed))
        };
        // At the same time: images that take long would leave no time for the sandbox.
        let judged = async {
            let judged = sandbox::judge(self, pod, &pod_snapshotter, started, deadline);
            let judged = panics::contain(judged).await;
            judged.unwrap_or_else(|| Some((failed(), Ok(()))))
        };
        let (verdict, judged) = tokio::join!(prepared, judged);
        let (of_sandbox, answer) = judged.unzip();
        if let Some(verdict) = of_sandbox.or(verdict) {
            Hook::RunPodSandbox.count(verdict, started.elapsed());
        }
        answer.unwrap_or(Ok(()))
    }

    async fn create_container(&self, pod: &Pod, container: &Container) -> HandlerResult {
        let started = Instant::now();
        let deadline = started + self.wait();
        if let Some(image) = image_name(container) {
            self.ahead.is_used(image);
        }
        let pod_snapshotter = match self.pod_snapshotter(pod, deadline).await {
            Ok(Some(pod_snapshotter)) => pod_snapshotter,
            Ok(None) => return Ok(()),
            Err(why) => {
                let subject = Subject::creation(pod, container, "", started);
                subject.say(Verdict::Unresolved, None, NOTHING, &why);
                return Ok(());
            }
        };
        let snapshotter = pod_snapshotter.snapshotter.as_str();
        if !pod_snapshotter.left_to_containerd {
            let image = image_name(container);
            self.ahead.container_comes(snapshotter, &pod.id, image);
        }
        let creation = Creation {
            pod,
            container,
            snapshotter,
            strictness: self.strictness(&pod_snapshotter),
            started,
        };
        let judged = panics::contain(self.judge_container(&creation, deadline)).await;
        judged.unwrap_or_else(|| creation.doubted(Doubt::Unready, None, PANICKED))
    }

    async fn judge_container(&self, creation: &Creation<'_>, deadline: Instant) -> HandlerResult {
        let Creation {
            container,
            snapshotter,
            strictness: Strictness {
                left_to_containerd, ..
            },
            started,
            ..
        } = *creation;
        // The container's own chain is looked at after this, in the time that is left.
        let volumes_by = started + (deadline - started) / 2;
        volumes::judge(self, creation, volumes_by).await?;
        let candidate = Candidate {
            snapshotter: snapshotter.to_owned(),
            key: container.id.clone(),
            kind: CandidateKind::Container {
                image: image_name(container).map(str::to_owned),
                left_to_containerd,
                may_move: self.node.config().hooks.swap,
            },
        };
        let until = self.deadlines(started, deadline);
        let admission = self.node.engine.admit(&candidate, until).await;
        if let CandidateKind::Container {
            image: Some(image),
            left_to_containerd: false,
            ..
        } = &candidate.kind
        {
            self.ahead.container_uses(snapshotter, image);
        }
        creation.verdict(admission)
    }

    /// Returns the deadlines of a hook that was called at `started`.
    fn deadlines(&self, started: Instant, deadline: Instant) -> SwapDeadlines {
        SwapDeadlines {
            usual: deadline,
            last: started + bounded_wait(Duration::MAX, self.request_timeout),
        }
    }

    fn ensure(&self, want: Want, snapshotter: &str, urgency: Urgency) -> Ticket {
        self.node.engine.ensure(Request {
            want,
            snapshotter: snapshotter.to_owned(),
            urgency,
        })
    }

    /// Returns the snapshotter of a pod; `None` if nothing of the pod has to be checked.
    /// A pod that is left to containerd is checked if the snapshotter may have guest-pulled layers.
    ///
    /// # Errors
    /// Why the snapshotter is not known.
    async fn pod_snapshotter(
        &self,
        pod: &Pod,
        deadline: Instant,
    ) -> Result<Option<PodSnapshotter>, String> {
        let found = panics::contain(self.find_pod_snapshotter(pod, deadline)).await;
        found.unwrap_or_else(|| Err(PANICKED.to_owned()))
    }

    async fn find_pod_snapshotter(
        &self,
        pod: &Pod,
        deadline: Instant,
    ) -> Result<Option<PodSnapshotter>, String> {
        let config = self.node.config();
        let Some(handlers) = self.node.handlers_by(deadline).await else {
            return match is_skipped(&config, pod) {
                true => Ok(None),
                false => Err("containerd has not answered yet: the snapshotter of the pod's handler is not known".to_owned()),
            };
        };
        let profile_of = |snapshotter: &str| self.node.engine.profile(snapshotter);
        let pod_snapshotter = match PodSnapshotter::of(&config, &handlers, profile_of, pod) {
            Ok(pod_snapshotter) => pod_snapshotter,
            Err(_) if is_skipped(&config, pod) => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let profile = profile_of(&pod_snapshotter.snapshotter);
        Ok(Some(pod_snapshotter)
            .filter(|pod_snapshotter| !pod_snapshotter.left_to_containerd || profile.may_proxy))
    }

    fn strictness(&self, pod_snapshotter: &PodSnapshotter) -> Strictness {
        Strictness {
            on_unready: self.node.config().hooks.on_unready,
            fails_closed: self
                .node
                .engine
                .profile(&pod_snapshotter.snapshotter)
                .fails_closed,
            left_to_containerd: pod_snapshotter.left_to_containerd,
        }
    }
}

fn image_name(container: &Container) -> Option<&str> {
    container.annotations.get(IMAGE_NAME).map(String::as_str)
}
