//! The queue of events that have to be looked at. It is bounded: when it is full, the event is dropped and counted,
//! and a full reconcile is scheduled.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, mpsc};

use crate::metrics;

use super::origin::Extraction;

/// The limit of the queue: more than a node pulls in the time that it takes to look at them.
const MAX_QUEUED: usize = 256;

/// An event after which an image may be made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// An image record of this name was created or updated.
    Image(String),
    /// A layer is being extracted: its image is being pulled.
    Layer(Extraction),
}

/// The sending end of the queue.
#[derive(Debug)]
pub(super) struct Queue {
    arrivals: mpsc::Sender<Arrival>,
    dropped: AtomicU64,
    reconcile: Notify,
}

/// Returns a queue and its receiving end.
pub(super) fn bounded() -> (Queue, mpsc::Receiver<Arrival>) {
    let (arrivals, receiver) = mpsc::channel(MAX_QUEUED);
    let queue = Queue {
        arrivals,
        dropped: AtomicU64::default(),
        reconcile: Notify::new(),
    };
    (queue, receiver)
}

impl Queue {
    /// Adds an arrival, or drops it and schedules a reconcile. Never waits.
    pub(super) fn push(&self, arrival: Arrival) {
        if self.arrivals.try_send(arrival).is_err() {
            metrics::dropped();
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            log::debug!(left_out = dropped; "event queue is full: the event is dropped, and a reconcile is scheduled");
            self.reconcile();
        }
    }

    /// Returns the number of arrivals in the queue.
    pub(super) fn length(&self) -> usize {
        self.arrivals.max_capacity() - self.arrivals.capacity()
    }

    /// Schedules a reconcile in all snapshotters. Several requests before it begins result in one.
    pub(super) fn reconcile(&self) {
        self.reconcile.notify_one();
    }

    /// Waits until a reconcile is scheduled.
    pub(super) async fn reconcile_requested(&self) {
        self.reconcile.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_full_queue_drops_the_event_and_schedules_a_reconcile() {
        let (queue, mut arrivals) = bounded();
        for n in 0..MAX_QUEUED {
            queue.push(Arrival::Image(n.to_string()));
        }
        assert!(queue.reconcile_requested().now_or_never().is_none());
        queue.push(Arrival::Image("more".to_owned()));
        queue.push(Arrival::Image("and more".to_owned()));
        assert_eq!(queue.dropped.load(Ordering::Relaxed), 2);
        assert!(queue.reconcile_requested().now_or_never().is_some());
        assert!(queue.reconcile_requested().now_or_never().is_none());
        assert_eq!(arrivals.try_recv(), Ok(Arrival::Image("0".to_owned())));
    }
}
