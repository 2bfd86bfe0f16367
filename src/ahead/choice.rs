//! What becomes of an image in a snapshotter in which it is wanted ahead, unless it is pinned: those are made
//! ready in any case. Does no I/O.

use crate::unpack::{ImageStatus, State};

/// Snapshots in one snapshotter from which on only pinned images are unpacked ahead: each labelled
/// `Prepare` has containerd walk all of them (some 8 ms more with each thousand), so filling a
/// snapshotter costs the square of what it holds.
pub const MAX_SNAPSHOTS: usize = 2000;

/// What becomes of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Choice {
    /// The configuration leaves it to containerd.
    LeftOut,
    /// Nothing is to be done.
    Ready,
    /// The snapshotter holds so many already that it waits until a pod asks.
    TooMany,
    /// It is made ready, with so many more snapshots.
    Make {
        /// Layers that are not there yet.
        more: usize,
    },
}

/// How an image looks in a snapshotter that holds so many snapshots, and what becomes of it.
pub(super) fn choice(look: &ImageStatus, held: usize) -> Choice {
    let more = look.layers.saturating_sub(look.committed);
    match look.state {
        _ if look.left_out => Choice::LeftOut,
        State::Ready => Choice::Ready,
        // What adds no snapshot fits always: labels that are absent, an anchor.
        _ if more > 0 && held >= MAX_SNAPSHOTS => Choice::TooMany,
        _ => Choice::Make { more },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_snapshotter_that_holds_many_gets_repairs_only() {
        let look = |state, committed| ImageStatus {
            manifest: String::new(),
            state,
            left_out: false,
            layers: 5,
            ready_layers: 0,
            committed,
        };
        let left_out = ImageStatus {
            left_out: true,
            ..look(State::Missing, 0)
        };
        let (missing, partial) = (look(State::Missing, 0), look(State::Partial, 3));
        let (unlabelled, ready) = (look(State::Unlabelled, 5), look(State::Ready, 5));
        let (under, full) = (MAX_SNAPSHOTS - 1, MAX_SNAPSHOTS);
        for (look, held, expected) in [
            (&missing, 0, Choice::Make { more: 5 }),
            (&missing, under, Choice::Make { more: 5 }),
            (&missing, full, Choice::TooMany),
            (&partial, full, Choice::TooMany),
            (&unlabelled, full, Choice::Make { more: 0 }),
            (&ready, full, Choice::Ready),
            (&left_out, 0, Choice::LeftOut),
        ] {
            let found = choice(look, held);
            assert_eq!(found, expected, "{look:?}, {held}");
        }
    }
}
