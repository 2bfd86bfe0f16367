//! Writes images directly into the storage directory of a registry.
//!
//! An HTTP upload creates some fifty files and directories for each image and flushes each of them to disk: it
//! took more processor time than all pulls from the registry. This module writes the same files as an upload.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::images::Image;

/// The directory layout of the registry's file system driver.
#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
}

impl Storage {
    /// Returns the storage for the directory in a registry's configuration.
    pub(crate) fn below(dir: &Path) -> Self {
        Self {
            root: dir.join("docker/registry/v2"),
        }
    }

    /// Adds an image under a repository and a tag. The tag is written last, when all its content exists.
    pub(crate) fn put(&self, repository: &str, tag: &str, image: &Image) -> io::Result<()> {
        let repository = self.root.join("repositories").join(repository);
        let manifests = repository.join("_manifests");
        for blob in &image.blobs {
            let hex = hex(&blob.digest);
            let data = self.root.join("blobs/sha256").join(&hex[..2]).join(hex);
            write(&data.join("data"), &blob.bytes)?;
            let links = if blob.is_manifest() {
                manifests.join("revisions")
            } else {
                repository.join("_layers")
            };
            link(&links, &blob.digest)?;
        }
        let tag = manifests.join("tags").join(tag);
        link(&tag.join("index"), &image.target.digest)?;
        write(&tag.join("current/link"), image.target.digest.as_bytes())
    }
}

/// Adds a blob to a directory of links.
fn link(dir: &Path, digest: &str) -> io::Result<()> {
    let link = dir.join("sha256").join(hex(digest)).join("link");
    write(&link, digest.as_bytes())
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

/// Writes a file atomically, unless it has this content already.
fn write(path: &Path, bytes: &[u8]) -> io::Result<()> {
    if fs::metadata(path).is_ok_and(|file| file.len() == bytes.len() as u64)
        && fs::read(path)? == bytes
    {
        return Ok(());
    }
    let fresh = path.with_extension("fresh");
    match fs::write(&fresh, bytes) {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(path.parent().unwrap_or(path))?;
            fs::write(&fresh, bytes)?;
        }
        written => written?,
    }
    fs::rename(fresh, path)
}
