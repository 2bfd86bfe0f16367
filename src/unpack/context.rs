//! What a flight and the steps of its plan share: the target, the means to change it, and what was done so far.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::containerd::Containerd;

use super::gate::{Gate, Hurry};
use super::lease::Leases;
use super::limits::Layers;
use super::missing::Missing;
use super::progress::Reporter;
use super::removed::Record;
use super::target::Target;
use super::{Action, Error, Sight};

/// What the work on one target needs.
pub(super) struct FlightContext<'a> {
    pub(super) target: &'a Target,
    pub(super) containerd: &'a dyn Containerd,
    pub(super) leases: &'a Arc<Leases>,
    /// Where an unpack waits for its turn. Nothing else does.
    pub(super) gate: &'a Gate,
    pub(super) layers: &'a Layers,
    pub(super) hurry: &'a Hurry,
    pub(super) missing: &'a Missing,
    pub(super) reporter: &'a Reporter,
    /// Whether the image is still there.
    pub(super) record: &'a Record<'a>,
    pub(super) stop: &'a CancellationToken,
}

/// What a flight has done so far.
#[derive(Debug, Default)]
pub(super) struct Work {
    /// Of several things the one that says most.
    pub(super) action: Action,
    /// Each once, however often it was worked on.
    pub(super) layers: HashSet<usize>,
}

impl Work {
    pub(super) fn did(&mut self, action: Action) {
        self.action = self.action.max(action);
    }
}

impl FlightContext<'_> {
    pub(super) fn report(&self, sight: &Sight, more: usize) {
        let ready = sight.ready_layers(&self.target.rules) + more;
        self.reporter.layers(ready, sight.layers.len());
    }

    pub(super) fn stopped(&self) -> Error {
        Error::Stopped(self.target.image.clone())
    }

    pub(super) fn removed(&self) -> Error {
        Error::Removed(self.target.image.clone())
    }
}
