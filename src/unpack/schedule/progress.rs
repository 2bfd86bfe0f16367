//! The progress of work, which its callers follow with a ticket. The work continues without them.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::State;

/// The result of work that made a chain ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The name of the image's record.
    pub image: String,
    /// The state before the work.
    pub found: State,
    /// The action; of several actions, the last one in the order of [`Action`].
    pub action: Action,
    /// Layers that were unpacked or relabelled.
    pub layers_done: usize,
    /// Host-unpacked layers of a guest-pulled chain that stayed, since something else uses them. They make no
    /// difference to a mount of the chain.
    pub layers_kept: usize,
    /// Layers of the image.
    pub layers: usize,
}

/// The result of the work. All its callers share the error.
pub type Outcome = Result<Done, Arc<Error>>;

/// Returns the value of the label `outcome` in the metrics.
pub(crate) fn outcome_label(outcome: &Outcome) -> &'static str {
    match outcome {
        Ok(done) => done.action.word(),
        Err(e) => match &**e {
            e if e.is_left_to_containerd() => "left_out",
            e if e.is_broken() => "broken",
            Error::InUse { .. } => "in_use",
            Error::Unavailable { .. } => "unavailable",
            Error::Stopped(_) => "stopped",
            Error::Removed(_) => "removed",
            _ => "failed",
        },
    }
}

/// How far the work is.
#[derive(Clone, Debug, Default)]
pub struct Progress {
    /// The state of the chain before the work; `None` while it is not known.
    pub found: Option<State>,
    /// Layers of the image; 0 while their number is not known.
    pub layers: usize,
    /// Layers that are ready.
    pub ready_layers: usize,
    /// The size of the (compressed) blobs of the layers that this work has made ready, in bytes.
    pub bytes: u64,
    /// The estimated earliest end of the work.
    pub earliest: Option<Instant>,
    /// The work waits for something that did not answer before.
    pub is_stalled: bool,
    /// Every layer was committed before the work, which notices that soon.
    pub is_committed: bool,
    /// The private chain that was made for a container that is being created, since its own chain is in use: the container
    /// can be moved onto it.
    pub onto: Option<String>,
    /// The result; `None` while the work is running.
    pub outcome: Option<Outcome>,
}

/// A handle on running work. Dropping it does not stop the work.
#[derive(Clone, Debug)]
pub struct Ticket {
    subject: String,
    progress: watch::Receiver<Progress>,
}

impl Ticket {
    /// Waits for the end of the work. Cancel safe.
    pub async fn outcome(&mut self) -> Outcome {
        let ended = self.progress.wait_for(|p| p.outcome.is_some()).await;
        let outcome = ended.ok().and_then(|p| p.outcome.clone());
        outcome.unwrap_or_else(|| Err(Arc::new(Error::Died(self.subject.clone()))))
    }

    /// Waits for the end of the work until `deadline`; `None` if the work is still running then. Returns `None` at once
    /// if the estimated earliest end is later than `deadline`, or if the work is stalled and layers are missing.
    pub async fn outcome_by(&mut self, deadline: Instant) -> Option<Outcome> {
        let ends_later = |p: &Progress| {
            let is_stalled = p.is_stalled && !p.is_committed;
            is_stalled || p.earliest.is_some_and(|earliest| earliest > deadline)
        };
        let changed = self
            .progress
            .wait_for(|p| p.outcome.is_some() || ends_later(p));
        let progress = tokio::time::timeout_at(deadline, changed).await.ok()?;
        if progress.is_ok_and(|p| p.outcome.is_none()) {
            return None;
        }
        Some(self.outcome().await)
    }

    /// Returns the current progress.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for a change of the progress; `false` after the last one. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.progress.changed().await.is_ok()
    }
}

/// The working side of a ticket.
#[derive(Debug)]
pub(crate) struct Reporter(watch::Sender<Progress>);

impl Reporter {
    /// Returns a reporter and the first ticket of work on `subject`.
    pub(crate) fn new(subject: &str) -> (Self, Ticket) {
        let (sender, progress) = watch::channel(Progress::default());
        let subject = subject.to_owned();
        (Self(sender), Ticket { subject, progress })
    }

    pub(crate) fn layers(&self, ready_layers: usize, layers: usize) {
        self.0.send_modify(|p| {
            p.ready_layers = ready_layers;
            p.layers = layers;
        });
    }

    pub(crate) fn found(&self, state: State) {
        self.0.send_modify(|p| p.found = Some(state));
    }

    pub(crate) fn bytes(&self, bytes: u64) {
        self.0.send_modify(|p| p.bytes = bytes);
    }

    /// Reports that the work does not end before this time, if that is later than reported before.
    pub(crate) fn not_before(&self, earliest: Instant) {
        self.0
            .send_modify(|p| p.earliest = p.earliest.max(Some(earliest)));
    }

    /// Reports whether the work waits for something that did not answer before.
    pub(crate) fn stalls(&self, is_stalled: bool) {
        self.0.send_if_modified(|p| {
            let was_stalled = std::mem::replace(&mut p.is_stalled, is_stalled);
            was_stalled != is_stalled
        });
    }

    /// Reports that every layer is committed, so that the work lacks only labels.
    pub(crate) fn all_committed(&self) {
        self.0.send_modify(|p| p.is_committed = true);
    }

    /// Reports the private chain onto which a container that is being created can be moved.
    pub(crate) fn onto(&self, chain: String) {
        self.0.send_modify(|p| p.onto = Some(chain));
    }

    pub(crate) fn end(self, outcome: Outcome) {
        self.0.send_modify(|p| p.outcome = Some(outcome));
    }

    /// Forwards the progress of other work until its end, and returns its result. The state that the other work found
    /// is forwarded only with `found_counts`.
    pub(crate) async fn watch(&self, mut other: Ticket, found_counts: bool) -> Outcome {
        loop {
            let progress = other.progress.borrow_and_update().clone();
            if let Some(state) = progress.found.filter(|_| found_counts) {
                self.found(state);
            }
            self.layers(progress.ready_layers, progress.layers);
            self.bytes(progress.bytes);
            self.stalls(progress.is_stalled);
            if let Some(earliest) = progress.earliest {
                self.not_before(earliest);
            }
            if let Some(chain) = progress.onto {
                self.onto(chain);
            }
            if progress.outcome.is_some() || !other.changed().await {
                return other.outcome().await;
            }
        }
    }
}
