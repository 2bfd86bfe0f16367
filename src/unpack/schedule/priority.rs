//! The urgency of work, and the priority that orders it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// How urgent work is, from the least urgent to the most urgent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Urgency {
    /// No caller waits.
    Background,
    /// No caller waits yet, but the image was just pulled, and the pod that it was pulled for is expected soon.
    Arrived,
    /// A pod that is bound to this node will need the image, and has no sandbox yet.
    Bound,
    /// A pod will need the image, or a command waits for it.
    Asked,
    /// A container is being created, and the hook blocks the events of the whole node.
    Creation,
}

impl Urgency {
    /// Returns the value of the label `trigger` in the metrics.
    pub(crate) fn trigger(self) -> &'static str {
        match self {
            Self::Background => "reconcile",
            Self::Arrived => "event",
            Self::Bound => "bound",
            Self::Asked => "asked",
            Self::Creation => "creation",
        }
    }
}

/// The priority of a flight: its urgency, and the order of the request that it has that urgency from. Of two flights
/// with the same urgency, the one with the earlier request is first; a caller with several requests makes them in the
/// order in which it needs the images. A caller that joins a flight with a higher priority raises it.
#[derive(Clone, Debug)]
pub(crate) struct Priority(Arc<AtomicU64>);

/// The bits below the urgency. Their value decreases with each request, so an earlier request has the higher priority.
const ORDER_BITS: u32 = 56;

impl Priority {
    /// The priority of a new request.
    pub(crate) fn new(urgency: Urgency) -> Self {
        static REQUESTS: AtomicU64 = AtomicU64::new(0);
        let earlier = REQUESTS.fetch_add(1, Ordering::Relaxed);
        let order = (1 << ORDER_BITS) - 1 - earlier;
        Self(Arc::new(AtomicU64::new(
            (urgency as u64) << ORDER_BITS | order,
        )))
    }

    /// Raises this priority to the current value of the other one, if that is higher.
    pub(crate) fn raise_to(&self, other: &Priority) {
        self.0.fetch_max(other.now(), Ordering::Relaxed);
    }

    /// Returns the current value. A higher value is more urgent.
    pub(crate) fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Whether both are the priority of one flight.
    pub(crate) fn is(&self, other: &Priority) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether this is work ahead: no caller waits for it.
    pub(crate) fn is_ahead(&self) -> bool {
        self.now() >> ORDER_BITS <= Urgency::Bound as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_hook_asks_for_overtakes_bound_pods_and_these_overtake_arrivals() {
        let order = [
            Urgency::Background,
            Urgency::Arrived,
            Urgency::Bound,
            Urgency::Asked,
            Urgency::Creation,
        ];
        let priorities = order.map(Priority::new);
        assert!(priorities.is_sorted_by_key(Priority::now));
        let ahead = priorities.iter().map(Priority::is_ahead);
        assert_eq!(ahead.filter(|is_ahead| *is_ahead).count(), 3);
    }
}
