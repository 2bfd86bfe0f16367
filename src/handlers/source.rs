//! The values of one source about runtimes and snapshotters.
//!
//! Knows no format, which the parsers know, and no kinds of sources, which `Handlers::resolve` puts in order.

use std::collections::BTreeMap;

use super::origin::Found;
use super::problem::Problem;

/// The values of one source. A value that the source lacks is `None`.
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
    /// The snapshotter into which a runtime's images are *pulled*. Containers do not use it; it is kept only
    /// to report when the two differ.
    pub(super) pulls: BTreeMap<String, Found>,
}

impl Reported {
    /// Whether the source has all handlers with their snapshotters.
    pub(super) fn has_all_handlers(&self) -> bool {
        self.default_snapshotter.is_some()
            && self.default_runtime.is_some()
            && self.runtimes.is_some()
    }

    /// Returns the values of `self`, and those of `other` that `self` lacks. The list of runtimes comes from
    /// one source: a runtime that `self` does not list does not exist.
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

    /// Returns the values in files (`written`) that differ from those of the running containerd (`self`).
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
