//! Builds the index of an image.

use serde_json::{Value, json};

use super::build::{Run, bytes, config, describe, manifest};
use super::format::Format;
use super::{Blob, CONFIG};

/// What an index lists besides the image, and whether it is nested.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Indexing {
    /// An attestation, as builders add it: a manifest for no platform, whose blob is not a layer.
    pub(super) attested: bool,
    /// The index is the only entry of another index, which names no platform.
    pub(super) nested: bool,
}

/// Returns the index of `image` for `platform` (architecture and variant). Adds the index and its other entries
/// to `blobs`. The image of another platform is the first entry: a reader that takes the first entry takes the
/// wrong image.
pub(super) fn index(
    format: Format,
    image: &Blob,
    platform: (&str, &str),
    indexing: Indexing,
    blobs: &mut Vec<Blob>,
) -> Blob {
    let mut entries = Vec::new();
    if indexing.attested {
        let attestation = attestation(image, blobs);
        entries.push(attestation);
    }
    let foreign_config = Blob::new(format.config(), config(("s390x", ""), &Run::default(), &[]));
    let foreign = manifest(format, &foreign_config, &[]);
    entries.push(entry(&foreign, "linux", ("s390x", "")));
    entries.push(entry(image, "linux", platform));
    blobs.extend([foreign_config, foreign]);

    let mut index = wrap(format, &entries);
    blobs.push(index.clone());
    if indexing.nested {
        index = wrap(format, &[describe(&index)]);
        blobs.push(index.clone());
    }
    index
}

fn wrap(format: Format, entries: &[Value]) -> Blob {
    let body = json!({ "schemaVersion": 2, "mediaType": format.index(), "manifests": entries });
    Blob::new(format.index(), bytes(&body))
}

fn entry(blob: &Blob, os: &str, (architecture, variant): (&str, &str)) -> Value {
    let mut entry = describe(blob);
    entry["platform"] = json!({ "architecture": architecture, "os": os });
    if !variant.is_empty() {
        entry["platform"]["variant"] = json!(variant);
    }
    entry
}

fn attestation(image: &Blob, blobs: &mut Vec<Blob>) -> Value {
    let statement = Blob::new(
        "application/vnd.in-toto+json",
        bytes(&json!({ "subject": [{ "digest": image.digest }] })),
    );
    let config = bytes(&json!({ "architecture": "unknown", "os": "unknown" }));
    let config = Blob::new(CONFIG, config);
    let manifest = manifest(Format::Oci, &config, &[describe(&statement)]);
    let mut entry = entry(&manifest, "unknown", ("unknown", ""));
    entry["annotations"] = json!({
        "vnd.docker.reference.digest": image.digest,
        "vnd.docker.reference.type": "attestation-manifest",
    });
    blobs.extend([statement, config, manifest]);
    entry
}
