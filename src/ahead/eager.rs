//! Which images are unpacked ahead, where, and in which order.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::time::SystemTime;

use crate::config::{Config, Eager};
use crate::containerd::{Image, Snapshotter};
use crate::handlers::Handlers;
use crate::image;
use crate::policy;

/// CRI's label on images that are never collected: the pause image is one.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// Where a snapshotter keeps its files.
const ROOT: &str = "root";

/// A snapshotter that is kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManagedSnapshotter {
    pub(super) name: String,
    /// Another process makes its snapshots, mostly without content.
    pub(super) is_proxy: bool,
    /// A directory on the file system whose room it uses, where containerd says one.
    pub(super) root: Option<String>,
}

/// The snapshotters that handlers use, that are ours to keep, and that are up.
pub(super) fn managed(
    config: &Config,
    handlers: &Handlers,
    listed: &[Snapshotter],
) -> Vec<ManagedSnapshotter> {
    let default = handlers.default_name();
    // A proxy's files are another process's to know; containerd's own are as good a guess.
    let any_root = listed.iter().find_map(|s| s.exports.get(ROOT));
    let up = listed.iter().filter(|s| s.init_error.is_none());
    let kept = up.filter(|s| {
        handlers.snapshotters().contains(s.name.as_str())
            && policy::is_kept(config, &s.name, default)
    });
    let managed = |s: &Snapshotter| ManagedSnapshotter {
        name: s.name.clone(),
        is_proxy: s.proxy_address().is_some(),
        root: s.exports.get(ROOT).or(any_root).cloned(),
    };
    kept.map(managed).collect()
}

/// An image of the store, under all of its names.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct StoreImage {
    /// The record with the best of the names.
    pub(super) image: Image,
    pub(super) names: Vec<String>,
    pub(super) is_pinned: bool,
    pub(super) created_at: Option<SystemTime>,
}

/// The images of the store, each once, in the order in which they are unpacked: pinned ones, those
/// that containers use, then what came last. `sandbox` is the target of the pause image, which need
/// not be pinned.
pub(super) fn in_order(
    images: Vec<Image>,
    sandbox: Option<&str>,
    used: &HashSet<String>,
) -> Vec<StoreImage> {
    let mut known: Vec<_> = image::by_target(images)
        .filter_map(|records| one(records, sandbox))
        .collect();
    known.sort_by_key(|known| {
        let is_used = known.names.iter().any(|name| used.contains(name));
        Reverse((known.is_pinned, is_used, known.created_at))
    });
    known
}

fn one(mut records: Vec<Image>, sandbox: Option<&str>) -> Option<StoreImage> {
    let names: Vec<_> = records.iter().map(|image| image.name.clone()).collect();
    let best = image::name_for_labels(None, &names)?;
    let is_pinned = records.iter().any(is_pinned)
        || records
            .first()
            .is_some_and(|image| Some(image.target.digest.as_str()) == sandbox);
    let created_at = records.iter().filter_map(|image| image.created_at).max();
    let at = names.iter().position(|name| *name == best)?;
    Some(StoreImage {
        image: records.swap_remove(at),
        names,
        is_pinned,
        created_at,
    })
}

/// Whether CRI never collects the image.
pub(super) fn is_pinned(image: &Image) -> bool {
    image
        .labels
        .get(PINNED.0)
        .is_some_and(|value| value == PINNED.1)
}

/// Whether an image is unpacked here before a pod asks for it. What the patterns of the configuration
/// leave out is not asked here.
pub(super) fn is_eager(config: &Config, snapshotter: &ManagedSnapshotter, is_pinned: bool) -> bool {
    match config.snapshotter(&snapshotter.name).eager {
        Eager::All => true,
        Eager::Auto => snapshotter.is_proxy || is_pinned,
        Eager::Pinned => is_pinned,
        Eager::None => false,
    }
}

/// Whether that is so only if the snapshotter needs no content for the image.
pub(super) fn is_without_content(
    config: &Config,
    snapshotter: &ManagedSnapshotter,
    is_pinned: bool,
) -> bool {
    let eager = config.snapshotter(&snapshotter.name).eager;
    eager == Eager::Auto && snapshotter.is_proxy && !is_pinned
}

/// Whether an image is unpacked here while it is being pulled: its snapshotter needs no content for
/// it. Then its name is not known yet, so the configuration must not ask for it.
pub(super) fn is_eager_in_a_pull(config: &Config, snapshotter: &ManagedSnapshotter) -> bool {
    snapshotter.is_proxy
        && is_eager(config, snapshotter, false)
        && config.snapshotter(&snapshotter.name).is_nameless()
}
