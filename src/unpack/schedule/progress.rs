//! What a caller sees of work that goes on without it: a ticket.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::State;

/// What was done to make a chain ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Done {
    /// The name of the image's record.
    pub image: String,
    /// What it was before.
    pub found: State,
    /// Of several things the one that says most.
    pub action: Action,
    /// Layers that were unpacked or relabelled.
    pub layers_done: usize,
    /// Layers that stayed below it as the host has unpacked them, since something else uses them. To
    /// whoever mounts the chain they make no difference.
    pub layers_kept: usize,
    /// Layers of the image.
    pub layers: usize,
}

/// How it ended. An error is shared by all who waited.
pub type Outcome = Result<Done, Arc<Error>>;

/// How an `ensure` ended, for metrics.
pub(crate) fn word(outcome: &Outcome) -> &'static str {
    match outcome {
        Ok(done) => done.action.word(),
        Err(e) => match &**e {
            e if e.is_left_out() => "left_out",
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
    /// What the chain was before the work; `None` while nobody has looked.
    pub found: Option<State>,
    /// Layers of the image; 0 while it is not known yet.
    pub layers: usize,
    /// Layers that are ready.
    pub ready_layers: usize,
    /// What this work has got done: the blobs of the layers that it made ready, in bytes, compressed
    /// as they are.
    pub bytes: u64,
    /// It does not end before, as far as that can be told.
    pub earliest: Option<Instant>,
    /// `None` while it goes on.
    pub outcome: Option<Outcome>,
}

/// A claim on a piece of work. Dropping it does not stop the work.
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

    /// Waits until `deadline` at most, and no longer than it may end by then; `None` when it goes on
    /// after that.
    pub async fn outcome_by(&mut self, deadline: Instant) -> Option<Outcome> {
        let ends_later = |p: &Progress| p.earliest.is_some_and(|earliest| earliest > deadline);
        let told = self
            .progress
            .wait_for(|p| p.outcome.is_some() || ends_later(p));
        let told = tokio::time::timeout_at(deadline, told).await.ok()?;
        if told.is_ok_and(|p| p.outcome.is_none()) {
            return None;
        }
        Some(self.outcome().await)
    }

    /// How far the work is now.
    pub fn progress(&self) -> Progress {
        self.progress.borrow().clone()
    }

    /// Waits for news; `false` when there will be none any more. Cancel safe.
    pub async fn changed(&mut self) -> bool {
        self.progress.changed().await.is_ok()
    }
}

/// The working side of a ticket.
#[derive(Debug)]
pub(crate) struct Reporter(watch::Sender<Progress>);

impl Reporter {
    /// A reporter and the first ticket of work on `subject`.
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

    /// It does not end before this.
    pub(crate) fn not_before(&self, earliest: Instant) {
        self.0
            .send_modify(|p| p.earliest = p.earliest.max(Some(earliest)));
    }

    pub(crate) fn end(self, outcome: Outcome) {
        self.0.send_modify(|p| p.outcome = Some(outcome));
    }

    /// Passes on what another piece of work reports, to its end.
    pub(crate) async fn follow(self, other: Ticket) {
        let outcome = self.watch(other, true).await;
        self.end(outcome);
    }

    /// The same up to the outcome, which is answered. What the other found is passed on where
    /// `found_counts`.
    pub(crate) async fn watch(&self, mut other: Ticket, found_counts: bool) -> Outcome {
        loop {
            let progress = other.progress.borrow_and_update().clone();
            if let Some(state) = progress.found.filter(|_| found_counts) {
                self.found(state);
            }
            self.layers(progress.ready_layers, progress.layers);
            self.bytes(progress.bytes);
            if let Some(earliest) = progress.earliest {
                self.not_before(earliest);
            }
            if progress.outcome.is_some() || !other.changed().await {
                return other.outcome().await;
            }
        }
    }
}
