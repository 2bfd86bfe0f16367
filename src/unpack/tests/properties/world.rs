//! Descriptions of random nodes: images that share layers, the state of their chains, their users, and missing blobs.
//! They are plain data, so that the same node can be built twice.

use proptest::collection::vec;
use proptest::prelude::*;

use super::super::super::{FallbackSource, Repair};

/// The maximum number of layers of an image. More layers only make the tests slower.
pub(super) const MAX_LAYERS: usize = 8;

/// The labels of a committed layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum LayerKind {
    /// No labels.
    Bare,
    /// Some labels are missing.
    Half,
    /// All labels.
    Labelled,
    /// The labels of a layer that has layers above it.
    Lower,
    /// A guest-pulled layer, if the snapshotter has guest pull; otherwise all labels.
    Proxied,
}

/// An image and its chain.
#[derive(Clone, Debug)]
pub(super) struct Chain {
    /// The number of layers that it shares with the image before it.
    pub(super) shared: usize,
    /// The number of its own layers above them.
    pub(super) own: usize,
    /// The committed layers, bottom first.
    pub(super) committed: Vec<LayerKind>,
    pub(super) anchored: bool,
    /// Whether each blob is gone, bottom first. Blobs that are not listed exist.
    pub(super) gone: Vec<bool>,
    /// The number of its layers that overlayfs also has.
    pub(super) in_overlayfs: usize,
}

/// A layer: the index of an image and of its layer, each modulo their number.
pub(super) type At = (usize, usize);

/// A node.
#[derive(Clone, Debug)]
pub(super) struct World {
    /// The snapshotter has guest pull.
    pub(super) nydus: bool,
    pub(super) repair: Option<Repair>,
    pub(super) required: bool,
    pub(super) fallbacks: Vec<FallbackSource>,
    pub(super) images: Vec<Chain>,
    /// The layers that containers are based on.
    pub(super) containers: Vec<At>,
    /// The layer that another client's lease holds.
    pub(super) leased: Option<At>,
    /// The layer of a container that garbage collection has removed: `Remove` fails for this layer.
    pub(super) collected: Option<At>,
}

impl World {
    pub(super) fn can_pull(&self) -> bool {
        self.fallbacks.contains(&FallbackSource::Pull)
    }

    pub(super) fn can_rebuild(&self) -> bool {
        self.fallbacks.contains(&FallbackSource::Rebuild)
    }
}

fn kinds() -> impl Strategy<Value = LayerKind> {
    use LayerKind::*;
    prop_oneof![
        Just(Bare),
        Just(Half),
        Just(Labelled),
        Just(Lower),
        Just(Proxied)
    ]
}

fn chain() -> impl Strategy<Value = Chain> {
    // Independent layers would rarely make a whole chain of one kind.
    let alike = (kinds(), 0..=MAX_LAYERS).prop_map(|(kind, count)| vec![kind; count]);
    let whole = kinds().prop_map(|kind| vec![kind; MAX_LAYERS]);
    let committed = prop_oneof![Just(vec![]), vec(kinds(), 0..=MAX_LAYERS), alike, whole];
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

/// Returns random nodes. One in five has layers that have to be rebuilt from overlayfs.
pub(super) fn worlds() -> impl Strategy<Value = World> {
    let rebuilt = any_world().prop_map(|mut world| {
        (world.nydus, world.fallbacks) = (false, vec![FallbackSource::Rebuild]);
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
    let fallbacks = prop_oneof![
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
        fallbacks,
        vec(chain(), 1..=3),
        users,
    )
        .prop_map(
            |(nydus, repair, required, fallbacks, images, (containers, leased, collected))| World {
                nydus,
                repair,
                required,
                fallbacks,
                images,
                containers,
                leased,
                collected,
            },
        )
}
