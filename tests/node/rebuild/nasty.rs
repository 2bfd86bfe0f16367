//! An image with everything that is easily lost in a copy from one snapshotter to another.
//!
//! Its archives are written here, field by field, without the code under test.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use anyhow::Result;
use lab::{Image, Layer, Packages};
use tar::{EntryType, Header};

/// The capability `net_raw` as the value of its attribute.
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x20, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// The access list `u::rw-,u:7:r--,g::r--,m::r--,o::---`.
const ACL: &[u8] = &[
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 7, 0, 0, 0, 4, 0, 4, 0, 255, 255, 255,
    255, 16, 0, 4, 0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

/// The time of a file whose content changes.
const SAME: (i64, u32) = (1_600_000_000, 500_000_001);

/// Whether a directory is not listed by a layer with files in it, or not by the highest such layer. The mode
/// and owner of such a directory depend on the unpacker.
pub(crate) fn is_unlisted(path: &Path) -> bool {
    let listed_in_no_layer = path.starts_with("deep") && path.components().count() < 4;
    let unlisted = ["", "implied", "implied/sub", "links", "odd", "opaque", "w"];
    unlisted.iter().any(|unlisted| path == Path::new(unlisted))
        || listed_in_no_layer && path != Path::new("deep")
}

/// One entry, by default owned by root, with a time in 2020 in nanoseconds.
struct Entry<'a> {
    path: &'a [u8],
    kind: EntryType,
    mode: u32,
    ids: (u32, u32),
    time: (i64, u32),
    link: &'a [u8],
    content: &'a [u8],
    device: (u32, u32),
    attributes: &'a [(&'a str, &'a [u8])],
}

fn entry(path: &(impl AsRef<[u8]> + ?Sized), kind: EntryType, mode: u32) -> Entry<'_> {
    Entry {
        path: path.as_ref(),
        kind,
        mode,
        ids: (0, 0),
        time: (1_577_836_800, 123_456_789),
        link: b"",
        content: b"",
        device: (0, 0),
        attributes: &[],
    }
}

fn dir(path: &(impl AsRef<[u8]> + ?Sized), mode: u32) -> Entry<'_> {
    entry(path, EntryType::Directory, mode)
}

fn file<'a>(path: &'a (impl AsRef<[u8]> + ?Sized), mode: u32, content: &'a [u8]) -> Entry<'a> {
    Entry {
        content,
        ..entry(path, EntryType::Regular, mode)
    }
}

fn symlink<'a>(path: &'a str, link: &'a (impl AsRef<[u8]> + ?Sized)) -> Entry<'a> {
    Entry {
        link: link.as_ref(),
        ..entry(path, EntryType::Symlink, 0o777)
    }
}

fn hard_link<'a>(path: &'a str, link: &'a str) -> Entry<'a> {
    Entry {
        link: link.as_bytes(),
        ..entry(path, EntryType::Link, 0o644)
    }
}

fn device(path: &str, kind: EntryType, major: u32, minor: u32) -> Entry<'_> {
    Entry {
        device: (major, minor),
        ..entry(path, kind, 0o620)
    }
}

/// Always writes PAX records for every field.
fn append(archive: &mut tar::Builder<Vec<u8>>, entry: &Entry<'_>) -> Result<()> {
    let mut header = Header::new_ustar();
    header.set_entry_type(entry.kind);
    header.set_mode(entry.mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(0);
    header.set_size(entry.content.len() as u64);
    header.set_device_major(entry.device.0)?;
    header.set_device_minor(entry.device.1)?;
    header.set_path("elsewhere")?;
    header.set_cksum();
    let sign = if entry.time.0 < 0 { "-" } else { "" };
    let time = format!("{sign}{}.{:09}", entry.time.0.abs(), entry.time.1);
    let (uid, gid) = (entry.ids.0.to_string(), entry.ids.1.to_string());
    let mut records = vec![
        ("path".to_owned(), entry.path),
        ("mtime".to_owned(), time.as_bytes()),
        ("uid".to_owned(), uid.as_bytes()),
        ("gid".to_owned(), gid.as_bytes()),
    ];
    if !entry.link.is_empty() {
        records.push(("linkpath".to_owned(), entry.link));
    }
    for (name, value) in entry.attributes {
        records.push((format!("SCHILY.xattr.{name}"), value));
    }
    archive.append_pax_extensions(records.iter().map(|(key, value)| (key.as_str(), *value)))?;
    archive.append(&header, entry.content)?;
    Ok(())
}

fn layer(entries: &[Entry<'_>]) -> Result<Layer> {
    let mut archive = tar::Builder::new(vec![]);
    for entry in entries {
        append(&mut archive, entry)?;
    }
    Ok(Layer::from_tar(archive.into_inner()?))
}

/// Returns the image, which has a shell and can be run.
pub(crate) fn image(name: &str) -> Result<Image> {
    let busybox = Packages::fetch()?.program("busybox-static", "usr/bin/busybox");
    let image = Image::builder(name)
        .layer(base(&std::fs::read(busybox)?)?)
        .layer(changes()?)
        .layer(changes_again()?)
        // Two empty layers: equal blobs.
        .layer(Layer::new())
        .layer(Layer::new())
        .command(&["/bin/sh", "-c", "sleep 1000000"]);
    Ok(image.build())
}

fn base(busybox: &[u8]) -> Result<Layer> {
    let long = "n".repeat(255);
    let deep = format!(
        "deep/{}/{}/{}",
        "a".repeat(120),
        "b".repeat(120),
        "c".repeat(120)
    );
    let deep_file = format!("{deep}/f");
    let target = "t".repeat(300);
    let big: Vec<u8> = (0..3_000_001_u32)
        .map(|i| (i.wrapping_mul(i) >> 3) as u8)
        .collect();
    let odd = OsStr::from_bytes(b"odd/not utf-8 \xff\xfe").as_bytes();
    let mut entries = vec![dir("./", 0o711)];
    for name in [
        "bin", "dev", "etc", "proc", "sys", "deep", "odd", "links", "special", "w",
    ] {
        entries.push(dir(name, 0o755));
    }
    entries.extend([
        file("bin/busybox", 0o755, busybox),
        symlink("bin/sh", "busybox"),
        symlink("bin/cat", "busybox"),
        symlink("bin/sleep", "busybox"),
        file("etc/passwd", 0o644, b"root:x:0:0:root:/:/bin/sh\n"),
        file("etc/group", 0o644, b"root:x:0:\n"),
        // Names.
        file(odd, 0o644, b"odd"),
        file(b"odd/new\nline and \\ and \"", 0o644, b""),
        dir(&deep, 0o700),
        file(&deep_file, 0o644, b"deep"),
        symlink("odd/long", &target),
        symlink("odd/absolute", "/bin/sh"),
        symlink("odd/dangling", "nowhere"),
    ]);
    let long = format!("odd/{long}");
    entries.push(file(&long, 0o644, b"long"));
    // Content, modes, owners, times.
    entries.extend([
        file("empty", 0o000, b""),
        file("big", 0o640, &big),
        file("setuid", 0o4755, b"s"),
        Entry {
            ids: (1000, 2000),
            ..file("setgid", 0o2755, b"s")
        },
        Entry {
            ids: (3_000_000_000, 4_000_000_000),
            ..file("owned", 0o600, b"o")
        },
        Entry {
            time: (-3, 250_000_000),
            ..file("old", 0o644, b"before 1970")
        },
        Entry {
            time: (8_600_000_000, 1),
            ..file("future", 0o644, b"after 2242")
        },
        Entry {
            ids: (5, 6),
            ..dir("sticky", 0o3777)
        },
        Entry {
            time: SAME,
            ..file("same", 0o644, b"before")
        },
        dir("changed", 0o755),
        file("changed/f", 0o644, b"f"),
    ]);
    // Attributes.
    entries.extend([
        Entry {
            attributes: &[
                ("security.capability", CAPABILITY),
                ("user.note", b"a=b\n\0c"),
                ("user.empty", b""),
            ],
            ..file("attributes", 0o755, b"x")
        },
        Entry {
            attributes: &[("user.dir", b"d")],
            ..dir("attributed", 0o755)
        },
        // overlayfs uses these names for user mounts; a mount of root passes them through.
        Entry {
            attributes: &[("user.overlay.opaque", b"y")],
            ..dir("own", 0o755)
        },
        file("own/old", 0o644, b"stays"),
        Entry {
            attributes: &[
                ("user.overlay.redirect", b"/elsewhere"),
                ("user.overlay.note", b"n"),
            ],
            ..file("own/file", 0o644, b"f")
        },
        Entry {
            attributes: &[("system.posix_acl_access", ACL)],
            ..file("acl", 0o640, b"acl")
        },
        Entry {
            attributes: &[("user.implied", b"i")],
            ..dir("implied", 0o710)
        },
        Entry {
            ids: (8, 9),
            ..dir("implied/sub", 0o1770)
        },
    ]);
    // Hard links, one of which loses its capability.
    entries.extend([
        file("links/a", 0o644, b"linked"),
        hard_link("links/b", "links/a"),
        hard_link("w/c", "links/a"),
        symlink("links/s", "a"),
        hard_link("links/s2", "links/s"),
        Entry {
            attributes: &[("security.capability", CAPABILITY)],
            ..file("links/cap", 0o755, b"cap")
        },
        Entry {
            attributes: &[("security.capability", CAPABILITY)],
            mode: 0o755,
            ..hard_link("links/cap2", "links/cap")
        },
    ]);
    entries.extend([
        device("special/null", EntryType::Char, 1, 3),
        device("special/disk", EntryType::Block, 259, 70_000),
        device("special/pipe", EntryType::Fifo, 0, 0),
        Entry {
            mode: 0o620,
            ..hard_link("special/pipe2", "special/pipe")
        },
    ]);
    // Files that the next layers change.
    entries.extend([
        file("w/gone", 0o644, b"g"),
        dir("w/gone_dir", 0o755),
        file("w/gone_dir/f", 0o644, b"g"),
        symlink("w/gone_link", "gone"),
        file("w/back", 0o644, b"first"),
        dir("opaque", 0o755),
        file("opaque/old", 0o644, b"old"),
        dir("opaque/dir", 0o755),
        file("opaque/dir/old", 0o644, b"old"),
        file("file_dir_file", 0o644, b"1"),
        dir("dir_file_dir", 0o755),
        file("dir_file_dir/1", 0o644, b"1"),
    ]);
    layer(&entries)
}

fn changes() -> Result<Layer> {
    layer(&[
        Entry {
            time: SAME,
            ..file("same", 0o644, b"beyond")
        },
        // Only the directory changes, not its files.
        Entry {
            ids: (1, 2),
            attributes: &[("user.changed", b"c")],
            ..dir("changed", 0o2711)
        },
        // Its directories are not listed: an unpack keeps their attributes.
        file("implied/sub/new", 0o644, b"n"),
        file("w/.wh.gone", 0o644, b""),
        file("w/.wh.gone_dir", 0o644, b""),
        file("w/.wh.gone_link", 0o644, b""),
        file("w/.wh.back", 0o644, b""),
        file("links/.wh.a", 0o644, b""),
        Entry {
            attributes: &[("user.overlay.opaque", b"y"), ("user.overlay.impure", b"x")],
            ..dir("own", 0o755)
        },
        file("own/new", 0o644, b"over it"),
        dir("opaque", 0o750),
        file("opaque/.wh..wh..opq", 0o644, b""),
        dir("opaque/dir", 0o755),
        file("opaque/dir/new", 0o644, b"new"),
        dir("file_dir_file", 0o755),
        file("file_dir_file/2", 0o644, b"2"),
        file("dir_file_dir", 0o644, b"2"),
    ])
}

fn changes_again() -> Result<Layer> {
    layer(&[
        file("w/back", 0o600, b"second"),
        file("file_dir_file", 0o644, b"3"),
        dir("dir_file_dir", 0o711),
        file("dir_file_dir/3", 0o644, b"3"),
        file("opaque/old", 0o644, b"again"),
        file("odd/.wh.absolute", 0o644, b""),
    ])
}
