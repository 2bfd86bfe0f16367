//! Media types: which stand for an index, a manifest, a config or a layer. Pure.

/// The kinds of document between an image's record and its layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Document {
    Index,
    Manifest,
    /// Docker's schema 1: no config, no diff ids. containerd does not support it any more.
    Schema1,
    /// Any other: a chart, a signature, an attestation.
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

/// Whether a blob is a layer, by the rule of containerd's `IsLayerType`: OCI layers with any suffix, and
/// docker's without their suffixes. Since 2.3 containerd also counts erofs layers; earlier versions
/// cannot run an image that has one.
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

/// Whether a blob's media type is that of an image's config. Artifacts (WASM, a chart) have other media types,
/// but so have some images that containerd runs. So another media type alone does not make an artifact: the
/// document must also fail to parse as an image.
pub(super) fn is_config(media_type: &str) -> bool {
    matches!(
        media_type,
        "application/vnd.oci.image.config.v1+json"
            | "application/vnd.docker.container.image.v1+json"
    )
}

/// Whether a layer is encrypted.
pub(super) fn is_encrypted(media_type: &str) -> bool {
    media_type.split('+').skip(1).any(|s| s == "encrypted")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layer_media_types_are_those_of_containerd() {
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
    fn document_media_types_are_distinguished() {
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
