//! The action that made a chain ready.

use std::fmt;

/// The action that made a chain ready. Of several actions, the last one in this order is reported.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Nothing: the chain was ready.
    #[default]
    None,
    /// The anchor was set: the label on the image's config blob that keeps the chain from garbage collection.
    Anchored,
    /// Labels were put on layers in place.
    Relabelled,
    /// Layers were unpacked.
    Unpacked,
    /// Layers were removed and unpacked again.
    Replaced,
    /// Layers were rebuilt from another snapshotter, since their blobs were gone.
    Rebuilt,
}

impl Action {
    /// The action's name in JSON and metrics.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Anchored => "anchored",
            Self::Relabelled => "relabelled",
            Self::Unpacked => "unpacked",
            Self::Replaced => "replaced",
            Self::Rebuilt => "rebuilt",
        }
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}
