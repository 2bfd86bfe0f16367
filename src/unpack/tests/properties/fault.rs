//! What can happen to a call of containerd, and to which one it does.

use proptest::prelude::*;
use proptest::sample::Index;

use crate::containerd::ErrorKind;
use crate::containerd::fake::{Fake, WRITES};

/// What else may be asked.
const READS: [&str; 9] = [
    "get image",
    "list images",
    "look up blob",
    "read blob",
    "stat snapshot",
    "list snapshots of",
    "ask usage of snapshot",
    "ask version",
    "list resources of lease",
];

pub(super) const KNOWN_CALLS: usize = WRITES.len() + READS.len();

/// More calls than a flight makes after containerd has stopped answering.
const CALLS_INTO_THE_VOID: usize = 60;

/// All of them.
pub(super) fn known_calls() -> impl Iterator<Item = &'static str> {
    WRITES.into_iter().chain(READS)
}

/// What happens to one call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// It fails.
    Fails(ErrorKind),
    /// It does its work, and the answer gets lost.
    Lost,
    /// It fails, and what should be taken away then cannot be.
    Untidied,
    /// It fails, and so does every later one.
    Down,
}

pub(super) fn faults() -> impl Strategy<Value = Fault> {
    prop_oneof![
        Just(Fault::Fails(ErrorKind::Other)),
        Just(Fault::Fails(ErrorKind::Unreachable)),
        Just(Fault::Lost),
        Just(Fault::Untidied),
        Just(Fault::Down),
    ]
}

impl Fault {
    /// Puts the fault at the call after these.
    pub(super) fn at(self, fake: &Fake, before: &[String], call: &str) {
        for name in known_calls() {
            let after = before.iter().filter(|call| *call == name).count();
            match self {
                Self::Down => {
                    for _ in 0..CALLS_INTO_THE_VOID {
                        fake.fail(name, after, ErrorKind::Unreachable);
                    }
                }
                Self::Fails(kind) if name == call => fake.fail(name, after, kind),
                Self::Lost if name == call => fake.lose(name, after),
                Self::Untidied if name == call || name == "remove snapshot" => {
                    fake.fail(name, after, ErrorKind::Other);
                }
                Self::Fails(_) | Self::Lost | Self::Untidied => {}
            }
        }
    }

    /// Whether something cannot be tidied up at once, and is left to the sweep.
    pub(super) fn hinders_tidying(self, call: &str) -> bool {
        let tidies = ["remove snapshot", "delete lease", "abort write"];
        matches!(self, Self::Down | Self::Untidied) || tidies.contains(&call)
    }
}

/// One of all calls, or of those that change something: most only ask.
pub(super) fn nth_of(calls: &[String], in_a_write: bool, nth: Index) -> usize {
    let wanted = |call: &String| !in_a_write || WRITES.contains(&call.as_str());
    let wanted: Vec<_> = (0..calls.len()).filter(|i| wanted(&calls[*i])).collect();
    match wanted.is_empty() {
        true => nth.index(calls.len()),
        false => wanted[nth.index(wanted.len())],
    }
}
