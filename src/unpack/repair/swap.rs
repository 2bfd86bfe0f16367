//! Moves a container that is being created onto another chain: its own snapshot is removed and made again, under
//! the same key, on the new parent. Nothing is mounted yet at that time.
//!
//! Between the two calls the container has no snapshot. So everything else is prepared before, and the second call
//! is repeated until the deadline.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use crate::containerd::{self, Containerd, Resource};
use crate::unpack::snapshotter::lease::Lease;
use crate::unpack::target::request::Move;

/// The expected cost of a swap before one has been measured: two calls, each with a write to two databases.
const FIRST_ESTIMATE: Duration = Duration::from_millis(40);

/// A swap begins only if this many times its expected cost is left until the deadline.
const SAFETY_FACTOR: u32 = 3;

/// The time before the deadline that is reserved for the answer. If the hook stops waiting before the answer arrives,
/// it assumes that the container has no snapshot.
const ANSWER_MARGIN: Duration = Duration::from_millis(5);

/// The shortest wait of a hook with which a container is moved before any swap was measured.
pub const LEAST_WAIT: Duration = FIRST_ESTIMATE
    .saturating_mul(SAFETY_FACTOR)
    .saturating_add(ANSWER_MARGIN);

/// The pause between attempts of the second call.
const PAUSE: Duration = Duration::from_millis(5);

/// The deadlines of a swap.
#[derive(Clone, Copy, Debug)]
pub struct SwapDeadlines {
    /// A swap begins only if it is expected to end before this deadline.
    pub usual: Instant,
    /// A swap that has begun continues until this deadline: a container without its snapshot is worse than a wait.
    pub last: Instant,
}

impl SwapDeadlines {
    /// Returns deadlines that are earlier by the time for the answer.
    pub(crate) fn before_answer(self) -> Self {
        let earlier = |at: Instant| at.checked_sub(ANSWER_MARGIN).unwrap_or(at);
        Self {
            usual: earlier(self.usual),
            last: earlier(self.last),
        }
    }
}

/// The outcome of a swap.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SwapOutcome {
    /// The container's snapshot is on the new chain.
    Done,
    /// Nothing was changed, for this reason.
    Untouched(String),
    /// The container has no snapshot, or may have none: its creation must fail.
    Lost,
}

/// The swap of one container's snapshot.
pub(crate) struct Swap<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) lease: &'a Lease,
    pub(crate) wanted: &'a Move,
}

/// Waits for a call until the deadline. The call must change nothing.
pub(crate) async fn in_time<T>(
    deadline: Instant,
    call: impl Future<Output = Result<T, containerd::Error>>,
) -> Result<T, SwapOutcome> {
    match tokio::time::timeout_at(deadline, call).await {
        Ok(result) => result.map_err(|e| SwapOutcome::Untouched(e.to_string())),
        Err(_) => Err(SwapOutcome::Untouched(
            "containerd did not answer in time".to_owned(),
        )),
    }
}

impl Swap<'_> {
    /// Swaps the snapshot if enough time is left.
    pub(crate) async fn run(
        &self,
        SwapDeadlines {
            usual: deadline,
            last,
        }: SwapDeadlines,
        cost: &Cost,
    ) -> SwapOutcome {
        let Move {
            snapshotter,
            key,
            from,
            ..
        } = self.wanted;
        let old = match in_time(deadline, self.containerd.stat(snapshotter, key)).await {
            Ok(old) => old,
            Err(untouched) => return untouched,
        };
        if old.parent.as_ref() != Some(from) {
            return SwapOutcome::Untouched("its snapshot has another parent now".to_owned());
        }
        if let Err(untouched) = in_time(deadline, self.hold()).await {
            return untouched;
        }
        if Instant::now() + cost.estimate() * SAFETY_FACTOR > deadline {
            cost.not_begun();
            return SwapOutcome::Untouched("too little time is left to move it".to_owned());
        }
        if let Err(e) = self.containerd.remove(snapshotter, key).await {
            // The snapshot may be removed and only the answer lost: a `stat` decides.
            match self.containerd.stat(snapshotter, key).await {
                Ok(_) => return SwapOutcome::Untouched(e.to_string()),
                Err(stat) if stat.is_not_found() => {}
                Err(_) => return self.lost(&e),
            }
        }
        self.recreate(&old, last).await
    }

    /// Holds the new chain with the lease, and checks that it exists: its image may be removed at this time.
    async fn hold(&self) -> Result<(), containerd::Error> {
        let Move {
            snapshotter, onto, ..
        } = self.wanted;
        let chain = Resource::snapshot(snapshotter, onto);
        self.containerd.hold(self.lease.id(), chain).await?;
        self.containerd.stat(snapshotter, onto).await.map(drop)
    }

    /// Makes the snapshot again, with attempts until `last`. An attempt that is running at `last` is not cancelled:
    /// containerd cleans up after a creation that failed.
    async fn recreate(&self, old: &containerd::Snapshot, last: Instant) -> SwapOutcome {
        loop {
            let Err(e) = self.try_recreate(old).await else {
                return SwapOutcome::Done;
            };
            if Instant::now() + PAUSE > last {
                return self.lost(&e);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn lost(&self, error: &containerd::Error) -> SwapOutcome {
        let Move {
            snapshotter, key, ..
        } = self.wanted;
        log::error!(container = key.as_str(), snapshotter = snapshotter.as_str(), error:% = error; "container could not be moved onto another chain and has no snapshot: its creation fails, and the kubelet creates another one");
        SwapOutcome::Lost
    }

    async fn try_recreate(&self, old: &containerd::Snapshot) -> Result<(), containerd::Error> {
        let Move {
            snapshotter,
            key,
            onto,
            ..
        } = self.wanted;
        let (id, labels) = (self.lease.id(), old.labels.clone());
        let prepare = self
            .containerd
            .prepare(id, snapshotter, key, Some(onto), labels);
        match prepare.await {
            Ok(_) => Ok(()),
            Err(e) if e.already_exists() => {
                // An earlier attempt may have succeeded and only its answer been lost.
                let current = self.containerd.stat(snapshotter, key).await?;
                if current.parent.as_ref() == Some(onto) {
                    Ok(())
                } else {
                    Err(e)
                }
            }
            Err(e) => Err(e),
        }
    }
}

/// The expected cost of a swap, from the measured ones. Older ones count less.
#[derive(Debug)]
pub(crate) struct Cost(Mutex<Duration>);

impl Default for Cost {
    fn default() -> Self {
        Self(Mutex::new(FIRST_ESTIMATE))
    }
}

impl Cost {
    fn estimate(&self) -> Duration {
        *self.0.lock()
    }

    /// Records a measured cost. The estimate rises to the cost, but at most to its double, and falls only halfway to
    /// the cost: one slow or one quick swap does not decide.
    pub(crate) fn measured(&self, cost: Duration) {
        self.change(|estimate| {
            cost.min(estimate * 2)
                .max((estimate + cost.min(estimate)) / 2)
        });
    }

    /// Lowers the estimate after a swap that was not begun. Without a swap nothing is measured, so an estimate that
    /// is too high would remain.
    fn not_begun(&self) {
        self.change(|estimate| (estimate / 2).max(FIRST_ESTIMATE.min(estimate)));
    }

    fn change(&self, change: impl FnOnce(Duration) -> Duration) {
        let mut estimate = self.0.lock();
        *estimate = change(*estimate);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_slow_swap_does_not_prevent_the_next() {
        let millis = Duration::from_millis;
        let cost = Cost::default();
        for (measured, expected) in [(4, 22), (1900, 44), (1900, 88), (60, 74), (70, 72)] {
            cost.measured(millis(measured));
            assert_eq!(cost.estimate(), millis(expected), "{measured}");
        }
        for _ in 0..5 {
            cost.measured(millis(1900));
        }
        assert_eq!(cost.estimate(), millis(1900));
        for expected in [950, 475] {
            cost.not_begun();
            assert_eq!(cost.estimate(), millis(expected));
        }
        (0..9).for_each(|_| cost.not_begun());
        assert_eq!(cost.estimate(), FIRST_ESTIMATE);
        (0..9).for_each(|_| cost.measured(millis(4)));
        cost.not_begun();
        assert!(
            cost.estimate() < millis(5),
            "a swap that is not begun does not raise the estimate"
        );
    }
}
