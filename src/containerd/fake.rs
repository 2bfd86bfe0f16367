//! containerd in memory, for tests of what a real one cannot be made to do: a fault in the middle of a
//! step.
//!
//! The [`store`] implements the effect of each call. This file records calls, delays them, fails them or
//! loses their answers, so that a test sees what remains.

mod calls;
mod directories;
mod images;
mod snapshots;
mod store;
mod types;

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc;

use super::{Error, ErrorKind, Event, Result};
pub(crate) use directories::Change;
use store::Store;
use types::Effect;

/// The calls that change something.
pub(crate) const WRITES: [&str; 14] = [
    "fetch",
    "write blob",
    "write piece",
    "abort write",
    "label blob",
    "prepare snapshot",
    "view snapshot",
    "commit snapshot",
    "remove snapshot",
    "label snapshot",
    "apply layer",
    "create lease",
    "delete lease",
    "add to lease",
];

/// containerd in memory.
#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    store: Store,
    faults: Vec<Fault>,
    slow: HashMap<&'static str, Duration>,
    slow_prepares: HashMap<&'static str, Duration>,
    /// How long it takes to apply a blob, for blobs that differ from the default.
    apply: HashMap<String, Duration>,
    /// For each blob that was applied, the stream processors that got a payload.
    payloads: Vec<Vec<String>>,
    /// The number of blobs that are being applied, and its maximum so far.
    applying: (usize, usize),
    down: bool,
    /// The call that panics, and how many of its name come before it.
    panics: Option<(&'static str, usize)>,
    /// The subscribers to events.
    listeners: Vec<mpsc::UnboundedSender<Event>>,
    /// The calls in their order, each with its subject.
    calls: Vec<(&'static str, String)>,
    /// Empty for an unknown version.
    version: String,
}

/// A fault of one future call.
#[derive(Clone)]
struct Fault {
    call: &'static str,
    after: usize,
    kind: ErrorKind,
    /// Whether the call has its effect and only the answer is lost.
    lost: bool,
}

impl Fake {
    /// Makes one call of this name fail: the one after the next `after` calls (0 is the next call).
    pub(crate) fn fail(&self, call: &'static str, after: usize, kind: ErrorKind) {
        self.fault(call, after, kind, false);
    }

    /// Loses the answer of one call of this name, which has its effect. `after` counts as in
    /// [`Self::fail`].
    pub(crate) fn lose(&self, call: &'static str, after: usize) {
        self.fault(call, after, ErrorKind::TimedOut, true);
    }

    fn fault(&self, call: &'static str, after: usize, kind: ErrorKind, lost: bool) {
        self.state().faults.push(Fault {
            call,
            after,
            kind,
            lost,
        });
    }

    /// Makes one call of this name panic. `after` counts as in [`Self::fail`].
    pub(crate) fn panic(&self, call: &'static str, after: usize) {
        self.state().panics = Some((call, after));
    }

    /// Whether no call will panic.
    pub(crate) fn has_panicked(&self) -> bool {
        self.state().panics.is_none()
    }

    /// Removes all faults.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.down = false;
    }

    /// Returns the faults that have not happened yet, as the names of their calls.
    pub(crate) fn pending_faults(&self) -> Vec<&'static str> {
        self.state().faults.iter().map(|it| it.call).collect()
    }

    /// Makes every call fail as if containerd could not be reached.
    pub(crate) fn go_down(&self) {
        self.state().down = true;
    }

    /// Delays all calls of this name by `time`.
    pub(crate) fn slow(&self, call: &'static str, time: Duration) {
        self.state().slow.insert(call, time);
    }

    /// Makes each `Prepare` in this snapshotter take `time`.
    pub(crate) fn prepares_in(&self, snapshotter: &'static str, time: Duration) {
        self.state().slow_prepares.insert(snapshotter, time);
    }

    /// Makes `apply` take `time` for this blob.
    pub(crate) fn applies_in(&self, blob: &str, time: Duration) {
        self.state().apply.insert(blob.to_owned(), time);
    }

    /// Returns, for each blob that was applied since the last call of this method, the stream processors that
    /// got a payload.
    pub(crate) fn payloads(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.state().payloads)
    }

    /// Returns the highest number of blobs that were applied at the same time.
    pub(crate) fn most_applied_at_once(&self) -> usize {
        self.state().applying.1
    }

    /// Sets containerd's version.
    pub(crate) fn is_version(&self, version: &str) {
        version.clone_into(&mut self.state().version);
    }

    /// Sends an event to all subscribers.
    pub(crate) fn emit(&self, event: &Event) {
        let mut state = self.state();
        state.listeners.retain(|l| l.send(event.clone()).is_ok());
    }

    /// Ends all subscriptions.
    pub(crate) fn hang_up(&self) {
        self.state().listeners.clear();
    }

    /// Returns and clears the names of the calls so far.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state().calls);
        calls.into_iter().map(|(call, _)| call.to_owned()).collect()
    }

    /// Returns the number of calls so far by their name, and clears them.
    pub(crate) fn count_calls(&self) -> BTreeMap<&'static str, usize> {
        let mut counts = BTreeMap::new();
        for (call, _) in std::mem::take(&mut self.state().calls) {
            *counts.entry(call).or_default() += 1;
        }
        counts
    }

    /// Returns the subjects of the calls of this name, in their order, since [`Self::calls`] last cleared
    /// them.
    pub(crate) fn subjects(&self, call: &str) -> Vec<String> {
        let state = self.state();
        let of = state.calls.iter().filter(|(name, _)| *name == call);
        of.map(|(_, subject)| subject.clone()).collect()
    }

    /// Whether any of these calls changes something.
    pub(crate) fn writes(calls: &[String]) -> bool {
        calls.iter().any(|call| WRITES.contains(&call.as_str()))
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Performs one call: records it, and fails it if a test has set a fault.
    async fn call<T>(
        &self,
        call: &'static str,
        subject: &str,
        effect: impl FnOnce(&mut Store) -> Effect<T> + Send,
    ) -> Result<T> {
        let slow = self.state().slow.get(call).copied();
        if let Some(time) = slow {
            tokio::time::sleep(time).await;
        }
        let mut state = self.state();
        state.calls.push((call, subject.to_owned()));
        match &mut state.panics {
            Some((name, 0)) if *name == call => {
                state.panics = None;
                drop(state);
                panic!("a panic of the test");
            }
            Some((name, after)) if *name == call => *after -= 1,
            _ => {}
        }
        let effect = match state.fault(call) {
            _ if state.down => Err(ErrorKind::Unreachable),
            None => effect(&mut state.store),
            Some(fault) => {
                if fault.lost {
                    let _ = effect(&mut state.store);
                }
                Err(fault.kind)
            }
        };
        effect.map_err(|kind| Error {
            kind,
            call,
            subject: subject.to_owned(),
            message: format!("{kind:?}"),
        })
    }
}

impl State {
    /// Takes the fault of this call, if it has one, and counts down the other faults of its name.
    fn fault(&mut self, call: &'static str) -> Option<Fault> {
        let mut met = None;
        self.faults.retain_mut(|fault| {
            if fault.call != call || met.is_some() {
                return true;
            }
            if fault.after > 0 {
                fault.after -= 1;
                return true;
            }
            met = Some(fault.clone());
            false
        });
        met
    }
}

pub(crate) fn sha256(bytes: &[u8]) -> String {
    let hex = Sha256::digest(bytes)
        .iter()
        .map(|b| format!("{b:02x}"))
        .collect::<String>();
    format!("sha256:{hex}")
}
