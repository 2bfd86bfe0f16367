//! What one source says about runtimes and snapshotters, and where each word of it was read.
//!
//! It knows no format and no precedence between kinds of sources: those are the parsers' and
//! `resolve`'s business.

use std::collections::BTreeMap;

use super::origin::Found;
use super::problem::Problem;

/// What one source says. What it does not say is `None`.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub(super) struct Reported {
    /// The snapshotter of a runtime that names none.
    pub(super) default_snapshotter: Option<Found>,
    /// The runtime of a pod that names none.
    pub(super) default_runtime: Option<Found>,
    /// The image that sandboxes are made from.
    pub(super) sandbox_image: Option<Found>,
    /// Each runtime, and the snapshotter that its containers are created in, where it names one.
    pub(super) runtimes: Option<BTreeMap<String, Option<Found>>>,
    /// The snapshotter that images are *pulled* into for a runtime. It decides nothing about
    /// containers, and is kept only to tell when the two differ.
    pub(super) pulls: BTreeMap<String, Found>,
}

impl Reported {
    /// Whether each handler's snapshotter is known.
    pub(super) fn tells_handlers(&self) -> bool {
        self.default_snapshotter.is_some()
            && self.default_runtime.is_some()
            && self.runtimes.is_some()
    }

    /// What `self` says, and `other` where `self` says nothing. A list of runtimes is taken whole:
    /// one that the better source does not list is not there.
    pub(super) fn or(mut self, other: Self) -> Self {
        let mut pulls = other.pulls;
        pulls.append(&mut self.pulls);
        Self {
            default_snapshotter: self.default_snapshotter.or(other.default_snapshotter),
            default_runtime: self.default_runtime.or(other.default_runtime),
            sandbox_image: self.sandbox_image.or(other.sandbox_image),
            runtimes: self.runtimes.or(other.runtimes),
            pulls,
        }
    }

    /// Where `written` in files is another word than this, which is the running containerd's.
    pub(super) fn differences(&self, written: &Self) -> Vec<Problem> {
        let mut differences = Vec::new();
        let mut compare = |what: &str, running: Option<&Found>, written: Option<&Found>| {
            if let (Some(running), Some(written)) = (running, written)
                && running.value != written.value
            {
                differences.push(Problem::Differs {
                    what: what.to_owned(),
                    running: running.value.clone(),
                    running_from: running.origin.clone(),
                    written: written.value.clone(),
                    origin: written.origin.clone(),
                });
            }
        };
        let default = self.default_snapshotter.as_ref();
        compare(
            "the default snapshotter",
            default,
            written.default_snapshotter.as_ref(),
        );
        compare(
            "the default runtime",
            self.default_runtime.as_ref(),
            written.default_runtime.as_ref(),
        );
        let runtimes = self.runtimes.iter().flatten();
        for (name, running) in runtimes {
            let written = written
                .runtimes
                .as_ref()
                .and_then(|runtimes| runtimes.get(name));
            let running = running.as_ref().or(default);
            let what = format!("the snapshotter of the runtime handler {name:?}");
            compare(&what, running, written.and_then(Option::as_ref));
        }
        differences
    }
}
