//! What «labelled» means in a snapshotter, and how a chain that is not is repaired there. One table.

use std::fmt;

use crate::containerd::Labels;

/// nydus-snapshotter's own label on a layer that it has not unpacked: the guest pulls the image.
/// `Mounts` decides by the top layer's.
const NYDUS_PROXY_MODE: &str = "containerd.io/snapshot/nydus-proxy-mode";

/// How a chain whose labels are absent is repaired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Repair {
    /// The labels are put on the snapshots that are there. Right for snapshotters that work without
    /// labels (overlayfs, erofs, native, blockfile, devmapper, btrfs, zfs), and for those that have
    /// the whole content of a layer that was unpacked without (stargz, soci, overlaybd).
    Relabel,
    /// The chain is taken away and prepared again, since the snapshotter decides at `Prepare`:
    /// nydus in proxy mode, where a layer without labels was unpacked on the host.
    Replace,
}

/// What is known of a kind of snapshotter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Profile {
    /// It may leave the image to the guest, depending on its own configuration: to be found out.
    pub may_proxy: bool,
    /// A container must not start on an image that is not ready: it would be another one, not just
    /// a slow one.
    pub fails_closed: bool,
}

impl Profile {
    /// nydus: in proxy mode the guest pulls, and what the host unpacked is another image to it.
    pub const NYDUS: Self = Self {
        may_proxy: true,
        fails_closed: true,
    };

    /// Whatever has the whole content of a layer that was unpacked without labels, and is merely slow
    /// then: stargz, soci and overlaybd, which mount labelled layers lazily; overlayfs, erofs, native,
    /// blockfile, devmapper, btrfs and zfs, which keep labels when given.
    pub const COMPLETE: Self = Self {
        may_proxy: false,
        fails_closed: false,
    };

    /// By its name; `None` where the name does not tell. Proxy plugins have the names that users give
    /// them: what one with another name does is found out by asking it.
    pub fn of(snapshotter: &str) -> Option<Self> {
        let is_nydus = snapshotter.split('-').next() == Some("nydus");
        is_nydus.then_some(Self::NYDUS)
    }
}

/// Whether the snapshotter left this layer to the guest.
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

    /// The labels of a layer that nydus left to the guest.
    pub(crate) fn proxied(mut labels: Labels) -> Labels {
        labels.insert(NYDUS_PROXY_MODE.to_owned(), "true".to_owned());
        labels
    }

    #[test]
    fn some_names_tell_that_the_guest_may_pull() {
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
