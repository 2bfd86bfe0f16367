//! The kinds of snapshotters: what their labels mean, and how a chain without labels is repaired there.

use std::fmt;

use crate::containerd::Labels;
use crate::image::PROXY_MODE;

/// The names of snapshotters that mount labelled layers lazily from a registry.
const LAZY: [&str; 3] = ["stargz", "soci", "overlaybd"];

/// How a chain without labels is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The labels are put on the committed snapshots. Right for snapshotters that work without labels (overlayfs,
    /// erofs, native, blockfile, devmapper, btrfs, zfs), and for those that have the whole content of a layer that
    /// was unpacked without labels (stargz, soci, overlaybd).
    Relabel,
    /// The chain is removed and prepared again, since the snapshotter reads the labels at `Prepare` only: nydus in
    /// proxy mode, where a layer without labels was unpacked on the host.
    Replace,
}

/// The properties of a kind of snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The guest may pull the images, depending on the snapshotter's own configuration.
    pub may_proxy: bool,
    /// A container must not start on an image that is not ready: its root file system would be wrong, not only
    /// slow.
    pub fails_closed: bool,
}

impl Profile {
    /// nydus: in proxy mode the guest pulls the image, and a layer that the host unpacked is wrong for it.
    pub const NYDUS: Self = Self {
        may_proxy: true,
        fails_closed: true,
    };

    /// Snapshotters that have the whole content of a layer that was unpacked without labels, and are only slower
    /// then: stargz, soci and overlaybd, which mount labelled layers lazily; overlayfs, erofs, native, blockfile,
    /// devmapper, btrfs and zfs, which keep the labels that they get.
    pub const COMPLETE: Self = Self {
        may_proxy: false,
        fails_closed: false,
    };

    /// Returns the profile that the name implies; `None` for any other name. Users choose the names of proxy
    /// plugins, so it counts only until it is found out what the snapshotter does. A lazy one is left alone: the name
    /// decides.
    pub fn of(snapshotter: &str) -> Option<Self> {
        match snapshotter.split('-').next() {
            Some("nydus") => Some(Self::NYDUS),
            Some(name) if LAZY.contains(&name) => Some(Self::COMPLETE),
            _ => None,
        }
    }
}

/// Whether this is a guest-pulled layer: the snapshotter committed it without content, since the guest pulls it. Its
/// mounts depend on the label of the top layer only. In a snapshotter that does not leave images to a guest, the label
/// may come from an annotation of the image.
pub(crate) fn is_proxied(labels: &Labels) -> bool {
    labels.get(PROXY_MODE).is_some_and(|value| value == "true")
}

impl fmt::Display for Repair {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Relabel => "relabel",
            Self::Replace => "replace",
        })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// The labels of a guest-pulled layer of nydus.
    pub(crate) fn proxied(mut labels: Labels) -> Labels {
        labels.insert(PROXY_MODE.to_owned(), "true".to_owned());
        labels
    }

    #[test]
    fn some_names_imply_a_profile() {
        for (snapshotter, profile) in [
            ("nydus", Some(Profile::NYDUS)),
            ("nydus-cc", Some(Profile::NYDUS)),
            ("erofs", None),
            ("soci", Some(Profile::COMPLETE)),
            ("stargz-2", Some(Profile::COMPLETE)),
            ("nydusx", None),
            ("guest-pull", None),
        ] {
            assert_eq!(Profile::of(snapshotter), profile, "{snapshotter}");
        }
        assert!(is_proxied(&proxied(Labels::new())));
        assert!(!is_proxied(&Labels::new()));
    }
}
