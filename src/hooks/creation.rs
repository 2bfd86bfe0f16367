//! The verdict on a container that is being created: the only place that rejects a creation.

use nri::{Container, HandlerResult, Pod};
use tokio::time::Instant;

use crate::policy::{Doubt, Strictness, Unready};
use crate::printable::printable_within;
use crate::unpack::{Admission, Answer, Error, State};

use super::decision::{Did, NOTHING, Subject, Verdict, done_is, what};

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

    /// Answers for this admission. The only place with a verdict on the container's own image.
    pub(super) fn verdict(&self, admission: Admission) -> HandlerResult {
        let Admission { state, answer } = admission;
        let doubt = doubt(&answer, state);
        let why = match answer {
            Answer::Known => {
                self.say(Verdict::Ready, Some(State::Ready), NOTHING, "known");
                return Ok(());
            }
            Answer::Ready(done) => {
                self.say(done_is(&done), state, Did::Chain(done.action), &what(&done));
                return Ok(());
            }
            Answer::Moved { on_host } => {
                self.say(Verdict::Moved, state, Did::Swapped, cause(state, on_host));
                return Ok(());
            }
            Answer::Failed { error, .. } if error.is_left_to_containerd() => {
                let why = error.to_string();
                self.say(Verdict::LeftToContainerd, state, NOTHING, &why);
                return Ok(());
            }
            Answer::NotMoved { on_host, why } => format!("{}; {why}", cause(state, on_host)),
            Answer::WithoutSnapshot => "its snapshot was lost in the swap".to_owned(),
            Answer::GoesOn { layers: 0, .. } => "the unpack has not begun yet".to_owned(),
            Answer::GoesOn {
                ready_layers,
                layers,
            } => format!("{ready_layers} of {layers} layers are ready, the unpack goes on"),
            Answer::Failed { error, .. } => error.to_string(),
            Answer::Unseen(error) => error.to_string(),
            Answer::NoAnswer => "containerd did not answer in time".to_owned(),
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
fn doubt(answer: &Answer, state: Option<State>) -> Doubt {
    match answer {
        Answer::WithoutSnapshot => Doubt::Broken,
        Answer::Unseen(_) => Doubt::Unseen,
        _ if state == Some(State::Mixed) => Doubt::Broken,
        Answer::Failed { error, .. } if error.is_broken() => Doubt::Broken,
        // The image is not the cause.
        Answer::Failed { error, .. } if error.unreachable().is_some() => Doubt::Unseen,
        Answer::Failed { error, .. } => match &**error {
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

/// Returns why a container is moved onto another chain, which may be `on_host`.
fn cause(state: Option<State>, on_host: bool) -> &'static str {
    match (state == Some(State::Mixed), on_host) {
        (true, true) => {
            "its chain had host-unpacked layers on guest-pulled layers of another image; the guest does not \
             pull this image: the host has unpacked it again from the lowest layer"
        }
        (true, false) => "its chain had host-unpacked layers on guest-pulled layers",
        (false, _) => "it was unpacked on the host, and is in use",
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
