//! containerd in memory, for what cannot be provoked on a real one: a fault in the middle of a step.
//!
//! What a call does is the [`store`]'s to know; here calls are noted, delayed, failed, or their
//! answers lost, so that a test sees what would be left behind.

mod calls;
mod directories;
mod images;
mod snapshots;
mod store;
mod types;

use std::collections::HashMap;
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
    /// How long it takes to apply these blobs, where not as long as any other.
    apply: HashMap<String, Duration>,
    /// The stream processors that got a payload with each blob that was applied.
    payloads: Vec<Vec<String>>,
    /// Blobs that are being applied now, and the most that ever were.
    applying: (usize, usize),
    down: bool,
    /// Who wants to hear of events.
    listeners: Vec<mpsc::UnboundedSender<Event>>,
    /// Each with its subject.
    calls: Vec<(&'static str, String)>,
    /// Empty for one that is of no known version.
    version: String,
}

/// The nth call of this kind from now on fails.
#[derive(Clone)]
struct Fault {
    call: &'static str,
    after: usize,
    kind: ErrorKind,
    /// The call does its work; only the answer gets lost.
    lost: bool,
}

impl Fake {
    /// From now on the call number `after` (0 is the next) of this name fails.
    pub(crate) fn fail(&self, call: &'static str, after: usize, kind: ErrorKind) {
        self.fault(call, after, kind, false);
    }

    /// From now on the call number `after` of this name does its work, and its answer gets lost.
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

    /// From now on nothing fails.
    pub(crate) fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.down = false;
    }

    /// From now on nobody answers.
    pub(crate) fn go_down(&self) {
        self.state().down = true;
    }

    /// From now on calls of this name take so long.
    pub(crate) fn slow(&self, call: &'static str, time: Duration) {
        self.state().slow.insert(call, time);
    }

    /// From now on it takes so long to apply this blob.
    pub(crate) fn applies_in(&self, blob: &str, time: Duration) {
        self.state().apply.insert(blob.to_owned(), time);
    }

    /// The stream processors that got a payload with each blob that was applied, since the last time this was
    /// asked.
    pub(crate) fn payloads(&self) -> Vec<Vec<String>> {
        std::mem::take(&mut self.state().payloads)
    }

    /// The most blobs that were being applied at the same time.
    pub(crate) fn most_applied_at_once(&self) -> usize {
        self.state().applying.1
    }

    /// It is containerd of this version.
    pub(crate) fn is_version(&self, version: &str) {
        version.clone_into(&mut self.state().version);
    }

    /// Something happened, and whoever listens hears it; nobody does after a restart.
    pub(crate) fn emit(&self, event: &Event) {
        let mut state = self.state();
        state.listeners.retain(|l| l.send(event.clone()).is_ok());
    }

    /// Every subscription ends.
    pub(crate) fn hang_up(&self) {
        self.state().listeners.clear();
    }

    /// The names of the calls since the last time this was asked.
    pub(crate) fn calls(&self) -> Vec<String> {
        let calls = std::mem::take(&mut self.state().calls);
        calls.into_iter().map(|(call, _)| call.to_owned()).collect()
    }

    /// What the calls of this name were about, in their order, since calls were last asked for.
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

    /// One call: noted, and failed where a test wants it to.
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
    /// The fault that this call meets; every other one comes nearer.
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
