//! The kinds of snapshotters: what their labels mean, and how a chain without labels is repaired there.

use std::fmt;

use crate::containerd::Labels;

/// nydus-snapshotter's own label on a layer that it has not unpacked, since the guest pulls the image. Its `Mounts`
/// reads the label of the top layer only.
pub(crate) const NYDUS_PROXY_MODE: &str = "containerd.io/snapshot/nydus-proxy-mode";

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
    /// The guest may pull the images, depending on the snapshotter's own configuration: a probe finds out.
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
    /// plugins, so a probe finds out what a snapshotter with another name does.
    pub fn of(snapshotter: &str) -> Option<Self> {
        let is_nydus = snapshotter.split('-').next() == Some("nydus");
        is_nydus.then_some(Self::NYDUS)
    }
}

/// Whether this is a guest-pulled layer: the snapshotter committed it without content, since the guest pulls it.
pub(crate) fn is_proxied(labels: &Labels) -> bool {
    labels
        .get(NYDUS_PROXY_MODE)
        .is_some_and(|value| value == "true")
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
        labels.insert(NYDUS_PROXY_MODE.to_owned(), "true".to_owned());
        labels
    }

    #[test]
    fn a_name_that_begins_with_nydus_implies_guest_pull() {
        for (snapshotter, profile) in [
            ("nydus", Some(Profile::NYDUS)),
            ("nydus-cc", Some(Profile::NYDUS)),
            ("erofs", None),
            ("soci", None),
            ("stargz", None),
            ("nydusx", None),
            ("guest-pull", None),
        ] {
            assert_eq!(Profile::of(snapshotter), profile, "{snapshotter}");
        }
        assert!(is_proxied(&proxied(Labels::new())));
        assert!(!is_proxied(&Labels::new()));
    }
}
