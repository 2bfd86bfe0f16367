//! The fuzzer of the archive's entries.

use std::ffi::OsStr;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use super::attributes;
use super::entry::{Entry, Kind};

/// Takes values off the bytes; zeros when there are none left.
struct Bytes<'a>(&'a [u8]);

impl<'a> Bytes<'a> {
    fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, left) = self.0.split_at(length.min(self.0.len()));
        self.0 = left;
        taken
    }

    fn number(&mut self, length: usize) -> u64 {
        let bytes = self.take(length).iter();
        bytes.fold(0, |number, byte| number << 8 | u64::from(*byte))
    }

    /// Takes a name that a file can have: of one byte at least, without zeros and slashes. Without newlines as well: the
    /// reader below takes them for the end of a record, and containerd's reader does not.
    fn name(&mut self) -> Vec<u8> {
        let length = self.number(1) as usize * if self.number(1) == 1 { 16 } else { 1 };
        let is_plain = |byte: &u8| !matches!(byte, 0 | b'/' | b'\n');
        let name: Vec<_> = self.take(length).iter().copied().filter(is_plain).collect();
        match name.as_slice() {
            [] | b"." | b".." => b"f".to_vec(),
            _ => name,
        }
    }
}

/// The values of an entry: an archive with it is read as they are, by another implementation of the format.
///
/// # Panics
/// If not.
pub fn archive(bytes: &[u8]) {
    let mut bytes = Bytes(bytes);
    let (kind, path, link) = (bytes.number(1), bytes.name(), bytes.name());
    let (major, minor) = (
        bytes.number(2) as u32 & 0xfff,
        bytes.number(3) as u32 & 0xf_ffff,
    );
    let content = [7; 3];
    let kind = match kind % 7 {
        0 => Kind::Directory,
        1 => Kind::File(content.len() as u64),
        2 => Kind::Symlink(OsStr::from_bytes(&link)),
        3 => Kind::HardLink(Path::new(OsStr::from_bytes(&link))),
        4 => Kind::Character(major, minor),
        5 => Kind::Block(major, minor),
        _ => Kind::Fifo,
    };
    let all = (0..bytes.number(1) % 4).map(|_| {
        let name = format!("user.{}", String::from_utf8_lossy(&bytes.name()));
        (name, bytes.name())
    });
    let Ok(sorted) = attributes::sort(all.collect(), false) else {
        return;
    };
    let entry = Entry {
        path: Path::new(OsStr::from_bytes(&path)),
        kind,
        mode: bytes.number(2) as u32 & 0o7777,
        uid: bytes.number(4) as u32,
        gid: bytes.number(4) as u32,
        seconds: bytes.number(8) as i64,
        nanoseconds: (bytes.number(4) % 1_000_000_000) as u32,
        attributes: &sorted.own,
    };
    check(&entry, &content);
}

fn check(entry: &Entry<'_>, content: &[u8]) {
    let content = match entry.kind {
        Kind::File(_) => content,
        _ => &[],
    };
    let mut archive = tar::Builder::new(vec![]);
    let (header, records) = entry.encode();
    let records = records
        .iter()
        .map(|(key, value)| (key.as_str(), &value[..]));
    archive.append_pax_extensions(records).expect("it fits");
    archive.append(&header, content).expect("it fits");
    let archive = archive.into_inner().expect("it ends");

    let mut archive = tar::Archive::new(&archive[..]);
    let mut entries = archive.entries().expect("an archive");
    let mut read = entries.next().expect("an entry").expect("readable");
    assert_eq!(*read.path_bytes(), *entry.path.as_os_str().as_bytes());
    let link = match entry.kind {
        Kind::Symlink(target) => Some(target.as_bytes().to_vec()),
        Kind::HardLink(target) => Some(target.as_os_str().as_bytes().to_vec()),
        _ => None,
    };
    assert_eq!(read.link_name_bytes().map(|link| link.to_vec()), link);
    let mut attributes = vec![];
    for record in read
        .pax_extensions()
        .expect("readable")
        .into_iter()
        .flatten()
    {
        let record = record.expect("readable");
        let key = record.key().expect("UTF-8").to_owned();
        if let Some(name) = key.strip_prefix("SCHILY.xattr.") {
            attributes.push((name.to_owned(), record.value_bytes().to_vec()));
        }
    }
    assert_eq!(attributes, entry.attributes);
    let header = read.header();
    assert_eq!(header.mode().expect("a number"), entry.mode);
    assert_eq!(header.uid().expect("a number"), u64::from(entry.uid));
    assert_eq!(header.gid().expect("a number"), u64::from(entry.gid));
    if let Kind::Character(major, minor) | Kind::Block(major, minor) = entry.kind {
        assert_eq!(header.device_major().expect("a number"), Some(major));
        assert_eq!(header.device_minor().expect("a number"), Some(minor));
    }
    let mut found = vec![];
    read.read_to_end(&mut found).expect("readable");
    assert_eq!(found, content);
    drop(read);
    assert!(entries.next().is_none());
}
