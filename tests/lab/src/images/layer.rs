//! One layer: a tar archive whose every byte is determined by what the test put into it.

use std::collections::BTreeMap;

use tar::{EntryType, Header};

use super::format::{Compression, Marks};

/// A layer under construction: entries in the order in which they were added, owned by root, dated 1970.
#[derive(Clone)]
pub struct Layer {
    tar: Vec<u8>,
    /// The compressed layer, where it is not to be made of the archive.
    pub(super) blob: Option<Vec<u8>>,
    pub(crate) annotations: BTreeMap<String, String>,
    pub(super) compression: Compression,
    pub(super) marks: Marks,
}

impl Layer {
    /// A layer without entries.
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

    /// A layer that is a whole archive already, for entries that are out of the ordinary.
    pub fn from_tar(tar: Vec<u8>) -> Self {
        Self { tar, ..Self::new() }
    }

    /// A layer that is a gzipped blob already.
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

    /// Compresses its blob in another way than with gzip.
    pub fn compressed(mut self, compression: Compression) -> Self {
        self.compression = compression;
        self
    }

    /// Lets its media type say that registries must not distribute it.
    pub fn foreign(mut self) -> Self {
        self.marks.foreign = true;
        self
    }

    /// Lets its media type say that it is encrypted; it stays readable.
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

    /// The archive, closed by its two empty blocks.
    pub(crate) fn into_tar(mut self) -> Vec<u8> {
        self.tar.resize(self.tar.len() + 1024, 0);
        self.tar
    }
}
