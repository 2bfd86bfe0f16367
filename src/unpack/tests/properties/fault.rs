//! Faults of calls to containerd.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::containerd::ErrorKind;
use crate::containerd::fake::{Fake, WRITES};

/// The calls that change nothing.
const READS: [&str; 10] = [
    "get image",
    "list images",
    "list images of",
    "look up blob",
    "read blob",
    "stat snapshot",
    "list snapshots of",
    "ask usage of snapshot",
    "ask version",
    "list resources of lease",
];

pub(super) const KNOWN_CALLS: usize = WRITES.len() + READS.len();

/// More calls than a flight makes after containerd has stopped.
const CALLS_AFTER_A_STOP: usize = 60;

/// Returns the names of all calls.
pub(super) fn known_calls() -> impl Iterator<Item = &'static str> {
    WRITES.into_iter().chain(READS)
}

/// A fault of one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The call fails.
    Fails(ErrorKind),
    /// The call succeeds, but its answer is lost.
    Lost,
    /// The call fails, and the removal of snapshots fails afterwards.
    WithoutCleanup,
    /// This call and all later calls fail.
    Down,
}

pub(super) fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Fails(ErrorKind::Other)),
        Just(Fault::Fails(ErrorKind::Unreachable)),
        Just(Fault::Lost),
        Just(Fault::WithoutCleanup),
        Just(Fault::Down),
    ]
}

impl Fault {
    /// Injects the fault into `call`, after the calls in `before`.
    pub(super) fn inject(self, fake: &Fake, before: &[String], call: &str) {
        for name in known_calls() {
            let after = before.iter().filter(|call| *call == name).count();
            match self {
                Self::Down => {
                    for _ in 0..CALLS_AFTER_A_STOP {
                        fake.fail(name, after, ErrorKind::Unreachable);
                    }
                }
                Self::Fails(kind) if name == call => fake.fail(name, after, kind),
                Self::Lost if name == call => fake.lose(name, after),
                Self::WithoutCleanup if name == call || name == "remove snapshot" => {
                    fake.fail(name, after, ErrorKind::Other);
                }
                Self::Fails(_) | Self::Lost | Self::WithoutCleanup => {}
            }
        }
    }

    /// Whether the flight cannot clean up, so that a sweep has to.
    pub(super) fn prevents_cleanup(self, call: &str) -> bool {
        let cleanup = ["remove snapshot", "delete lease", "abort write"];
        matches!(self, Self::Down | Self::WithoutCleanup) || cleanup.contains(&call)
    }
}

/// Returns the index of a call: of any call, or of one that changes something, since most calls only read.
pub(super) fn nth_of(calls: &[String], in_a_write: bool, nth: Index) -> usize {
    let wanted = |call: &String| !in_a_write || WRITES.contains(&call.as_str());
    let wanted: Vec<_> = (0..calls.len()).filter(|i| wanted(&calls[*i])).collect();
    match wanted.is_empty() {
        true => nth.index(calls.len()),
        false => wanted[nth.index(wanted.len())],
    }
}
