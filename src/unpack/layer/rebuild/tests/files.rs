//! Tests of the archive with every kind of file. Device files need root.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, makedev, mknodat};

use super::super::archive;
use super::super::source::Directory;
use super::{attribute, time};

/// The value of the attribute for the capability `net_raw`.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

fn device(path: &Path, kind: FileType, major: u32, minor: u32) {
    let mode = Mode::from_raw_mode(0o640);
    mknodat(CWD, path, kind, mode, makedev(major, minor)).unwrap();
}

/// One entry of an archive, as the tar crate reads it.
#[derive(Debug, PartialEq)]
struct Seen {
    kind: tar::EntryType,
    mode: u32,
    ids: (u64, u64),
    link: Option<PathBuf>,
    content: Vec<u8>,
    records: BTreeMap<String, Vec<u8>>,
}

fn archive_of(root: &Path, inodes: u64) -> Result<Vec<u8>, archive::Error> {
    let directory = Directory {
        path: root.to_owned(),
        userxattr: false,
    };
    let mut out = vec![];
    archive::write(&directory, inodes, &mut out).map(|()| out)
}

/// Returns the entries in their order.
fn entries(bytes: &[u8]) -> Vec<(PathBuf, Seen)> {
    let mut archive = tar::Archive::new(bytes);
    let mut all = vec![];
    for entry in archive.entries().unwrap() {
        let mut entry = entry.unwrap();
        let mut records = BTreeMap::new();
        for record in entry.pax_extensions().unwrap().into_iter().flatten() {
            let record = record.unwrap();
            let key = record.key().unwrap().to_owned();
            records.insert(key, record.value_bytes().to_vec());
        }
        let mut content = vec![];
        entry.read_to_end(&mut content).unwrap();
        let header = entry.header();
        let seen = Seen {
            kind: header.entry_type(),
            mode: header.mode().unwrap(),
            ids: (header.uid().unwrap(), header.gid().unwrap()),
            link: entry.link_name().unwrap().map(|link| link.into_owned()),
            content,
            records,
        };
        all.push((entry.path().unwrap().into_owned(), seen));
    }
    all
}

#[test]
fn an_archive_holds_every_kind_of_file_unchanged() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    let odd = OsStr::from_bytes(b"not utf-8 \xff\xfe");
    let long = "l".repeat(200);

    fs::create_dir(at("d")).unwrap();
    fs::write(at("d/f"), "content").unwrap();
    fs::set_permissions(at("d/f"), fs::Permissions::from_mode(0o4755)).unwrap();
    fs::hard_link(at("d/f"), at("e")).unwrap();
    attribute(&at("d/f"), "security.capability", CAPABILITY);
    attribute(&at("d/f"), "user.note", b"a=b\0c");
    symlink(&long, at("s")).unwrap();
    fs::hard_link(at("s"), at("s2")).unwrap();
    device(&at("null"), FileType::CharacterDevice, 1, 3);
    device(&at("disk"), FileType::BlockDevice, 259, 70_000);
    device(&at("pipe"), FileType::Fifo, 0, 0);
    device(&at("gone"), FileType::CharacterDevice, 0, 0);
    fs::hard_link(at("gone"), at("gone2")).unwrap();
    fs::create_dir(at("opaque")).unwrap();
    attribute(&at("opaque"), "trusted.overlay.opaque", b"y");
    fs::write(dir.path().join(odd), "").unwrap();
    fs::write(at(&long), "").unwrap();
    fs::write(at("big"), vec![7; 3 << 20]).unwrap();
    chown(at("big"), Some(3_000_000_000), Some(7)).unwrap();
    time(&at("big"), 1_234_567_890, 123_456_789);
    time(&at("d"), -1, 500_000_000);
    time(dir.path(), 77, 1);

    // The root and eleven more: the two names of a file, of a link and of a whiteout count as one inode.
    let inodes = 12;
    let bytes = archive_of(dir.path(), inodes).unwrap();
    let entries = entries(&bytes);
    let names: Vec<_> = entries.iter().map(|(path, _)| path.as_os_str()).collect();
    let mut expected: Vec<_> = [
        "./",
        "big",
        "d",
        "d/f",
        "disk",
        "e",
        ".wh.gone",
        ".wh.gone2",
    ]
    .map(OsStr::new)
    .to_vec();
    expected.extend([OsStr::new(&long), odd]);
    expected.extend(["null", "opaque", "opaque/.wh..wh..opq", "pipe", "s", "s2"].map(OsStr::new));
    // The tar crate does not return the root's name.
    assert_eq!(names[1..], expected[1..]);
    let entries: BTreeMap<_, _> = entries.into_iter().collect();
    let entry = |name: &str| &entries[Path::new(name)];

    use tar::EntryType as Type;
    for (name, kind) in [
        ("d", Type::Directory),
        ("d/f", Type::Regular),
        ("e", Type::Link),
        ("s", Type::Symlink),
        ("s2", Type::Link),
        ("null", Type::Char),
        ("disk", Type::Block),
        ("pipe", Type::Fifo),
        (".wh.gone", Type::Regular),
        (".wh.gone2", Type::Regular),
        ("opaque/.wh..wh..opq", Type::Regular),
    ] {
        assert_eq!(entry(name).kind, kind, "{name}");
    }
    let file = entry("d/f");
    assert_eq!((file.mode, &file.content[..]), (0o4755, &b"content"[..]));
    assert_eq!(file.records["SCHILY.xattr.security.capability"], CAPABILITY);
    assert_eq!(file.records["SCHILY.xattr.user.note"], b"a=b\0c");
    // A change of owner removes a capability, so every further name has it again.
    let second = entry("e");
    assert_eq!(second.link.as_deref(), Some(Path::new("d/f")));
    assert_eq!(
        second.records["SCHILY.xattr.security.capability"],
        CAPABILITY
    );
    assert_eq!(entry("s").link.as_deref(), Some(Path::new(&long)));
    assert_eq!(entry("s2").link.as_deref(), Some(Path::new("s")));
    let big = entry("big");
    assert!(big.content.len() == 3 << 20 && big.content.iter().all(|byte| *byte == 7));
    assert_eq!(big.records["uid"], b"3000000000");
    assert_eq!(big.ids, (3_000_000_000, 7));
    assert_eq!(big.records["mtime"], b"1234567890.123456789");
    assert_eq!(entry("d").records["mtime"], b"-0.500000000");
    assert!(entry("opaque").records.keys().all(|key| key == "mtime"));

    // The order and the bytes depend only on the layer.
    assert_eq!(archive_of(dir.path(), inodes).unwrap(), bytes);
}

#[test]
fn a_file_that_an_archive_cannot_express_is_an_error() {
    type Make = fn(&Path);
    let cases: [(Make, &str); 5] = [
        (
            |f| {
                fs::write(f, "").unwrap();
                attribute(f, "trusted.overlay.metacopy", b"");
            },
            "trusted.overlay.metacopy",
        ),
        (
            |f| {
                fs::create_dir(f).unwrap();
                attribute(f, "trusted.overlay.redirect", b"/elsewhere");
            },
            "trusted.overlay.redirect",
        ),
        (
            |f| drop(std::os::unix::net::UnixListener::bind(f).unwrap()),
            "a socket cannot be in a layer",
        ),
        (
            |f| fs::write(f.with_file_name(".wh.f"), "").unwrap(),
            "would delete another file",
        ),
        (|_| {}, "holds 1 inodes, but the snapshotter counted 2"),
    ];
    for (make, words) in cases {
        let dir = tempfile::tempdir().unwrap();
        make(&dir.path().join("f"));
        let message = archive_of(dir.path(), 2).unwrap_err().to_string();
        assert!(message.contains(words), "{message}");
    }
    let nowhere = archive_of(Path::new("/nowhere/fs"), 1).unwrap_err();
    assert!(nowhere.to_string().contains("/nowhere/fs"), "{nowhere}");
}
