//! The decisions of hooks: one log line and one count for each. All lines have the same keys.

use std::fmt;
use std::time::Duration;

use log::Level;
use nri::{Container, Pod};
use tokio::time::Instant;

use crate::logs;
use crate::metrics;
use crate::unpack::{Action, Done, State};

use super::image_name;

/// The log target of decisions, independent of this file's name.
const TARGET: &str = "nri_unpack::hooks";

/// A hook of NRI.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hook {
    RunPodSandbox,
    CreateContainer,
}

/// The decision about a creation, a sandbox, or one of a pod's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The chain was ready.
    Ready,
    MadeReady,
    Moved,
    /// The layers were applied into a volume.
    Filled,
    LeftToContainerd,
    Unseen,
    /// Allowed: the snapshotter is not known.
    Unresolved,
    LetPass,
    /// Allowed, and the work goes on.
    GoesOn,
    Rejected,
}

/// No action: the case for most decisions.
pub(super) const NOTHING: Did = Did::Chain(Action::None);

/// What was done before the decision.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Did {
    /// An action on the chain, or none.
    Chain(Action),
    /// The container was moved onto another chain.
    Swapped,
    /// Its volume was filled.
    Filled,
}

/// What a hook decides about.
pub(super) struct Subject<'a> {
    pub(super) hook: Hook,
    pub(super) pod: &'a Pod,
    /// Empty for a pod.
    pub(super) container: &'a str,
    pub(super) image: &'a str,
    /// Empty where it is not known.
    pub(super) snapshotter: &'a str,
    /// When the hook was called.
    pub(super) started: Instant,
}

/// A pod's name with its namespace.
pub(super) struct Name<'a>(pub(super) &'a Pod);

impl Hook {
    /// Returns NRI's name of the hook.
    fn word(self) -> &'static str {
        match self {
            Self::RunPodSandbox => "RunPodSandbox",
            Self::CreateContainer => "CreateContainer",
        }
    }

    /// Counts a call.
    pub(super) fn count(self, verdict: Verdict, took: Duration) {
        metrics::hook(self.word(), verdict.word(), took);
    }
}

impl Verdict {
    /// Returns the word in logs and metrics.
    fn word(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::MadeReady => "made_ready",
            Self::Moved => "moved",
            Self::Filled => "filled",
            Self::LeftToContainerd => "left_out",
            Self::Unseen => "unseen",
            Self::Unresolved | Self::LetPass | Self::GoesOn => "let_pass",
            Self::Rejected => "rejected",
        }
    }

    /// Returns the level and the message of the log line. A ready image logs at debug.
    fn log_line(self, hook: Hook) -> (Level, &'static str) {
        use Hook::{CreateContainer, RunPodSandbox};
        match (self, hook) {
            (Self::Ready, CreateContainer) => (Level::Debug, "image is ready"),
            (Self::Ready, RunPodSandbox) => (Level::Debug, "pod's image is ready"),
            (Self::MadeReady, CreateContainer) => (Level::Info, "image made ready"),
            (Self::MadeReady, RunPodSandbox) => (Level::Info, "pod's image made ready"),
            (Self::Moved, _) => (Level::Info, "container moved onto a private chain"),
            (Self::Filled, _) => (Level::Info, "image volume filled"),
            (Self::LeftToContainerd, CreateContainer) => (Level::Debug, "image left to containerd"),
            (Self::LeftToContainerd, RunPodSandbox) => {
                (Level::Info, "pod's image is left to containerd")
            }
            (Self::Unseen, _) => (
                Level::Warn,
                "container's snapshot could not be looked up; allowed",
            ),
            (Self::Unresolved, _) => (Level::Warn, "pod's snapshotter is not known; allowed"),
            (Self::LetPass | Self::GoesOn, CreateContainer) => {
                (Level::Warn, "image not ready; allowed")
            }
            (Self::LetPass, RunPodSandbox) => (Level::Warn, "pod's image cannot be made ready"),
            (Self::GoesOn, RunPodSandbox) => (Level::Info, "pod's image is still being unpacked"),
            (Self::Rejected, CreateContainer) => (Level::Warn, "image not ready; rejected"),
            (Self::Rejected, RunPodSandbox) => (Level::Warn, "sandbox is broken; rejected"),
        }
    }
}

pub(super) fn done_is(done: &Done) -> Verdict {
    match done.action {
        Action::None => Verdict::Ready,
        _ => Verdict::MadeReady,
    }
}

pub(super) fn what(done: &Done) -> String {
    match done.action {
        Action::None => "found ready".to_owned(),
        action => format!("{} of {} layers {action}", done.layers_done, done.layers),
    }
}

impl fmt::Display for Did {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Chain(action) => action.fmt(f),
            Self::Swapped => f.write_str("swapped"),
            Self::Filled => f.write_str("filled"),
        }
    }
}

impl fmt::Display for Name<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.0.namespace, self.0.name)
    }
}

impl<'a> Subject<'a> {
    /// A container that is being created.
    pub(super) fn creation(
        pod: &'a Pod,
        container: &'a Container,
        snapshotter: &'a str,
        started: Instant,
    ) -> Self {
        Self {
            hook: Hook::CreateContainer,
            pod,
            container: &container.name,
            image: image_name(container).unwrap_or_default(),
            snapshotter,
            started,
        }
    }

    /// A pod that is being started, or one of its images.
    pub(super) fn sandbox(
        pod: &'a Pod,
        image: &'a str,
        snapshotter: &'a str,
        started: Instant,
    ) -> Self {
        Self {
            hook: Hook::RunPodSandbox,
            pod,
            container: "",
            image,
            snapshotter,
            started,
        }
    }

    /// Logs a decision and counts the hook's call. `state` is as it was found; `None` where it was not seen.
    pub(super) fn say(&self, verdict: Verdict, state: Option<State>, did: Did, why: &str) {
        self.note(verdict, state, did, why);
        self.hook.count(verdict, self.started.elapsed());
    }

    /// Logs a decision: the call is counted later.
    pub(super) fn note(&self, verdict: Verdict, state: Option<State>, did: Did, why: &str) {
        let (level, message) = verdict.log_line(self.hook);
        let state = state.map(|state| state.to_string());
        log::log!(
            target: TARGET,
            level,
            pod:% = Name(self.pod),
            container = self.container,
            image = self.image,
            snapshotter = self.snapshotter,
            state = state.as_deref().unwrap_or("unknown"),
            action:% = did,
            verdict = verdict.word(),
            hook = self.hook.word(),
            took_ms = logs::milliseconds(self.started.elapsed()),
            why;
            "{message}"
        );
    }
}
