//! The context that a flight shares with the executor of its plans.

use std::collections::HashSet;
use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::containerd::Containerd;

use super::removal::Record;
use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::ChainStatus;
use crate::unpack::layer::fallback::ContentFallback;
use crate::unpack::repair::lost::Collections;
use crate::unpack::schedule::last_look::LastLook;
use crate::unpack::schedule::limits::Layers;
use crate::unpack::schedule::place::Places;
use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::progress::Reporter;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::target::Target;
use crate::unpack::target::images::Images;

/// The target, and what is needed to change it.
pub(crate) struct FlightContext<'a> {
    pub(crate) target: &'a Target,
    pub(crate) images: &'a Images,
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) leases: &'a Arc<Leases>,
    /// Bounds the images that are unpacked at the same time. Other steps need no place.
    pub(crate) places: &'a Places,
    pub(crate) layers: &'a Layers,
    pub(crate) last_look: LastLook,
    pub(crate) priority: &'a Priority,
    pub(crate) fallback: &'a ContentFallback,
    pub(crate) collections: &'a Collections,
    pub(crate) reporter: &'a Reporter,
    /// Checks whether the image still has a record.
    pub(crate) record: &'a Record<'a>,
    pub(crate) stop: &'a CancellationToken,
}

/// What a flight has done so far.
#[derive(Debug, Default)]
pub(crate) struct Work {
    /// The action to report: the greatest so far.
    pub(crate) action: Action,
    /// The positions of the layers that were changed, each once.
    pub(crate) layers: HashSet<usize>,
}

impl Work {
    pub(crate) fn did(&mut self, action: Action) {
        self.action = self.action.max(action);
    }
}

impl FlightContext<'_> {
    pub(crate) fn report(&self, status: &ChainStatus, more: usize) {
        let ready = status.ready_layers(&self.target.rules) + more;
        self.reporter.layers(ready, status.layers.len());
    }

    pub(crate) fn stopped(&self) -> Error {
        Error::Stopped(self.target.image.clone())
    }

    pub(crate) fn removed(&self) -> Error {
        Error::Removed(self.target.image.clone())
    }
}
