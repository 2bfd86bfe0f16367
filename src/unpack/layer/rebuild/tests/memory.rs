//! The memory of a rebuild does not grow with the layer.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use super::super::archive;
use super::super::source::Directory;
use crate::peak;

/// The length of the path to the directory with the names: the longest path of a call is 4,096 bytes.
const LONG: usize = 3800;

/// The number of names in it.
const NAMES: usize = 10_000;

/// The process takes some 18 MiB, and the paths of all names and hard links would take 55 more.
const MOST_MIB: u64 = 40;

/// Makes a directory below a long path, and returns it.
fn deep(root: &Path) -> PathBuf {
    let mut path = root.to_owned();
    while path.as_os_str().len() < LONG {
        path.push("d".repeat(190));
    }
    fs::create_dir_all(&path).unwrap();
    path
}

fn written(root: &Path, limit: usize) -> Result<(), archive::Error> {
    let directory = Directory {
        path: root.to_owned(),
        userxattr: false,
    };
    let done = archive::write_within(limit, &directory, u64::MAX, std::io::sink());
    match done {
        // They are counted at the end.
        Err(archive::Error::Inodes { .. }) => Ok(()),
        other => other,
    }
}

#[test]
fn names_below_a_long_path_take_little_memory() {
    let peak = peak::of(
        module_path!(),
        "names_below_a_long_path_take_little_memory",
        || {
            let root = tempfile::tempdir().unwrap();
            let deep = deep(root.path());
            // Half of them are files with another name that the walk meets later.
            for i in 0..NAMES / 2 {
                fs::write(deep.join(format!("a{i}")), "").unwrap();
                fs::hard_link(deep.join(format!("a{i}")), deep.join(format!("b{i}"))).unwrap();
            }
            written(root.path(), super::super::names::MAX_HELD).unwrap();
        },
    );
    assert!(peak < MOST_MIB, "{peak} MiB");
}

#[test]
fn more_names_than_the_limit_are_an_error() {
    let root = tempfile::tempdir().unwrap();
    for i in 0..100 {
        fs::write(root.path().join(format!("file-{i}")), "").unwrap();
    }
    written(root.path(), 100 * 64).unwrap();
    let error = written(root.path(), 99 * 48).unwrap_err().to_string();
    assert!(error.contains("too many names in one directory"), "{error}");
    // One name at a time, and an inode that waits for its other name for each.
    let links = tempfile::tempdir().unwrap();
    let twin = |folder: &str, i: usize| {
        links
            .path()
            .join(folder)
            .join(OsString::from(i.to_string()))
    };
    for folder in ["a", "b"] {
        fs::create_dir(links.path().join(folder)).unwrap();
    }
    for i in 0..20 {
        fs::write(twin("a", i), "").unwrap();
        fs::hard_link(twin("a", i), twin("b", i)).unwrap();
    }
    written(links.path(), 20 * 300).unwrap();
    let error = written(links.path(), 20 * 200).unwrap_err().to_string();
    assert!(error.contains("too many hard links"), "{error}");
}
