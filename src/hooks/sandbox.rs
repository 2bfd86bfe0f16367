//! The verdict on a sandbox, whose own snapshot is based on the pause image. It runs already when the hook is
//! called, so it cannot be moved. If it is broken, the pod is rejected, and its next try gets a new chain.

use nri::{HandlerResult, Pod};
use tokio::time::Instant;

use crate::unpack::{Answer, Candidate, CandidateKind, Error};

use super::creation::rejection;
use super::decision::{NOTHING, Subject, Verdict};
use super::{PodSnapshotter, Session};

/// Returns the verdict on a sandbox with host-unpacked layers on guest-pulled layers; `None` for all others. Takes
/// one round trip if the chain of the pause image is known.
pub(super) async fn judge(
    session: &Session,
    pod: &Pod,
    pod_snapshotter: &PodSnapshotter,
    started: Instant,
    deadline: Instant,
) -> Option<(Verdict, HandlerResult)> {
    let engine = &session.node.engine;
    let snapshotter = pod_snapshotter.snapshotter.as_str();
    if !engine.profile(snapshotter).may_proxy {
        return None;
    }
    let candidate = Candidate {
        snapshotter: snapshotter.to_owned(),
        key: pod.id.clone(),
        kind: CandidateKind::Sandbox,
    };
    let until = session.deadlines(started, deadline);
    let (error, is_held) = match engine.admit(&candidate, until).await.answer {
        Answer::Failed { error, is_held } if error.is_broken() => (error, is_held),
        Answer::NoAnswer => {
            log::warn!(sandbox = pod.id.as_str(), snapshotter; "sandbox not looked at in time; allowed");
            return None;
        }
        Answer::Unseen(e) => {
            log::debug!(sandbox = pod.id.as_str(), error:% = e; "sandbox's snapshot could not be looked up; allowed");
            return None;
        }
        _ => return None,
    };
    // Other sandboxes may use the chain for as long as they run: then the next try would be rejected as well. The same
    // holds for a chain that is left to containerd.
    let is_healed = matches!(*error, Error::InUse { .. }) && !is_held;
    let why = match is_held {
        true => format!(
            "{error}; other sandboxes use its chain: delete their pods, and the plugin replaces it"
        ),
        false => error.to_string(),
    };
    let (verdict, answer) = if is_healed {
        let rejected = rejection(snapshotter, &why);
        (Verdict::Rejected, Err(rejected.into()))
    } else {
        (Verdict::LetPass, Ok(()))
    };
    let subject = Subject::sandbox(pod, "", snapshotter, started);
    subject.note(verdict, error.state(), NOTHING, &why);
    Some((verdict, answer))
}
