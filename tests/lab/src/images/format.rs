//! Converts a layer to a blob: the media types of both formats, and the compressions.

use std::io::{Read, Write};

use flate2::read::MultiGzDecoder;
use flate2::{Compression as Level, GzBuilder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};

/// The format whose media types a manifest uses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Format {
    Oci,
    Docker,
}

/// The compression of a layer's blob.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Compression {
    /// The compression of nearly all images.
    #[default]
    Gzip,
    /// The compression of some images.
    Zstd,
    /// No compression: the blob is the tar.
    None,
}

/// The properties in a layer's media type besides its compression.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Marks {
    /// Registries must not distribute it.
    pub(super) foreign: bool,
    /// It is marked as encrypted, but is not.
    pub(super) encrypted: bool,
}

impl Format {
    pub(super) fn manifest(self) -> &'static str {
        match self {
            Format::Oci => super::MANIFEST,
            Format::Docker => super::DOCKER_MANIFEST,
        }
    }

    pub(super) fn index(self) -> &'static str {
        match self {
            Format::Oci => super::INDEX,
            Format::Docker => super::DOCKER_LIST,
        }
    }

    pub(super) fn config(self) -> &'static str {
        match self {
            Format::Oci => super::CONFIG,
            Format::Docker => "application/vnd.docker.container.image.v1+json",
        }
    }

    pub(super) fn layer(self, compression: Compression, marks: Marks) -> String {
        let (kind, separator) = match (self, marks.foreign) {
            (Format::Oci, false) => ("oci.image.layer.v1.tar", '+'),
            (Format::Oci, true) => ("oci.image.layer.nondistributable.v1.tar", '+'),
            (Format::Docker, false) => ("docker.image.rootfs.diff.tar", '.'),
            (Format::Docker, true) => ("docker.image.rootfs.foreign.diff.tar", '.'),
        };
        let mut media_type = format!("application/vnd.{kind}");
        if let Some(suffix) = compression.suffix() {
            media_type.push(separator);
            media_type += suffix;
        }
        if marks.encrypted {
            media_type += "+encrypted";
        }
        media_type
    }
}

impl Compression {
    fn suffix(self) -> Option<&'static str> {
        match self {
            Compression::Gzip => Some("gzip"),
            Compression::Zstd => Some("zstd"),
            Compression::None => None,
        }
    }

    pub(super) fn compress(self, tar: Vec<u8>) -> Vec<u8> {
        match self {
            Compression::Gzip => gzip(&tar),
            Compression::Zstd => compress_to_vec(&tar[..], CompressionLevel::Fastest),
            Compression::None => tar,
        }
    }
}

/// The size in bytes above which an archive is stored uncompressed, as the format allows. It holds a program or random
/// content, and the tests would spend more time on its compression than on what they test.
const COMPRESSED_UP_TO: usize = 256 << 10;

/// Compresses without a name and a time in the header.
fn gzip(tar: &[u8]) -> Vec<u8> {
    let level = if tar.len() > COMPRESSED_UP_TO {
        Level::none()
    } else {
        Level::fast()
    };
    let mut encoder = GzBuilder::new().mtime(0).write(Vec::new(), level);
    encoder
        .write_all(tar)
        .and_then(|()| encoder.finish())
        .expect("a Vec takes everything")
}

/// Returns the content of a blob, which may consist of several members.
pub(super) fn gunzip(blob: &[u8]) -> Vec<u8> {
    let mut tar = Vec::new();
    MultiGzDecoder::new(blob)
        .read_to_end(&mut tar)
        .expect("a layer that the lab has made");
    tar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_match_the_format() {
        let foreign = Marks {
            foreign: true,
            ..Marks::default()
        };
        let encrypted = Marks {
            encrypted: true,
            ..Marks::default()
        };
        for (format, compression, marks, expected) in [
            (
                Format::Oci,
                Compression::Gzip,
                Marks::default(),
                super::super::LAYER_GZIP,
            ),
            (
                Format::Oci,
                Compression::None,
                Marks::default(),
                "application/vnd.oci.image.layer.v1.tar",
            ),
            (
                Format::Oci,
                Compression::Zstd,
                encrypted,
                "application/vnd.oci.image.layer.v1.tar+zstd+encrypted",
            ),
            (
                Format::Docker,
                Compression::Gzip,
                foreign,
                "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
            ),
            (
                Format::Docker,
                Compression::None,
                Marks::default(),
                "application/vnd.docker.image.rootfs.diff.tar",
            ),
        ] {
            assert_eq!(format.layer(compression, marks), expected);
        }
    }
}
