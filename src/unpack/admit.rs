//! The one question of a hook about a container that is being created, or about a sandbox that has started: is the chain
//! that it is based on ready? If the chain cannot be repaired below it, the container is moved onto another one.

use std::sync::Arc;

use tokio::time::Instant;

use crate::containerd;

use super::engine::Engine;
use super::ready_cache::{ParentChain, SANDBOX};
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::State;
use crate::unpack::repair::swap::{SwapDeadlines, SwapOutcome};
use crate::unpack::schedule::priority::Urgency;
use crate::unpack::schedule::progress::{Done, Outcome, Ticket};
use crate::unpack::snapshotter::guest_pull::is_on_host;
use crate::unpack::target::request::{Move, Request, Want};

/// A container that is being created, or a sandbox that has started.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The snapshotter of its own snapshot.
    pub snapshotter: String,
    /// Its id, which is also the key of its snapshot.
    pub key: String,
    /// What it is.
    pub kind: CandidateKind,
}

/// What a candidate is.
#[derive(Clone, Debug)]
pub enum CandidateKind {
    /// A container.
    Container {
        /// The image name in its annotation: a hint.
        image: Option<String>,
        /// Its pod is left to containerd: only whether it can start from the chain is checked.
        left_to_containerd: bool,
        /// It may be moved onto another chain (`hooks.swap`).
        may_move: bool,
    },
    /// A sandbox. It runs already, so its chain is only checked.
    Sandbox,
}

/// The answer about a candidate.
#[derive(Clone, Debug)]
pub struct Admission {
    /// The state of the chain as it was found; `None` if the chain was not looked at.
    pub state: Option<State>,
    /// What is true of the chain when the answer is given.
    pub answer: Answer,
}

/// What is true of a candidate's chain when the answer is given.
#[derive(Clone, Debug)]
pub enum Answer {
    /// It is known to be ready, or the candidate has no chain.
    Known,
    /// It is ready.
    Ready(Done),
    /// It is not, and the container was moved onto another chain.
    Moved {
        /// The other chain was unpacked on the host, since the guest does not pull the image.
        on_host: bool,
    },
    /// It is not, and the container was not moved onto another chain, for this reason.
    NotMoved {
        /// The other chain was unpacked on the host.
        on_host: bool,
        /// Why nothing was changed.
        why: String,
    },
    /// The container has no snapshot, or may have none: a move has failed.
    WithoutSnapshot,
    /// It is not ready yet, and the work goes on.
    GoesOn {
        /// The layers that are ready.
        ready_layers: usize,
        /// The layers of the image; 0 while their number is not known.
        layers: usize,
    },
    /// It cannot be made ready now.
    Failed {
        /// The reason.
        error: Arc<Error>,
        /// It is in use by a container that is not a short-lived one.
        is_held: bool,
    },
    /// The candidate's own snapshot could not be looked up.
    Unseen(containerd::Error),
    /// containerd did not answer in time.
    NoAnswer,
}

impl Answer {
    fn without_state(self) -> Admission {
        Admission {
            state: None,
            answer: self,
        }
    }
}

impl Candidate {
    fn name(&self) -> Option<&str> {
        match &self.kind {
            CandidateKind::Container { image, .. } => image.as_deref(),
            CandidateKind::Sandbox => Some(SANDBOX),
        }
    }

    fn left_to_containerd(&self) -> bool {
        match self.kind {
            CandidateKind::Container {
                left_to_containerd, ..
            } => left_to_containerd,
            CandidateKind::Sandbox => true,
        }
    }

    fn request(&self, chain: String) -> Request {
        let key = self.key.clone();
        let want = match &self.kind {
            CandidateKind::Container {
                image,
                left_to_containerd,
                ..
            } => Want::Container {
                key,
                chain,
                name: image.clone(),
                left_to_containerd: *left_to_containerd,
            },
            CandidateKind::Sandbox => Want::Sandbox { key, chain },
        };
        Request {
            want,
            snapshotter: self.snapshotter.clone(),
            urgency: Urgency::Creation,
        }
    }
}

impl Engine {
    /// Answers whether the chain of a candidate is ready, and does what makes it ready until the deadline. The work goes on
    /// after it. Takes one round trip if the chain is known to be ready.
    pub async fn admit(self: &Arc<Self>, candidate: &Candidate, until: SwapDeadlines) -> Admission {
        let chain = match self.unknown_chain(candidate, until.usual).await {
            Ok(chain) => chain,
            Err(answer) => return answer.without_state(),
        };
        let mut ticket = self.ensure(candidate.request(chain.clone()));
        let outcome = ticket.outcome_by(until.usual).await;
        let state = found(&ticket, &outcome);
        let answer = match outcome {
            Some(Ok(done)) => Answer::Ready(done),
            Some(Err(error)) => {
                let onto = ticket.progress().onto;
                self.not_ready(candidate, chain, error, onto, until).await
            }
            None => {
                let progress = ticket.progress();
                Answer::GoesOn {
                    ready_layers: progress.ready_layers,
                    layers: progress.layers,
                }
            }
        };
        Admission { state, answer }
    }

    /// Returns the chain that the candidate is based on, if it is not known to be ready; else the answer. A containerd that
    /// does not answer in time is not treated as one that cannot be reached.
    async fn unknown_chain(
        &self,
        candidate: &Candidate,
        deadline: Instant,
    ) -> Result<String, Answer> {
        let parent_chain = self.parent_chain(
            &candidate.snapshotter,
            &candidate.key,
            candidate.name(),
            candidate.left_to_containerd(),
        );
        match tokio::time::timeout_at(deadline, parent_chain).await {
            Ok(Ok(ParentChain::Unknown { chain })) => Ok(chain),
            Ok(Ok(ParentChain::Ready | ParentChain::Scratch)) => Err(Answer::Known),
            Ok(Err(e)) => Err(Answer::Unseen(e)),
            Err(_) => Err(Answer::NoAnswer),
        }
    }

    /// Handles a chain that was not made ready: has it replaced later, and moves the container onto the chain that was made
    /// for it, if there is one.
    async fn not_ready(
        self: &Arc<Self>,
        candidate: &Candidate,
        chain: String,
        error: Arc<Error>,
        onto: Option<String>,
        until: SwapDeadlines,
    ) -> Answer {
        let snapshotter = candidate.snapshotter.as_str();
        let is_held = self.is_held(&error, snapshotter);
        self.replace_if_in_use(&error, snapshotter);
        let may_move = matches!(
            candidate.kind,
            CandidateKind::Container { may_move: true, .. }
        );
        let is_in_use = matches!(*error, Error::InUse { .. });
        let Some(onto) = onto.filter(|_| may_move && is_in_use) else {
            return Answer::Failed { error, is_held };
        };
        let on_host = is_on_host(&onto);
        let wanted = Move {
            snapshotter: snapshotter.to_owned(),
            key: candidate.key.clone(),
            from: chain,
            onto,
        };
        match self.swap(wanted, until).await {
            SwapOutcome::Done => Answer::Moved { on_host },
            SwapOutcome::Untouched(why) => Answer::NotMoved { on_host, why },
            SwapOutcome::Lost => Answer::WithoutSnapshot,
        }
    }
}

/// Returns the state of the chain before the work on it.
pub fn found(ticket: &Ticket, outcome: &Option<Outcome>) -> Option<State> {
    let failed = || match outcome {
        Some(Err(e)) => e.state(),
        _ => None,
    };
    ticket.progress().found.or_else(failed)
}
