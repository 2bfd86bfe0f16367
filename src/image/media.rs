//! What a media type says: index, manifest, layer, or nothing that containerd unpacks. Pure.

/// The kinds of document that lead from an image's record to its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Index,
    Manifest,
    /// Docker's first format: no config, no diff ids. containerd has given it up.
    Schema1,
    /// None of these: a chart, a signature, an attestation.
    Other,
}

impl Document {
    pub(super) fn of(media_type: &str) -> Self {
        match media_type {
            "application/vnd.oci.image.index.v1+json"
            | "application/vnd.docker.distribution.manifest.list.v2+json" => Self::Index,
            "application/vnd.oci.image.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v2+json" => Self::Manifest,
            "application/vnd.docker.distribution.manifest.v1+json"
            | "application/vnd.docker.distribution.manifest.v1+prettyjws" => Self::Schema1,
            _ => Self::Other,
        }
    }
}

/// Whether a blob is a layer, by the rule of containerd's `IsLayerType`: any OCI layer whatever its
/// suffixes, and docker's with theirs taken off. containerd 2.3 counts erofs images, too; what comes
/// before cannot run an image that has one.
pub(super) fn is_layer(media_type: &str) -> bool {
    let base = media_type.split('+').next().unwrap_or_default();
    media_type.starts_with("application/vnd.oci.image.layer.")
        || matches!(
            base,
            "application/vnd.docker.image.rootfs.diff.tar"
                | "application/vnd.docker.image.rootfs.diff.tar.gzip"
                | "application/vnd.docker.image.rootfs.diff.tar.zstd"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar"
                | "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"
                | "application/vnd.erofs.layer.v1"
        )
}

/// Whether a blob is an image's config, by its media type. An artifact (WASM, a chart) has another, and so do
/// some images that containerd runs: only a document that is none is no image then.
pub(super) fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

/// Whether a layer has to be decrypted before anybody can unpack it.
pub(super) fn is_encrypted(media_type: &str) -> bool {
    media_type.split('+').skip(1).any(|s| s == "encrypted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_those_of_containerd() {
        for (media_type, layer, encrypted) in [
            ("application/vnd.oci.image.layer.v1.tar", true, false),
            ("application/vnd.oci.image.layer.v1.tar+gzip", true, false),
            ("application/vnd.oci.image.layer.v1.tar+zstd", true, false),
            (
                "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
                true,
                false,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+gzip+encrypted",
                true,
                true,
            ),
            (
                "application/vnd.oci.image.layer.v1.tar+encrypted",
                true,
                true,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip",
                true,
                false,
            ),
            (
                "application/vnd.docker.image.rootfs.diff.tar.gzip+encrypted",
                true,
                true,
            ),
            (
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
                true,
                false,
            ),
            ("application/vnd.erofs.layer.v1", true, false),
            ("application/vnd.in-toto+json", false, false),
            ("application/vnd.oci.empty.v1+json", false, false),
            ("application/vnd.oci.image.config.v1+json", false, false),
            ("application/vnd.encrypted", false, false),
            ("", false, false),
        ] {
            assert_eq!(is_layer(media_type), layer, "{media_type}");
            assert_eq!(is_encrypted(media_type), encrypted, "{media_type}");
        }
    }

    #[test]
    fn documents_are_told_apart() {
        for (media_type, expected) in [
            ("application/vnd.oci.image.index.v1+json", Document::Index),
            (
                "application/vnd.docker.distribution.manifest.list.v2+json",
                Document::Index,
            ),
            (
                "application/vnd.docker.distribution.manifest.v2+json",
                Document::Manifest,
            ),
            (
                "application/vnd.docker.distribution.manifest.v1+prettyjws",
                Document::Schema1,
            ),
            ("application/vnd.cncf.helm.config", Document::Other),
        ] {
            assert_eq!(Document::of(media_type), expected, "{media_type}");
        }
    }
}
