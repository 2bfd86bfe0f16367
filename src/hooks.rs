//! NRI's events, turned into `ensure` and a verdict.
//!
//! A hook holds the whole node. It never works itself: it asks, waits for a bounded time, and
//! answers; the work goes on in the engine. Where anything is in doubt it lets the pod pass.

mod creation;
mod decision;
mod existing;
mod pod_images;
mod pod_snapshotter;
mod sandbox;
mod swap;
#[cfg(test)]
mod tests;
mod volumes;

use std::ops::ControlFlow;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use nri::{Container, Events, HandlerResult, Plugin, Pod, RuntimeInfo};
use tokio::time::Instant;

use crate::ahead::Ahead;
use crate::config::Config;
use crate::containerd;
use crate::handlers::FileConfig;
use crate::logs;
use crate::metrics;
use crate::node::Node;
use crate::policy::{Doubt, Strictness};
use crate::unpack::{
    Error, LEAST_WAIT, Move, ParentChain, Request, State, SwapDeadlines, Ticket, Urgency, Want,
};

use creation::Creation;
use decision::{Hook, NOTHING, Subject, Verdict, found};
use pod_snapshotter::{PodSnapshotter, is_skipped};

/// CRI's annotation with the image's name: on containerd 2 what was asked for, on 1.7 the first of
/// the image's names.
const IMAGE_NAME: &str = "io.kubernetes.cri.image-name";

/// What is left of the runtime's request timeout for the answer's way back through a busy node.
/// Past the timeout containerd cuts the plugin off.
pub const MARGIN: Duration = Duration::from_millis(100);

/// Opens the node when the runtime has said who it is: where containerd launched the plugin, its
/// configuration comes along.
pub type Open = Box<dyn Fn(&RuntimeInfo) -> HandlerResult<Arc<Node>> + Send + Sync>;

/// The plugin, as NRI sees it: one for each session.
pub struct Hooks {
    open: Open,
    session: OnceLock<Session>,
}

/// What is known once the runtime has configured the plugin.
struct Session {
    node: Arc<Node>,
    ahead: Arc<Ahead>,
    /// The runtime's.
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

    /// The runtime has launched the plugin and does not tell it of the containers that exist: in the
    /// background CRI is asked for them.
    pub fn unsynchronized(&self) {
        if let Some(session) = self.session.get() {
            session.unsynchronized();
        }
    }

    /// The node, once the plugin is configured.
    pub fn node(&self) -> Option<Arc<Node>> {
        self.session.get().map(|session| session.node.clone())
    }
}

/// What to say of a `hooks.wait` in which a hook can do nothing but look.
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

/// How long a hook may wait: as configured, but never so long that the runtime would give up on it.
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
            // A plugin that containerd 1.7 has launched and that does not register takes containerd
            // down with it. So it registers, for nothing.
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
        // NRI before 0.8 does not tell its timeout; containerd's file may.
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
        self.session.get_or_init(|| Session {
            request_timeout,
            ahead: Ahead::begin(&node),
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

/// Every hook, also for a pod of which nothing else is said: the node was held for so long.
fn answers(hook: &str, started: Instant) {
    log::trace!(hook, took_ms = logs::milliseconds(started.elapsed()); "answers");
}

impl Session {
    /// How long a hook may wait.
    fn wait(&self) -> Duration {
        let wait = self.node.config().hooks.wait.as_duration();
        bounded_wait(wait, self.request_timeout)
    }

    async fn run_pod_sandbox(&self, pod: &Pod) -> HandlerResult {
        let started = Instant::now();
        let deadline = started + self.wait();
        let place = match self.place(pod, deadline).await {
            Ok(Some(place)) => place,
            Ok(None) => return Ok(()),
            Err(why) => {
                let subject = Subject::sandbox(pod, "", "", started);
                subject.say(Verdict::Unresolved, None, NOTHING, &why);
                return Ok(());
            }
        };
        let prepared = async {
            if place.left_alone {
                return None;
            }
            let snapshotter = &place.snapshotter;
            self.ahead.pod_waits(snapshotter, &pod.id);
            Some(self.make_ready(pod, snapshotter, started, deadline).await)
        };
        // At the same time: images that take long leave no time for a second look.
        let judged = sandbox::judge(self, pod, &place, started, deadline);
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
        let place = match self.place(pod, deadline).await {
            Ok(Some(place)) => place,
            Ok(None) => return Ok(()),
            Err(why) => {
                let subject = Subject::creation(pod, container, "", started);
                subject.say(Verdict::Unresolved, None, NOTHING, &why);
                return Ok(());
            }
        };
        let snapshotter = place.snapshotter.as_str();
        if !place.left_alone {
            let image = image_name(container);
            self.ahead.container_comes(snapshotter, &pod.id, image);
        }
        let creation = Creation {
            pod,
            container,
            snapshotter,
            strictness: self.strictness(&place),
            started,
        };
        // The container's own chain is looked at after this, in the time that is left.
        let volumes_by = started + (deadline - started) / 2;
        volumes::judge(self, &creation, volumes_by).await?;
        let chain = match self.unknown_chain(&creation, deadline).await {
            ControlFlow::Continue(chain) => chain,
            ControlFlow::Break(answer) => return answer,
        };
        let want = Want::Container {
            key: container.id.clone(),
            chain: chain.clone(),
            name: image_name(container).map(str::to_owned),
            left_alone: place.left_alone,
        };
        let mut ticket = self.ensure(want, snapshotter, Urgency::Creation);
        let outcome = ticket.outcome_by(deadline).await;
        let Some(Err(error)) = &outcome else {
            return creation.verdict(outcome, &ticket);
        };
        self.node.engine.replace_if_in_use(error, snapshotter);
        match &**error {
            Error::InUse {
                onto: Some(onto), ..
            } if self.node.config().hooks.swap => {
                let wanted = Move {
                    snapshotter: snapshotter.to_owned(),
                    key: container.id.clone(),
                    from: chain,
                    onto: onto.clone(),
                };
                let until = SwapDeadlines {
                    usual: deadline,
                    last: started + bounded_wait(Duration::MAX, self.request_timeout),
                };
                let state = found(&ticket, &outcome);
                self.moved(&creation, wanted, until, state).await
            }
            _ => creation.verdict(outcome, &ticket),
        }
    }

    /// The chain that the container's own snapshot stands on, where that is not known to be ready; the
    /// hook's answer where it is, and where containerd does not say. One that is there and slow is not
    /// one that is lost.
    async fn unknown_chain(
        &self,
        creation: &Creation<'_>,
        deadline: Instant,
    ) -> ControlFlow<HandlerResult, String> {
        let container = creation.container;
        let engine = &self.node.engine;
        let standing = engine.parent_chain(
            creation.snapshotter,
            &container.id,
            image_name(container),
            creation.strictness.left_alone,
        );
        ControlFlow::Break(match tokio::time::timeout_at(deadline, standing).await {
            Ok(Ok(ParentChain::Unknown { chain })) => return ControlFlow::Continue(chain),
            Ok(Ok(ParentChain::Ready | ParentChain::Scratch)) => {
                creation.say(Verdict::Ready, Some(State::Ready), NOTHING, "known");
                Ok(())
            }
            Ok(Err(e)) => creation.doubted(Doubt::Unseen, None, &e.to_string()),
            Err(_) => {
                let why = "containerd did not answer in time";
                creation.doubted(Doubt::Unready, None, why)
            }
        })
    }

    fn ensure(&self, want: Want, snapshotter: &str, urgency: Urgency) -> Ticket {
        self.node.engine.ensure(Request {
            want,
            snapshotter: snapshotter.to_owned(),
            urgency,
        })
    }

    /// Where a pod's snapshots are, `None` where nothing of it has to be looked at; else why that is not
    /// known. A pod that is left to containerd is looked at where the snapshotter may hold empty layers.
    async fn place(&self, pod: &Pod, deadline: Instant) -> Result<Option<PodSnapshotter>, String> {
        let Some(handlers) = self.node.handlers_by(deadline).await else {
            return match is_skipped(pod) {
                true => Ok(None),
                false => Err("containerd has not answered yet: the snapshotter of the pod's handler is not known".to_owned()),
            };
        };
        let place = match PodSnapshotter::of(&self.node.config(), &handlers, pod) {
            Ok(place) => place,
            Err(_) if is_skipped(pod) => return Ok(None),
            Err(e) => return Err(e.to_string()),
        };
        let profile = self.node.engine.profile(&place.snapshotter);
        Ok(Some(place).filter(|place| !place.left_alone || profile.may_proxy))
    }

    fn strictness(&self, place: &PodSnapshotter) -> Strictness {
        Strictness {
            on_unready: self.node.config().hooks.on_unready,
            fails_closed: self.node.engine.profile(&place.snapshotter).fails_closed,
            left_alone: place.left_alone,
        }
    }
}

fn image_name(container: &Container) -> Option<&str> {
    container.annotations.get(IMAGE_NAME).map(String::as_str)
}
