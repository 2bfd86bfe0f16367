//! Encodes one entry of a tar archive: the POSIX header, and PAX records for values that do not fit into it.
//! It does no I/O, and knows neither file systems nor containerd.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use tar::{EntryType, Header};

use super::attributes::Attribute;

/// The size in bytes of the header's fields for a name and for a link's target.
const NAME: usize = 100;

/// The largest value of seven octal digits.
const MAX_ID: u64 = 0o7_777_777;

/// The largest value of eleven octal digits: a size of 8 GiB, or a time in the year 2242.
const MAX_LONG: u64 = 0o77_777_777_777;

/// The prefix of the records for extended attributes, which other archivers read too.
const XATTR: &str = "SCHILY.xattr.";

/// A PAX record: its key and its value.
pub(super) type Record = (String, Vec<u8>);

/// The kind of an entry, with the values that only this kind has.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind<'a> {
    Directory,
    /// A file of this size in bytes. Its content follows the header.
    File(u64),
    Symlink(&'a OsStr),
    /// Another name of an earlier entry.
    HardLink(&'a Path),
    /// A character device, with its major and minor number.
    Character(u32, u32),
    /// A block device, with its major and minor number.
    Block(u32, u32),
    Fifo,
}

/// An entry.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry<'a> {
    /// The path from the layer's root, without a leading `/` or `./`. The root itself is `./`.
    pub(super) path: &'a Path,
    pub(super) kind: Kind<'a>,
    /// The permissions, with setuid, setgid and sticky.
    pub(super) mode: u32,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The modification time in seconds since 1970; negative before 1970.
    pub(super) seconds: i64,
    /// Nanoseconds after `seconds`.
    pub(super) nanoseconds: u32,
    pub(super) attributes: &'a [Attribute],
}

impl Entry<'_> {
    /// Returns the header, and the records that precede it.
    pub(super) fn encode(&self) -> (Header, Vec<Record>) {
        let mut header = Header::new_ustar();
        let mut records = vec![];
        header.set_entry_type(self.kind.entry_type());
        header.set_mode(self.mode);
        let ustar = header.as_ustar_mut().expect("made as one");
        put_name(&mut ustar.name, "path", self.path.as_os_str(), &mut records);
        if let Some(link) = self.kind.link() {
            put_name(&mut ustar.linkname, "linkpath", link, &mut records);
        }
        let mut fit = |key: &str, value: u64, max: u64| {
            if value > max {
                records.push((key.to_owned(), value.to_string().into_bytes()));
                return 0;
            }
            value
        };
        header.set_uid(fit("uid", self.uid.into(), MAX_ID));
        header.set_gid(fit("gid", self.gid.into(), MAX_ID));
        header.set_size(fit("size", self.kind.size(), MAX_LONG));
        if let Kind::Character(major, minor) | Kind::Block(major, minor) = self.kind {
            // Linux has 12 and 20 bits for these numbers, so they fit.
            header.set_device_major(major).expect("made as ustar");
            header.set_device_minor(minor).expect("made as ustar");
        }
        let whole = u64::try_from(self.seconds).ok().filter(|s| *s <= MAX_LONG);
        header.set_mtime(whole.unwrap_or_default());
        if whole.is_none() || self.nanoseconds != 0 {
            let time = pax_time(self.seconds, self.nanoseconds).into_bytes();
            records.push(("mtime".to_owned(), time));
        }
        let attributes = self.attributes.iter();
        records.extend(attributes.map(|(name, value)| (format!("{XATTR}{name}"), value.clone())));
        header.set_cksum();
        (header, records)
    }
}

impl<'a> Kind<'a> {
    fn entry_type(self) -> EntryType {
        match self {
            Self::Directory => EntryType::Directory,
            Self::File(_) => EntryType::Regular,
            Self::Symlink(_) => EntryType::Symlink,
            Self::HardLink(_) => EntryType::Link,
            Self::Character(..) => EntryType::Char,
            Self::Block(..) => EntryType::Block,
            Self::Fifo => EntryType::Fifo,
        }
    }

    fn link(self) -> Option<&'a OsStr> {
        match self {
            Self::Symlink(target) => Some(target),
            Self::HardLink(target) => Some(target.as_os_str()),
            _ => None,
        }
    }

    fn size(self) -> u64 {
        match self {
            Self::File(size) => size,
            _ => 0,
        }
    }
}

/// Writes a name byte for byte into its field, and into a record if it does not fit. The prefix field of the
/// POSIX header is not used: readers disagree on where it splits a name.
fn put_name(field: &mut [u8; NAME], key: &str, name: &OsStr, records: &mut Vec<Record>) {
    let name = name.as_bytes();
    let fits = name.len().min(NAME);
    field[..fits].copy_from_slice(&name[..fits]);
    if fits < name.len() {
        records.push((key.to_owned(), name.to_vec()));
    }
}

/// Formats a time in seconds with a decimal fraction. A time before 1970 is negative.
fn pax_time(seconds: i64, nanoseconds: u32) -> String {
    let nanoseconds = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let sign = if nanoseconds < 0 { "-" } else { "" };
    let (whole, fraction) = (
        nanoseconds.unsigned_abs() / 1_000_000_000,
        nanoseconds.unsigned_abs() % 1_000_000_000,
    );
    match fraction {
        0 => format!("{sign}{whole}"),
        _ => format!("{sign}{whole}.{fraction:09}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(path: &'a str, kind: Kind<'a>) -> Entry<'a> {
        Entry {
            path: Path::new(path),
            kind,
            mode: 0o644,
            uid: 0,
            gid: 0,
            seconds: 0,
            nanoseconds: 0,
            attributes: &[],
        }
    }

    fn record(records: &[Record], key: &str) -> Option<String> {
        let (_, value) = records.iter().find(|(k, _)| k == key)?;
        Some(String::from_utf8(value.clone()).unwrap())
    }

    #[test]
    fn a_value_that_fits_has_no_record() {
        let name = "n".repeat(NAME);
        let entry = Entry {
            uid: 2_097_151,
            seconds: 8_589_934_591,
            ..entry(&name, Kind::File(8_589_934_591))
        };
        let (header, records) = entry.encode();
        assert_eq!(records, []);
        assert_eq!(*header.path_bytes(), *name.as_bytes());
        assert_eq!(header.uid().unwrap(), 2_097_151);
        assert_eq!(header.entry_size().unwrap(), 8_589_934_591);
        assert_eq!(header.mtime().unwrap(), 8_589_934_591);
    }

    #[test]
    fn a_value_that_does_not_fit_has_a_record() {
        let (name, target) = ("n".repeat(NAME + 1), "t".repeat(NAME + 1));
        let link = entry(&name, Kind::Symlink(OsStr::new(&target))).encode().1;
        assert_eq!(record(&link, "path").unwrap(), name);
        assert_eq!(record(&link, "linkpath").unwrap(), target);

        let large = Entry {
            uid: 2_097_152,
            gid: u32::MAX,
            seconds: 8_589_934_592,
            ..entry("f", Kind::File(8_589_934_592))
        };
        let (header, records) = large.encode();
        for (key, value) in [
            ("uid", "2097152"),
            ("gid", "4294967295"),
            ("size", "8589934592"),
            ("mtime", "8589934592"),
        ] {
            assert_eq!(record(&records, key).as_deref(), Some(value));
        }
        assert_eq!(header.uid().unwrap(), 0);
        assert_eq!(header.entry_size().unwrap(), 0);
    }

    #[test]
    fn times_are_decimals_with_nanoseconds() {
        for (seconds, nanoseconds, text) in [
            (1, 0, "1"),
            (1, 5, "1.000000005"),
            (1_700_000_000, 123_456_789, "1700000000.123456789"),
            (-1, 0, "-1"),
            (-1, 750_000_000, "-0.250000000"),
            (-2, 1, "-1.999999999"),
        ] {
            assert_eq!(pax_time(seconds, nanoseconds), text);
        }
    }
}
