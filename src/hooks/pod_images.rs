//! Makes the images that a new pod may need ready, before its containers are created.

use nri::Pod;
use tokio::time::Instant;

use crate::policy;
use crate::unpack::{Outcome, Urgency, Want, found};

use super::Session;
use super::decision::{Did, NOTHING, Name, Subject, Verdict, done_is, what};

impl Session {
    /// Makes the pod's images ready, and waits for them until the deadline.
    pub(super) async fn make_ready(
        &self,
        pod: &Pod,
        snapshotter: &str,
        started: Instant,
        deadline: Instant,
    ) -> Verdict {
        let wants = self.wants(pod, snapshotter);
        let ask = |want: Want| {
            let name = want.name().to_owned();
            (name, self.ensure(want, snapshotter, Urgency::Asked))
        };
        // All requests are sent before the first is waited for.
        let tickets: Vec<_> = wants.into_iter().map(ask).collect();
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

    /// Returns the images that a new pod may need: those that its annotation names, then the newest of those that are
    /// being made ready in its snapshotter.
    fn wants(&self, pod: &Pod, snapshotter: &str) -> Vec<Want> {
        let annotation = pod.annotations.get(policy::IMAGES);
        let (names, ignored) = policy::annotated_images(annotation.map_or("", String::as_str));
        if ignored > 0 {
            log::warn!(pod:% = Name(pod), left_out = ignored; "annotation {} has too many names, or names that are no image reference: these are ignored", policy::IMAGES);
        }
        let named = names.into_iter().map(|name| Want::Image(name.to_owned()));
        named.chain(self.ahead.unready_in(snapshotter)).collect()
    }
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
