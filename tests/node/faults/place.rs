//! The place of a call in what a plugin does: its method, and how many calls of this method come before it. The number of
//! a call alone would not do, since the plugin does some things at the same time.

use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result, ensure};
use lab::{Call, Fault, Tap};

/// The plugin makes calls for other work as well, and may make fewer of a kind.
const TRIES: usize = 3;

/// A call since the begin of some work.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    path: String,
    before: usize,
}

impl Place {
    /// Returns the place of each call.
    pub(super) fn of_each(calls: &[Call]) -> Vec<Self> {
        let before = |i: usize, path: &str| calls[..i].iter().filter(|it| it.path == path).count();
        let calls = calls.iter().enumerate();
        let places = calls.map(|(i, call)| Self {
            path: call.path.clone(),
            before: before(i, &call.path),
        });
        places.collect()
    }

    /// Whether the method is one of a service, as in `Leases/Delete`.
    pub(super) fn is(&self, method: &str) -> bool {
        self.path.ends_with(method)
    }

    /// Puts a fault into the call at this place, counted from now on.
    pub(super) fn fail(&self, tap: &Tap, fault: Fault) {
        let (place, seen) = (self.clone(), AtomicUsize::new(0));
        let is_it = move |call: &Call| {
            call.path == place.path && seen.fetch_add(1, Ordering::Relaxed) == place.before
        };
        tap.fail_when(is_it, fault);
    }

    /// Runs the work until the fault that `run` puts here has occurred.
    pub(super) async fn meets(
        &self,
        fault: Fault,
        mut run: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<()> {
        let case = || format!("{fault:?} in {self:?}");
        for _ in 0..TRIES {
            if run().await.with_context(case)? {
                return Ok(());
            }
        }
        ensure!(false, "{}: no such call", case());
        Ok(())
    }
}
