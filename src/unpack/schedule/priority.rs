//! How urgent a piece of work is, and which of two pieces of work goes first.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// Who waits for a piece of work; the later overtakes the earlier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Urgency {
    /// Nobody.
    Background,
    /// Nobody yet, but the image has just come: a pod that it was pulled for is near.
    Arrived,
    /// A pod that will need it, or a person.
    Asked,
    /// A container that is being created: the whole node waits with it.
    Creation,
}

impl Urgency {
    /// Who asked, for metrics.
    pub(crate) fn trigger(self) -> &'static str {
        match self {
            Self::Background => "reconcile",
            Self::Arrived => "event",
            Self::Asked => "asked",
            Self::Creation => "creation",
        }
    }
}

/// The urgency of a flight, which rises when somebody joins it who is in more of a hurry; and since
/// when it has that: of two that are as urgent, the one that became so first goes first. Whoever asks for
/// several asks in the order in which they are wanted.
#[derive(Clone, Debug)]
pub(crate) struct Priority(Arc<AtomicU64>);

/// Bits below the urgency: they count down with each that is asked for.
const SINCE: u32 = 56;

impl Priority {
    pub(crate) fn new(urgency: Urgency) -> Self {
        static ASKED: AtomicU64 = AtomicU64::new(0);
        let asked = ASKED.fetch_add(1, Ordering::Relaxed);
        let left = (1 << SINCE) - 1 - asked;
        Self(Arc::new(AtomicU64::new((urgency as u64) << SINCE | left)))
    }

    /// No less than this one is now.
    pub(crate) fn raise_to(&self, other: &Priority) {
        self.0.fetch_max(other.now(), Ordering::Relaxed);
    }

    /// More is more urgent.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Nobody waits for it.
    pub(crate) fn is_ahead(&self) -> bool {
        self.now() >> SINCE <= Urgency::Arrived as u64
    }
}
