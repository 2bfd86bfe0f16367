//! Makes the images that a new pod needs ready, before its containers are created.

use nri::Pod;
use tokio::time::Instant;

use crate::policy;
use crate::unpack::{Outcome, Urgency, Want, found};

use super::Session;
use super::decision::{Did, NOTHING, Name, Subject, Verdict, done_is, what};

impl Session {
    /// Makes the images ready that the pod names, and waits for them until the deadline. The pod may need images that are
    /// on their way as well: their priority is raised, and the hook does not wait for them.
    pub(super) async fn make_ready(
        &self,
        pod: &Pod,
        snapshotter: &str,
        started: Instant,
        deadline: Instant,
    ) -> Verdict {
        let ask = |want: Want| {
            let name = want.name().to_owned();
            (name, self.ensure(want, snapshotter, Urgency::Asked))
        };
        // All requests are sent before the first is waited for.
        let tickets: Vec<_> = named(pod).into_iter().map(ask).collect();
        self.ahead.raise(snapshotter);
        let mut verdict = Verdict::Ready;
        for (image, mut ticket) in tickets {
            let outcome = ticket.outcome_by(deadline).await;
            match &outcome {
                Some(Ok(_)) => self.ahead.is_ready(snapshotter, &image),
                Some(Err(e)) => self.node.engine.replace_if_in_use(e, snapshotter),
                None => {}
            }
            let (of_image, did, why) = prepared(&outcome);
            if matches!(of_image, Verdict::LetPass | Verdict::GoesOn) {
                verdict = Verdict::LetPass;
            }
            let subject = Subject::sandbox(pod, &image, snapshotter, started);
            subject.note(of_image, found(&ticket, &outcome), did, &why);
        }
        verdict
    }
}

/// Returns the images that the pod's annotation names.
fn named(pod: &Pod) -> Vec<Want> {
    let annotation = pod.annotations.get(policy::IMAGES);
    let (names, ignored) = policy::annotated_images(annotation.map_or("", String::as_str));
    if ignored > 0 {
        log::warn!(pod:% = Name(pod), left_out = ignored; "annotation {} has too many names, or names that are no image reference: these are ignored", policy::IMAGES);
    }
    let names = names.into_iter();
    names.map(|name| Want::Image(name.to_owned())).collect()
}

/// Returns the verdict on one of a pod's images at the deadline.
fn prepared(outcome: &Option<Outcome>) -> (Verdict, Did, String) {
    match outcome {
        Some(Ok(done)) => (done_is(done), Did::Chain(done.action), what(done)),
        Some(Err(e)) if e.is_left_to_containerd() => {
            (Verdict::LeftToContainerd, NOTHING, e.to_string())
        }
        Some(Err(e)) => (Verdict::LetPass, NOTHING, e.to_string()),
        None => (Verdict::GoesOn, NOTHING, "the unpack goes on".to_owned()),
    }
}
