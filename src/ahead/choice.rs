//! Decides what a reconcile does about an image of a snapshotter's eager set. Pinned images are not decided
//! here: they are always made ready. Does no I/O.

use crate::unpack::{ImageStatus, State};

/// The number of snapshots in one snapshotter from which on only pinned images are unpacked ahead. At each
/// labelled `Prepare` containerd walks all snapshots (some 8 ms more with each thousand), so the cost of filling a
/// snapshotter grows with the square of their number.
pub const MAX_SNAPSHOTS: usize = 2000;

/// What a reconcile does about an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// Nothing: it is excluded.
    Excluded,
    /// Nothing: it is ready.
    Ready,
    /// Nothing until a pod needs it: the snapshotter holds too many snapshots.
    TooMany,
    /// Makes it ready.
    Make {
        /// The number of snapshots that this adds: the layers that are missing.
        more: usize,
    },
}

/// Decides about an image with this status, in a snapshotter that holds `held` snapshots.
pub(super) fn choice(status: &ImageStatus, held: usize) -> Choice {
    let more = status.layers.saturating_sub(status.committed);
    match status.state {
        _ if status.is_excluded => Choice::Excluded,
        State::Ready => Choice::Ready,
        // Repairs that add no snapshot always fit: missing labels, a missing anchor (the gc label on the config
        // blob).
        _ if more > 0 && held >= MAX_SNAPSHOTS => Choice::TooMany,
        _ => Choice::Make { more },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshotter_that_holds_many_gets_repairs_only() {
        let status = |state, committed| ImageStatus {
            manifest: String::new(),
            chain: None,
            state,
            is_excluded: false,
            layers: 5,
            ready_layers: 0,
            committed,
        };
        let excluded = ImageStatus {
            is_excluded: true,
            ..status(State::Missing, 0)
        };
        let (missing, partial) = (status(State::Missing, 0), status(State::Partial, 3));
        let (unlabelled, ready) = (status(State::Unlabelled, 5), status(State::Ready, 5));
        let (under, full) = (MAX_SNAPSHOTS - 1, MAX_SNAPSHOTS);
        for (status, held, expected) in [
            (&missing, 0, Choice::Make { more: 5 }),
            (&missing, under, Choice::Make { more: 5 }),
            (&missing, full, Choice::TooMany),
            (&partial, full, Choice::TooMany),
            (&unlabelled, full, Choice::Make { more: 0 }),
            (&ready, full, Choice::Ready),
            (&excluded, 0, Choice::Excluded),
        ] {
            let found = choice(status, held);
            assert_eq!(found, expected, "{status:?}, {held}");
        }
    }
}
