//! Descriptions of random nodes: images that share layers, how their chains stand, who uses them,
//! and what is gone. Nothing but data, so that the same node can be built twice.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::{FallbackSource, Repair};

/// More would only take longer.
pub(super) const MAX_LAYERS: usize = 8;

/// How a committed layer looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Looks {
    Bare,
    /// Some of its labels are absent.
    Half,
    Labelled,
    /// Labelled as a layer over which an image goes on.
    GoesOn,
    /// Left to the guest, where the snapshotter does so.
    Proxied,
}

/// An image and its chain.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// Layers that are those of the image before it.
    pub(super) shared: usize,
    /// Layers of its own above them.
    pub(super) own: usize,
    /// What is committed, bottom first.
    pub(super) committed: Vec<Looks>,
    pub(super) anchored: bool,
    /// Whether its blobs are gone, bottom first; those that are not listed are there.
    pub(super) gone: Vec<bool>,
    /// How many of its layers overlayfs has as well.
    pub(super) in_overlayfs: usize,
}

/// A layer: an image and a position in it, both counted round.
pub(super) type At = (usize, usize);

/// A node.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// The snapshotter leaves images to the guest.
    pub(super) nydus: bool,
    pub(super) repair: Option<Repair>,
    pub(super) required: bool,
    pub(super) means: Vec<FallbackSource>,
    pub(super) images: Vec<Chain>,
    /// On which layers containers stand.
    pub(super) containers: Vec<At>,
    /// What another client's lease holds.
    pub(super) leased: Option<At>,
    /// On which layer a container stood that garbage collection has taken: it cannot be removed any
    /// more.
    pub(super) collected: Option<At>,
}

impl World {
    pub(super) fn can_pull(&self) -> bool {
        self.means.contains(&FallbackSource::Pull)
    }

    pub(super) fn can_rebuild(&self) -> bool {
        self.means.contains(&FallbackSource::Rebuild)
    }
}

fn looks() -> impl Strategy<Value = Looks> {
    use Looks::*;
    prop_oneof![
        Just(Bare),
        Just(Half),
        Just(Labelled),
        Just(GoesOn),
        Just(Proxied)
    ]
}

fn chain() -> impl Strategy<Value = Chain> {
    // Whole chains of one kind would hardly come up among independent layers.
    let alike = (looks(), 0..=MAX_LAYERS).prop_map(|(looks, count)| vec![looks; count]);
    let whole = looks().prop_map(|looks| vec![looks; MAX_LAYERS]);
    let committed = prop_oneof![Just(vec![]), vec(looks(), 0..=MAX_LAYERS), alike, whole];
    let gone = prop_oneof![Just(vec![]), vec(any::<bool>(), 0..=MAX_LAYERS)];
    let counts = (0..=5_usize, 0..=4_usize, 0..=MAX_LAYERS);
    (counts, committed, any::<bool>(), gone).prop_map(
        |((shared, own, in_overlayfs), committed, anchored, gone)| Chain {
            shared,
            own,
            committed,
            anchored,
            gone,
            in_overlayfs,
        },
    )
}

/// Any, and rather often one whose layers have to come from elsewhere.
pub(super) fn worlds() -> impl Strategy<Value = World> {
    let rebuilt = any_world().prop_map(|mut world| {
        (world.nydus, world.means) = (false, vec![FallbackSource::Rebuild]);
        for chain in &mut world.images {
            chain.committed.truncate(2);
            chain.gone.resize(MAX_LAYERS, true);
            chain.in_overlayfs = MAX_LAYERS;
        }
        world
    });
    prop_oneof![4 => any_world(), 1 => rebuilt]
}

fn any_world() -> impl Strategy<Value = World> {
    let at = || (0..3_usize, 0..MAX_LAYERS);
    let repair = prop_oneof![
        3 => Just(None),
        1 => Just(Some(Repair::Relabel)),
        2 => Just(Some(Repair::Replace)),
    ];
    let means = prop_oneof![
        3 => Just(vec![]),
        1 => Just(vec![FallbackSource::Rebuild]),
        1 => Just(vec![FallbackSource::Pull]),
        1 => Just(vec![FallbackSource::Rebuild, FallbackSource::Pull]),
    ];
    let required = prop_oneof![1 => Just(false), 7 => Just(true)];
    let rarely = prop_oneof![3 => Just(None), 1 => at().prop_map(Some)];
    let users = (vec(at(), 0..3), rarely.clone(), rarely);
    (
        any::<bool>(),
        repair,
        required,
        means,
        vec(chain(), 1..=3),
        users,
    )
        .prop_map(
            |(nydus, repair, required, means, images, (containers, leased, collected))| World {
                nydus,
                repair,
                required,
                means,
                images,
                containers,
                leased,
                collected,
            },
        )
}
