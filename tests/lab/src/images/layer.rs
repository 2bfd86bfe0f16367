//! Builds one layer: a reproducible tar archive of the test's entries.

use std::collections::BTreeMap;

use tar::{EntryType, Header};

use super::format::{Compression, Marks};

/// A layer under construction: entries in the order of the calls, owned by root, with times of 1970.
#[derive(Clone)]
pub struct Layer {
    tar: Vec<u8>,
    /// The compressed layer, if it is not compressed from the archive.
    pub(super) blob: Option<Vec<u8>>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(super) compression: Compression,
    pub(super) marks: Marks,
}

impl Layer {
    /// Returns a layer without entries.
    #[expect(
        clippy::new_without_default,
        reason = "an empty layer is a choice, not a default"
    )]
    pub fn new() -> Self {
        Self {
            tar: Vec::new(),
            blob: None,
            annotations: BTreeMap::new(),
            compression: Compression::default(),
            marks: Marks::default(),
        }
    }

    /// Returns a layer from a whole archive, for unusual entries.
    pub fn from_tar(tar: Vec<u8>) -> Self {
        Self { tar, ..Self::new() }
    }

    /// Returns a layer from a gzipped blob.
    pub(crate) fn from_blob(blob: Vec<u8>) -> Self {
        let blob = Some(blob);
        Self {
            blob,
            ..Self::new()
        }
    }

    /// Adds a directory.
    pub fn dir(self, path: &str, mode: u32) -> Self {
        self.entry(EntryType::Directory, path, mode, "", &[])
    }

    /// Adds a file.
    pub fn file(self, path: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, path, mode, "", content.as_ref())
    }

    /// Adds a symbolic link.
    pub fn symlink(self, path: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, path, 0o777, target, &[])
    }

    /// Hides a file of a lower layer.
    pub fn whiteout(self, path: &str) -> Self {
        let (dir, name) = path.rsplit_once('/').unwrap_or((".", path));
        self.file(&format!("{dir}/.wh.{name}"), 0o644, "")
    }

    /// Annotates the layer's descriptor in the manifest.
    pub fn annotate(mut self, key: &str, value: &str) -> Self {
        self.annotations.insert(key.to_owned(), value.to_owned());
        self
    }

    /// Compresses the blob with another method than gzip.
    pub fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Sets a media type that forbids distribution by registries.
    pub fn foreign(mut self) -> Self {
        self.marks.foreign = true;
        self
    }

    /// Sets a media type that marks it as encrypted; the content stays readable.
    pub fn encrypted(mut self) -> Self {
        self.marks.encrypted = true;
        self
    }

    fn entry(mut self, kind: EntryType, path: &str, mode: u32, link: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_path(path).expect("the lab's paths are short");
        if !link.is_empty() {
            header
                .set_link_name(link)
                .expect("the lab's links are short");
        }
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.tar.extend_from_slice(header.as_bytes());
        self.tar.extend_from_slice(content);
        self.tar.resize(self.tar.len().next_multiple_of(512), 0);
        self
    }

    /// Returns the archive with its two final empty blocks.
    pub(crate) fn into_tar(mut self) -> Vec<u8> {
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }
}
