//! What the labels of a config blob tell: anchors, and what this program has recorded. Pure.

use crate::unpack::snapshotter::listing::{ANCHOR, OWN_ANCHORS, USAGE};

/// What a label of a config blob is, and the snapshotter that it is about.
#[derive(Debug, PartialEq)]
pub(super) enum Meaning<'a> {
    /// The anchor of the image's own chain, which containerd sets as well.
    Anchor(&'a str),
    /// An anchor that only this program sets.
    OwnAnchor(&'a str),
    /// Whether a container has used the image.
    Usage(&'a str),
    /// Any other label of this program.
    Other,
}

/// Returns what a label of a config blob is.
pub(super) fn meaning(key: &str) -> Meaning<'_> {
    if let Some(snapshotter) = key.strip_prefix(USAGE) {
        return Meaning::Usage(snapshotter);
    }
    let Some(anchored) = key.strip_prefix(ANCHOR) else {
        return Meaning::Other;
    };
    match anchored.find('/') {
        Some(at) if anchored[at..].starts_with(OWN_ANCHORS) => Meaning::OwnAnchor(&anchored[..at]),
        Some(at) => Meaning::Anchor(&anchored[..at]),
        None => Meaning::Anchor(anchored),
    }
}

impl<'a> Meaning<'a> {
    /// Returns the snapshotter that the label is about.
    pub(super) fn snapshotter(&self) -> Option<&'a str> {
        match self {
            Self::Anchor(it) | Self::OwnAnchor(it) | Self::Usage(it) => Some(it),
            Self::Other => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_of_config_blobs_are_told_apart() {
        let anchor = |rest: &str| format!("{ANCHOR}{rest}");
        for (key, expected) in [
            (anchor("erofs"), Meaning::Anchor("erofs")),
            (anchor("erofs/another"), Meaning::Anchor("erofs")),
            (anchor("nydus/nri-unpack"), Meaning::OwnAnchor("nydus")),
            (anchor("nydus/nri-unpack-host"), Meaning::OwnAnchor("nydus")),
            (anchor("nydus/nri-unpack-kept"), Meaning::OwnAnchor("nydus")),
            ("nri-unpack/usage.erofs".to_owned(), Meaning::Usage("erofs")),
            ("nri-unpack/later".to_owned(), Meaning::Other),
        ] {
            assert_eq!(meaning(&key), expected, "{key}");
        }
    }
}
