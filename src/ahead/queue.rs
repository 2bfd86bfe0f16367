//! What has arrived and waits to be looked at. Bounded: what does not fit is found by the reconcile
//! that is asked for instead, and counted.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Notify, mpsc};

use crate::metrics;

use super::origin::Extraction;

/// More than a node pulls in the time that it takes to look at them.
const MAX_QUEUED: usize = 256;

/// Something that may be unpacked ahead.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Arrival {
    /// An image of this name was added or changed.
    Image(String),
    /// A layer is being extracted: its image is being pulled.
    Layer(Extraction),
    /// containerd has failed to extract a layer: a container may wait for its image.
    Failed {
        /// In this snapshotter.
        snapshotter: String,
        /// The chain id.
        chain: String,
    },
    /// A container mounts an image.
    Volume {
        /// Its pod's.
        snapshotter: String,
        /// What the image's record stands for.
        target: String,
    },
}

/// Where what has arrived is put.
#[derive(Debug)]
pub(super) struct Queue {
    arrivals: mpsc::Sender<Arrival>,
    /// What a pod waits for does not wait behind the others.
    asked: mpsc::Sender<Arrival>,
    left_out: AtomicU64,
    reconcile: Notify,
    again: Notify,
}

/// A queue, and where it comes out: each part by itself.
pub(super) fn bounded() -> (Queue, [mpsc::Receiver<Arrival>; 2]) {
    let (arrivals, of_arrivals) = mpsc::channel(MAX_QUEUED);
    let (asked, of_asked) = mpsc::channel(MAX_QUEUED);
    let queue = Queue {
        arrivals,
        asked,
        left_out: AtomicU64::default(),
        reconcile: Notify::new(),
        again: Notify::new(),
    };
    (queue, [of_arrivals, of_asked])
}

impl Queue {
    /// Never waits.
    pub(super) fn push(&self, arrival: Arrival) {
        let part = match arrival {
            Arrival::Volume { .. } | Arrival::Failed { .. } => &self.asked,
            _ => &self.arrivals,
        };
        let refused = part.try_send(arrival).is_err();
        metrics::queued(self.length());
        if refused {
            metrics::left_out();
            let left_out = self.left_out.fetch_add(1, Ordering::Relaxed) + 1;
            log::debug!(left_out; "event queue is full: the event is dropped, and a reconcile is scheduled");
            self.reconcile();
        }
    }

    /// How many wait.
    pub(super) fn length(&self) -> usize {
        let waiting = |part: &mpsc::Sender<_>| part.max_capacity() - part.capacity();
        waiting(&self.arrivals) + waiting(&self.asked)
    }

    /// Asks for a look at all images. Several that are asked for before it begins are one.
    pub(super) fn reconcile(&self) {
        self.reconcile.notify_one();
    }

    /// Until a look at all images is asked for.
    pub(super) async fn asked_to_reconcile(&self) {
        self.reconcile.notified().await;
    }

    /// Asks for one in a while: something did not answer.
    pub(super) fn look_again(&self) {
        self.again.notify_one();
    }

    /// Until one is asked for.
    pub(super) async fn asked_to_look_again(&self) {
        self.again.notified().await;
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[test]
    fn what_does_not_fit_is_found_by_a_reconcile() {
        let (queue, [mut arrivals, mut asked]) = bounded();
        for n in 0..MAX_QUEUED {
            queue.push(Arrival::Image(n.to_string()));
        }
        assert!(queue.asked_to_reconcile().now_or_never().is_none());
        queue.push(Arrival::Image("more".to_owned()));
        queue.push(Arrival::Image("and more".to_owned()));
        assert_eq!(queue.left_out.load(Ordering::Relaxed), 2);
        assert!(queue.asked_to_reconcile().now_or_never().is_some());
        assert!(queue.asked_to_reconcile().now_or_never().is_none());
        assert_eq!(arrivals.try_recv(), Ok(Arrival::Image("0".to_owned())));

        let volume = Arrival::Volume {
            snapshotter: "erofs".to_owned(),
            target: "sha256:t".to_owned(),
        };
        queue.push(volume.clone());
        assert_eq!(asked.try_recv(), Ok(volume));
    }
}
