//! Decides what a reconcile does about an image of a snapshotter's eager set. Pinned images are not decided
//! here: they are always made ready. Does no I/O.

use crate::unpack::{ImageStatus, State};

/// The number of snapshots in one snapshotter from which on only pinned images are unpacked ahead. At each
/// labelled `Prepare` containerd walks all snapshots (some 8 ms more with each thousand), so the cost of filling a
/// snapshotter grows with the square of their number.
pub const MAX_SNAPSHOTS: usize = 2000;

/// The size of a layer's content for each byte of its compressed blob, estimated: container images are compressed to a
/// third or more.
pub(super) const EXPANSION: u64 = 3;

/// The kinds of work, in the order in which a reconcile does them: what is cheap does not wait behind unpacks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Kind {
    /// All layers are there: labels or the anchor are missing.
    Repair,
    /// The snapshotter needs no content, or the image is not made ready.
    WithoutContent,
    /// Layers have to be applied.
    Unpack,
}

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
        kind: Kind,
        /// The number of snapshots that this adds: the layers that are missing.
        more: usize,
        /// The estimated space that this takes, in bytes.
        bytes: u64,
    },
}

/// Decides about an image with this status, in a snapshotter that holds `held` snapshots. `is_lazy`: the image is made
/// ready only if the snapshotter needs no content for it.
pub(super) fn choice(status: &ImageStatus, held: usize, is_lazy: bool) -> Choice {
    let more = status.layers.saturating_sub(status.committed);
    let kind = match status.bytes_to_apply {
        _ if more == 0 => Kind::Repair,
        0 => Kind::WithoutContent,
        _ if is_lazy => Kind::WithoutContent,
        _ => Kind::Unpack,
    };
    match status.state {
        _ if status.is_excluded => Choice::Excluded,
        State::Ready => Choice::Ready,
        // Repairs that add no snapshot always fit: missing labels, a missing anchor (the gc label on the config
        // blob).
        _ if more > 0 && held >= MAX_SNAPSHOTS => Choice::TooMany,
        _ => Choice::Make {
            kind,
            more,
            bytes: match kind {
                Kind::Unpack => status.bytes_to_apply.saturating_mul(EXPANSION),
                Kind::Repair | Kind::WithoutContent => 0,
            },
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(state: State, committed: usize) -> ImageStatus {
        ImageStatus {
            manifest: String::new(),
            chain: None,
            has_name_of_pull: false,
            state,
            is_excluded: false,
            layers: 5,
            ready_layers: 0,
            layers_kept: 0,
            committed,
            bytes_to_apply: 100 * (5 - committed as u64),
        }
    }

    #[test]
    fn a_snapshotter_that_holds_many_gets_repairs_only() {
        let excluded = ImageStatus {
            is_excluded: true,
            ..status(State::Missing, 0)
        };
        let (missing, partial) = (status(State::Missing, 0), status(State::Partial, 3));
        let (unlabelled, ready) = (status(State::Unlabelled, 5), status(State::Ready, 5));
        let (under, full) = (MAX_SNAPSHOTS - 1, MAX_SNAPSHOTS);
        let unpack = Choice::Make {
            kind: Kind::Unpack,
            more: 5,
            bytes: 500 * EXPANSION,
        };
        let repair = Choice::Make {
            kind: Kind::Repair,
            more: 0,
            bytes: 0,
        };
        for (status, held, expected) in [
            (&missing, 0, unpack),
            (&missing, under, unpack),
            (&missing, full, Choice::TooMany),
            (&partial, full, Choice::TooMany),
            (&unlabelled, full, repair),
            (&ready, full, Choice::Ready),
            (&excluded, 0, Choice::Excluded),
        ] {
            let found = choice(status, held, false);
            assert_eq!(found, expected, "{status:?}, {held}");
        }
    }

    #[test]
    fn only_layers_that_are_applied_take_space() {
        let guest_pulled = ImageStatus {
            bytes_to_apply: 0,
            ..status(State::Missing, 0)
        };
        let (partial, unlabelled) = (status(State::Partial, 3), status(State::Unlabelled, 5));
        for (status, is_lazy, kind, bytes) in [
            (&partial, false, Kind::Unpack, 200 * EXPANSION),
            (&partial, true, Kind::WithoutContent, 0),
            (&guest_pulled, false, Kind::WithoutContent, 0),
            (&unlabelled, true, Kind::Repair, 0),
        ] {
            let Choice::Make {
                kind: found,
                bytes: estimated,
                ..
            } = choice(status, 0, is_lazy)
            else {
                panic!("{status:?}");
            };
            assert_eq!((found, estimated), (kind, bytes), "{status:?}, {is_lazy}");
        }
    }
}
