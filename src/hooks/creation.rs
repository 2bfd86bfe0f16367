//! The verdict on a container that is being created: the only place that rejects a creation.

use nri::{Container, HandlerResult, Pod};
use tokio::time::Instant;

use crate::policy::{Doubt, Strictness, Unready};
use crate::printable::printable_within;
use crate::unpack::{Error, Outcome, Progress, State, Ticket};

use super::decision::{Did, NOTHING, Subject, Verdict, done_is, found, what};

/// The limit of the error of a rejected container, in bytes: Kubernetes cuts events at 1,024 characters.
const MAX_REJECTION: usize = 1024;

/// A container that is being created.
pub(super) struct Creation<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) snapshotter: &'a str,
    /// The rules for the verdict.
    pub(super) strictness: Strictness,
    pub(super) started: Instant,
}

impl Creation<'_> {
    /// Logs a decision and counts the hook's call.
    pub(super) fn say(&self, verdict: Verdict, state: Option<State>, did: Did, why: &str) {
        self.subject().say(verdict, state, did, why);
    }

    /// Logs a decision: the call is counted later.
    pub(super) fn note(&self, verdict: Verdict, state: Option<State>, did: Did, why: &str) {
        self.subject().note(verdict, state, did, why);
    }

    fn subject(&self) -> Subject<'_> {
        Subject::creation(self.pod, self.container, self.snapshotter, self.started)
    }

    /// Answers for this outcome of the request; `None` is an unpack that goes on.
    pub(super) fn verdict(&self, outcome: Option<Outcome>, ticket: &Ticket) -> HandlerResult {
        let state = found(ticket, &outcome);
        let doubt = doubt(&outcome, state);
        let why = match outcome {
            Some(Ok(done)) => {
                self.say(done_is(&done), state, Did::Chain(done.action), &what(&done));
                return Ok(());
            }
            Some(Err(e)) if e.is_left_to_containerd() => {
                self.say(Verdict::LeftToContainerd, state, NOTHING, &e.to_string());
                return Ok(());
            }
            Some(Err(e)) => e.to_string(),
            None => match ticket.progress() {
                Progress { layers: 0, .. } => "the unpack has not begun yet".to_owned(),
                Progress {
                    ready_layers,
                    layers,
                    ..
                } => {
                    format!("{ready_layers} of {layers} layers are ready, the unpack goes on")
                }
            },
        };
        self.doubted(doubt, state, &why)
    }

    /// Allows or rejects a container with a doubt.
    pub(super) fn doubted(&self, doubt: Doubt, state: Option<State>, why: &str) -> HandlerResult {
        match self.strictness.judge(doubt) {
            // The verdict on the container's own image follows, and is counted.
            Unready::Allow if doubt == Doubt::Volume => {
                self.note(Verdict::LetPass, state, NOTHING, why);
                Ok(())
            }
            Unready::Allow => {
                let verdict = match doubt {
                    _ if self.strictness.left_to_containerd => Verdict::LeftToContainerd,
                    Doubt::Unseen if state.is_none() => Verdict::Unseen,
                    _ => Verdict::LetPass,
                };
                self.say(verdict, state, NOTHING, why);
                Ok(())
            }
            Unready::Reject => {
                self.say(Verdict::Rejected, state, NOTHING, why);
                Err(rejection(self.snapshotter, why).into())
            }
        }
    }
}

/// Returns the doubt about a container whose image is not ready, with this state.
fn doubt(outcome: &Option<Outcome>, state: Option<State>) -> Doubt {
    match outcome {
        _ if state == Some(State::Mixed) => Doubt::Broken,
        Some(Err(e)) if e.is_broken() => Doubt::Broken,
        // The image is not the cause.
        Some(Err(e)) if e.unreachable().is_some() => Doubt::Unseen,
        Some(Err(e)) => match &**e {
            Error::Stopped(_) => Doubt::Unseen,
            Error::NoImage {
                is_copied: true, ..
            } => Doubt::Copy,
            Error::NoImage {
                foreign: Some(_), ..
            } => Doubt::Platform,
            _ => Doubt::Unready,
        },
        _ => Doubt::Unready,
    }
}

/// Returns the error of a rejected container, which the kubelet shows. The reason may be long, and may quote
/// text of an image: it is cut and made printable.
pub(super) fn rejection(snapshotter: &str, why: &str) -> String {
    let begin = format!("nri-unpack: the image is not ready in snapshotter {snapshotter}: ");
    let end = "; the kubelet will try again";
    let limit = MAX_REJECTION.saturating_sub(begin.len() + end.len());
    format!("{begin}{}{end}", printable_within(limit, why))
}
