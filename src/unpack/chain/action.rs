//! What was done for a chain.

use std::fmt;

/// What was done for a chain: of several things the one that says most.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// It was ready.
    #[default]
    None,
    /// Kept from garbage collection.
    Anchored,
    /// Labels put on layers in place.
    Relabelled,
    /// Layers unpacked.
    Unpacked,
    /// Layers taken away and unpacked again.
    Replaced,
    /// Layers made from what another snapshotter has, since their blobs were gone.
    Rebuilt,
}

impl Action {
    /// As JSON and metrics have it.
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
