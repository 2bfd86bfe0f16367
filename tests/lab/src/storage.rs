//! The directory that a registry keeps its images in, filled without asking the registry.
//!
//! An upload by HTTP makes some fifty files and directories for each image and flushes each of them to the disk: it took
//! more processor time than all pulls from the registry. What is written here is what an upload leaves in the end.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use crate::images::Image;

/// The layout of the registry's file system driver.
#[derive(Debug)]
pub(crate) struct Storage {
    root: PathBuf,
}

impl Storage {
    /// The storage in this directory of a registry's configuration.
    pub(crate) fn below(dir: &Path) -> Self {
        Self {
            root: dir.join("docker/registry/v2"),
        }
    }

    /// Puts an image there under a repository and a tag. The tag comes last: what it leads to is whole.
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

/// Names a blob in a directory of links.
fn link(dir: &Path, digest: &str) -> io::Result<()> {
    let link = dir.join("sha256").join(hex(digest)).join("link");
    write(&link, digest.as_bytes())
}

fn hex(digest: &str) -> &str {
    digest.trim_start_matches("sha256:")
}

/// Writes a file that is read at any time: it appears whole, or stays as it is if it holds this already.
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
