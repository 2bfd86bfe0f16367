//! The queue of arrivals. It is bounded: when it is full, the event is dropped and counted, and a full reconcile
//! is scheduled.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, mpsc};

use crate::metrics;

use super::origin::Extraction;

/// The limit of each part of the queue: more than a node pulls in the time that it takes to handle them.
const MAX_QUEUED: usize = 256;

/// An event after which an image may be made ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// An image record of this name was created or updated.
    Image(String),
    /// A layer is being extracted: its image is being pulled.
    Layer(Extraction),
    /// containerd failed to extract a layer: a container may wait for its image.
    Failed {
        /// The snapshotter of the extraction.
        snapshotter: String,
        /// The layer's chain id.
        chain: String,
    },
    /// A container mounts an image as a volume.
    Volume {
        /// The pod's snapshotter.
        snapshotter: String,
        /// The target digest of the image's record.
        target: String,
    },
}

/// The sending end of the queue.
#[derive(Debug)]
pub(super) struct Queue {
    arrivals: mpsc::Sender<Arrival>,
    /// Arrivals that a pod waits for: they do not wait behind the others.
    asked: mpsc::Sender<Arrival>,
    dropped: AtomicU64,
    reconcile: Notify,
    again: Notify,
}

/// Returns a queue and the receiving ends of its two parts.
pub(super) fn bounded() -> (Queue, [mpsc::Receiver<Arrival>; 2]) {
    let (arrivals, of_arrivals) = mpsc::channel(MAX_QUEUED);
    let (asked, of_asked) = mpsc::channel(MAX_QUEUED);
    let queue = Queue {
        arrivals,
        asked,
        dropped: AtomicU64::default(),
        reconcile: Notify::new(),
        again: Notify::new(),
    };
    (queue, [of_arrivals, of_asked])
}

impl Queue {
    /// Adds an arrival, or drops it and schedules a reconcile. Never waits.
    pub(super) fn push(&self, arrival: Arrival) {
        let part = match arrival {
            Arrival::Volume { .. } | Arrival::Failed { .. } => &self.asked,
            _ => &self.arrivals,
        };
        let refused = part.try_send(arrival).is_err();
        metrics::queued(self.length());
        if refused {
            metrics::dropped();
            let dropped = self.dropped.fetch_add(1, Ordering::Relaxed) + 1;
            log::debug!(left_out = dropped; "event queue is full: the event is dropped, and a reconcile is scheduled");
            self.reconcile();
        }
    }

    /// Returns the number of arrivals in the queue.
    pub(super) fn length(&self) -> usize {
        let waiting = |part: &mpsc::Sender<_>| part.max_capacity() - part.capacity();
        waiting(&self.arrivals) + waiting(&self.asked)
    }

    /// Schedules a reconcile. Several requests before it begins result in one.
    pub(super) fn reconcile(&self) {
        self.reconcile.notify_one();
    }

    /// Waits until a reconcile is scheduled.
    pub(super) async fn reconcile_requested(&self) {
        self.reconcile.notified().await;
    }

    /// Schedules a reconcile after a pause: something did not answer.
    pub(super) fn reconcile_later(&self) {
        self.again.notify_one();
    }

    /// Waits until a reconcile after a pause is scheduled.
    pub(super) async fn later_reconcile_requested(&self) {
        self.again.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn a_full_queue_drops_the_event_and_schedules_a_reconcile() {
        let (queue, [mut arrivals, mut asked]) = bounded();
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

        let volume = Arrival::Volume {
            snapshotter: "erofs".to_owned(),
            target: "sha256:t".to_owned(),
        };
        queue.push(volume.clone());
        assert_eq!(asked.try_recv(), Ok(volume));
    }
}
