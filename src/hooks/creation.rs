//! The verdict on a container that is being created: the one place where a creation fails.

use nri::{Container, HandlerResult, Pod};
use tokio::time::Instant;

use crate::policy::Unready;
use crate::unpack::{Error, Outcome, Progress, State, Ticket};

use super::decision::{Decision, Did, Hook, NOTHING, Verdict, done_is, found, what};
use super::image_name;

/// Bytes of the error that a rejected container gets: it is stored with the pod, and events are cut at
/// 1,024 characters.
const MAX_REJECTION: usize = 1024;

/// A container that is being created.
pub(super) struct Creation<'a> {
    pub(super) pod: &'a Pod,
    pub(super) container: &'a Container,
    pub(super) snapshotter: &'a str,
    pub(super) started: Instant,
}

impl Creation<'_> {
    /// One line and one count.
    pub(super) fn say(&self, verdict: Verdict, state: Option<State>, did: Did, why: &str) {
        let hook = Hook::CreateContainer;
        let decision = Decision {
            hook,
            pod: self.pod,
            container: &self.container.name,
            image: image_name(self.container).unwrap_or_default(),
            snapshotter: self.snapshotter,
            state,
            did,
            verdict,
            took: self.started.elapsed(),
            why,
        };
        hook.count(verdict, decision.took);
        decision.say();
    }

    /// `None` is an unpack that goes on.
    pub(super) fn verdict(
        &self,
        outcome: Option<Outcome>,
        ticket: &Ticket,
        unready: Unready,
    ) -> HandlerResult {
        let state = found(ticket, &outcome);
        let why = match outcome {
            Some(Ok(done)) => {
                self.say(done_is(&done), state, Did::Chain(done.action), &what(&done));
                return Ok(());
            }
            Some(Err(e)) if e.is_left_out() => {
                self.say(Verdict::LeftOut, state, NOTHING, &e.to_string());
                return Ok(());
            }
            // Nobody's image is at fault, and the creation will meet the same containerd.
            Some(Err(e)) if e.unreachable().is_some() || matches!(&*e, Error::Stopped(_)) => {
                return self.unready(Unready::Allow, state, &e.to_string());
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
        self.unready(unready, state, &why)
    }

    pub(super) fn unready(
        &self,
        unready: Unready,
        state: Option<State>,
        why: &str,
    ) -> HandlerResult {
        match unready {
            Unready::Allow => {
                self.say(Verdict::LetPass, state, NOTHING, why);
                Ok(())
            }
            Unready::Reject => {
                self.say(Verdict::Rejected, state, NOTHING, why);
                Err(rejection(self.snapshotter, why).into())
            }
        }
    }
}

/// What the kubelet shows of a rejected container. The reason may be long: its end is cut off.
pub(super) fn rejection(snapshotter: &str, why: &str) -> String {
    let begin = format!("nri-unpack: the image is not ready in snapshotter {snapshotter}: ");
    let end = "; the kubelet will try again";
    let room = MAX_REJECTION.saturating_sub(begin.len() + end.len());
    if why.len() <= room {
        return format!("{begin}{why}{end}");
    }
    let cut = "…";
    let room = room.saturating_sub(cut.len());
    let whole = why.char_indices().map(|(at, _)| at);
    let at = whole.take_while(|at| *at <= room).last().unwrap_or(0);
    format!("{begin}{}{cut}{end}", &why[..at])
}
