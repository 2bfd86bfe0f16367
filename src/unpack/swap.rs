//! Moves a container that is being created onto another chain: its own snapshot is taken away and
//! made again, under the same key, on the new parent. Nothing is mounted yet at that moment.
//!
//! Between the two calls containerd has a container without a snapshot. So everything else is ready
//! before, and the second call is repeated until the deadline.

use std::time::{Duration, Instant};

use crate::containerd::{self, Containerd};

use super::lease::Lease;

/// What a swap takes where none has been measured: two calls, each with a write to two databases.
const FIRST_ESTIMATE: Duration = Duration::from_millis(40);

/// A swap begins only with this many times its cost left.
const SPARE: u32 = 3;

/// Between tries of the second half.
const PAUSE: Duration = Duration::from_millis(5);

/// How a swap ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Swapped {
    /// The container stands on the new chain.
    Done,
    /// There was too little time left; nothing was changed.
    TooLate,
    /// It does not stand where it was expected to any more; nothing was changed.
    Moved,
    /// The container is left without its snapshot: its creation must fail.
    Lost,
}

/// One container's snapshot.
pub(super) struct Swap<'a> {
    pub(super) containerd: &'a dyn Containerd,
    pub(super) lease: &'a Lease,
    pub(super) snapshotter: &'a str,
    /// The container's id.
    pub(super) key: &'a str,
    /// What it stands on.
    pub(super) from: &'a str,
    /// What it is to stand on.
    pub(super) onto: &'a str,
}

impl Swap<'_> {
    /// Swaps, if there is time. After an error nothing was changed.
    pub(super) async fn run(
        &self,
        deadline: Instant,
        cost: Duration,
    ) -> Result<Swapped, containerd::Error> {
        let old = self.containerd.stat(self.snapshotter, self.key).await?;
        if old.parent.as_deref() != Some(self.from) {
            return Ok(Swapped::Moved);
        }
        if Instant::now() + cost * SPARE > deadline {
            return Ok(Swapped::TooLate);
        }
        if let Err(e) = self.containerd.remove(self.snapshotter, self.key).await {
            // Whether it is gone decides what this is: the answer may have got lost.
            match self.containerd.stat(self.snapshotter, self.key).await {
                Err(stat) if stat.is_not_found() => {}
                _ => return Err(e),
            }
        }
        loop {
            let Err(e) = self.put_back(&old).await else {
                return Ok(Swapped::Done);
            };
            if Instant::now() + PAUSE > deadline {
                log::error!(container = self.key, snapshotter = self.snapshotter, error:% = e; "a container is left without its snapshot; its creation fails, and the kubelet makes another");
                return Ok(Swapped::Lost);
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    async fn put_back(&self, old: &containerd::Snapshot) -> Result<(), containerd::Error> {
        let (id, labels) = (self.lease.id(), old.labels.clone());
        let parent = Some(self.onto);
        let prepare = self
            .containerd
            .prepare(id, self.snapshotter, self.key, parent, labels);
        match prepare.await {
            Ok(_) => Ok(()),
            Err(e) if e.already_exists() => {
                // An earlier try whose answer got lost.
                let now = self.containerd.stat(self.snapshotter, self.key).await?;
                if now.parent.as_deref() == Some(self.onto) {
                    Ok(())
                } else {
                    Err(e)
                }
            }
            Err(e) => Err(e),
        }
    }
}

/// What swaps cost here, slowly forgetting.
#[derive(Debug)]
pub(super) struct Cost(std::sync::Mutex<Duration>);

impl Default for Cost {
    fn default() -> Self {
        Self(std::sync::Mutex::new(FIRST_ESTIMATE))
    }
}

impl Cost {
    pub(super) fn estimate(&self) -> Duration {
        *self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Up at once, down by halves: a slow moment is a warning, a quick one no promise.
    pub(super) fn measured(&self, cost: Duration) {
        let mut estimate = self
            .0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        *estimate = cost.max((*estimate + cost) / 2);
    }
}
