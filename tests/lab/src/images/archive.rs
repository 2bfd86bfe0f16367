//! An image as an OCI archive, the format that `ctr images import` reads.

use std::io;
use std::path::Path;

use serde_json::json;

use super::build::{bytes, describe};
use super::{Image, Layer};

impl Image {
    /// Writes the archive: every name is an entry of the archive's own index, which points to the target.
    ///
    /// # Errors
    /// If the file cannot be written.
    pub fn write_archive(&self, path: &Path) -> io::Result<()> {
        let entries: Vec<_> = self
            .names
            .iter()
            .map(|name| {
                let mut entry = describe(&self.target);
                entry["annotations"] = json!({ "io.containerd.image.name": name });
                entry
            })
            .collect();
        let index = bytes(&json!({ "schemaVersion": 2, "manifests": entries }));
        let mut archive = Layer::new()
            .file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#)
            .file("index.json", 0o644, index);
        for blob in &self.blobs {
            archive = archive.file(
                &format!("blobs/{}", blob.digest.replace(':', "/")),
                0o644,
                &blob.bytes,
            );
        }
        std::fs::write(path, archive.into_tar())
    }
}
