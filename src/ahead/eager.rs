//! The eager sets: which images are unpacked ahead, in which snapshotters, and in which order.

use std::cmp::Reverse;
use std::collections::HashSet;
use std::sync::OnceLock;
use std::time::SystemTime;

use crate::config::{Config, DuringPull, Eager};
use crate::containerd::{Image, Snapshotter};
use crate::handlers::Handlers;
use crate::image;
use crate::policy;

/// CRI's label on images that the kubelet never removes, such as the pause image.
const PINNED: (&str, &str) = ("io.cri-containerd.pinned", "pinned");

/// The export that names the directory of a snapshotter.
const ROOT: &str = "root";

/// A snapshotter whose images the plugin keeps ready.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct ManagedSnapshotter {
    pub(super) name: String,
    /// Whether it is a proxy plugin: another process makes its snapshots, mostly without content.
    pub(super) is_proxy: bool,
    /// A directory on the file system that it uses, if containerd names one.
    pub(super) root: Option<String>,
}

/// Returns the snapshotters that handlers use, that the plugin manages, and that have started.
pub(super) fn managed(
    config: &Config,
    handlers: &Handlers,
    listed: &[Snapshotter],
) -> Vec<ManagedSnapshotter> {
    let default = handlers.default_name();
    // containerd does not know the directory of a proxy plugin: the root of another snapshotter is a guess.
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

/// Returns the images of the store, each once, in the order in which they are unpacked: pinned images, images
/// that containers use, then the newest. `sandbox` is the target digest of the pause image, which need
/// not be pinned.
pub(super) fn in_order(
    images: Vec<Image>,
    sandbox: Option<&str>,
    used: &HashSet<String>,
) -> Vec<StoreImage> {
    let mut store_images: Vec<_> = image::by_target(images)
        .filter_map(|records| one(records, sandbox))
        .collect();
    store_images.sort_by_key(|image| {
        let is_used = image.names.iter().any(|name| used.contains(name));
        Reverse((image.is_pinned, is_used, image.created_at))
    });
    store_images
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

/// Whether the image is pinned: the kubelet never removes it.
pub(crate) fn is_pinned(image: &Image) -> bool {
    image
        .labels
        .get(PINNED.0)
        .is_some_and(|value| value == PINNED.1)
}

/// Why an image is made ready ahead in a snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// It is pinned, or the pause image.
    Pinned,
    /// The configuration names all images.
    All,
    /// The snapshotter needs no content for it.
    WithoutContent,
    /// Containers have used an older image of its repository there.
    Used,
    /// A pod that is bound to this node waits for it.
    PodBound,
    /// A pod of the snapshotter has no container yet, and the image arrives.
    PodWaits,
    /// A container may need it, and containerd cannot unpack it.
    Stuck,
    /// The snapshotter has lost it.
    Lost,
}

impl Why {
    /// Returns the word for it in the output of commands.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pinned => "pinned",
            Self::All => "all",
            Self::WithoutContent => "without-content",
            Self::Used => "used-repository",
            Self::PodBound => "pod-bound",
            Self::PodWaits => "pod-waits",
            Self::Stuck => "stuck",
            Self::Lost => "lost",
        }
    }
}

impl std::fmt::Display for Why {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Pinned => "pinned",
            Self::All => "eager is all",
            Self::WithoutContent => "needs no content",
            Self::Used => "containers have used its repository",
            Self::PodBound => "a bound pod waits for it",
            Self::PodWaits => "a pod waits for its first container",
            Self::Stuck => "containerd cannot unpack it",
            Self::Lost => "the snapshotter has lost it",
        })
    }
}

/// Returns why an image is in the snapshotter's eager set; `None` if it is not. The patterns `include` and `exclude` are
/// not checked here.
pub(super) fn why(
    config: &Config,
    snapshotter: &ManagedSnapshotter,
    is_pinned: bool,
) -> Option<Why> {
    let why = match config.snapshotter(&snapshotter.name).eager {
        Eager::None => return None,
        _ if is_pinned => Why::Pinned,
        Eager::All => Why::All,
        Eager::Auto if snapshotter.is_proxy => Why::WithoutContent,
        Eager::Auto | Eager::Pinned => return None,
    };
    Some(why)
}

/// Whether images outside of the eager set are made ready here if containers are known to need them.
pub(super) fn takes_demand(config: &Config, snapshotter: &ManagedSnapshotter) -> bool {
    config.snapshotter(&snapshotter.name).eager == Eager::Auto
}

/// Whether images may be made ready here while they are being pulled: the snapshotter needs no content for them, or
/// applies their layers at that time. An image's name is not known yet at that time, so this needs a configuration that
/// does not depend on names.
pub(super) fn is_eager_in_a_pull(config: &Config, snapshotter: &ManagedSnapshotter) -> bool {
    let is_eager = why(config, snapshotter, false).is_some();
    let is_wanted = match snapshotter.is_proxy {
        true => is_eager,
        false => applies_in_a_pull(config) && (is_eager || takes_demand(config, snapshotter)),
    };
    is_wanted && config.snapshotter(&snapshotter.name).is_nameless()
}

/// The number of processors from which on layers are applied during a pull. In a pull, containerd verifies and extracts
/// layers: on two processors, a pull took up to 1.4 times as long.
const PROCESSORS: usize = 4;

fn applies_in_a_pull(config: &Config) -> bool {
    match config.unpack.during_pull {
        DuringPull::On => true,
        DuringPull::Off => false,
        DuringPull::Auto => processors() >= PROCESSORS,
    }
}

/// Returns the number of processors of the node. The limits of the plugin's own container do not count: containerd does
/// the work.
fn processors() -> usize {
    static COUNT: OnceLock<usize> = OnceLock::new();
    *COUNT.get_or_init(|| {
        let online = std::fs::read_to_string("/sys/devices/system/cpu/online");
        online.map_or(1, |ranges| count(ranges.trim()))
    })
}

/// Returns the number of processors in ranges such as `0-3,6`.
fn count(ranges: &str) -> usize {
    let range = |range: &str| {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (usize, usize) = (first.parse().ok()?, last.parse().ok()?);
        Some(last.saturating_sub(first) + 1)
    };
    ranges.split(',').filter_map(range).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processors_are_counted() {
        for (ranges, number) in [("0", 1), ("0-3", 4), ("0-3,6,8-9", 7), ("", 0)] {
            assert_eq!(count(ranges), number, "{ranges}");
        }
        assert!(processors() > 0);
    }
}
