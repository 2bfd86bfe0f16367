//! Writes a layer's own directory, as overlayfs keeps it, as a tar archive.
//!
//! The archive holds everything that an unpack can have written; anything that an archive cannot express is an
//! error. The calls block. Memory is limited for any layer: it holds the names that are still to be visited, and the
//! inodes of which more names are expected, at most [`names::MAX_HELD`] bytes of them.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Seek, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, major, minor};

use super::attributes;
use super::entry::{Entry, Kind};
use super::names::{self, Held, Location, TooMany};
use super::source::Directory;

/// The prefix of a whiteout in a layer's archive: the entry `.wh.<name>` deletes `<name>`.
const WHITEOUT: &str = ".wh.";

/// The entry that marks its directory as opaque: it hides the directory of the layers below.
const OPAQUE: &str = ".wh..wh..opq";

/// The name of the layer's root in the archive.
const ROOT: &str = "./";

/// Why a directory cannot become an archive.
#[derive(Debug, thiserror::Error)]
pub(in crate::unpack) enum Error {
    #[error("cannot read {} or write its archive: {source}", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error(
        "{}: the attribute {attribute} points to data outside of the layer, is not known, or has a name that an archive cannot have",
        path.display()
    )]
    Attribute { path: PathBuf, attribute: String },
    #[error("{}: in a layer this name would delete another file", .0.display())]
    Name(PathBuf),
    #[error("{}: a socket cannot be in a layer", .0.display())]
    Socket(PathBuf),
    #[error(
        "{}: the layer has too many names in one directory, or too many hard links: a rebuild holds at most {} MiB of them",
        .0.display(),
        names::MAX_HELD >> 20
    )]
    Names(PathBuf),
    #[error(
        "{} holds {found} inodes, but the snapshotter counted {expected} when it committed the layer",
        path.display()
    )]
    Inodes {
        path: PathBuf,
        found: u64,
        expected: u64,
    },
}

impl Error {
    /// Whether the receiver of the archive has ended. Then nothing is wrong with the directory.
    pub(super) fn is_unwanted(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.kind() == io::ErrorKind::BrokenPipe)
    }
}

/// Writes the archive of the layer in `directory`, which must hold `inodes` inodes, the number that its
/// snapshotter counted.
pub(super) fn write(directory: &Directory, inodes: u64, out: impl Write) -> Result<(), Error> {
    write_within(names::MAX_HELD, directory, inodes, out)
}

/// Does the same with another limit for the names that are held.
pub(super) fn write_within(
    limit: usize,
    directory: &Directory,
    inodes: u64,
    out: impl Write,
) -> Result<(), Error> {
    let root = directory.path.as_path();
    let mut archive = Archive {
        root,
        userxattr: directory.userxattr,
        tar: tar::Builder::new(out),
        links: HashMap::new(),
        held: Held::within(limit),
        inodes: 0,
    };
    archive.walk()?;
    if archive.inodes != inodes {
        return Err(Error::Inodes {
            path: root.to_owned(),
            found: archive.inodes,
            expected: inodes,
        });
    }
    archive.tar.finish().map_err(failed(root))
}

struct Archive<'a, W: Write> {
    root: &'a Path,
    userxattr: bool,
    tar: tar::Builder<W>,
    /// The inodes with several names, by device and inode number.
    links: HashMap<(u64, u64), Link>,
    held: Held,
    inodes: u64,
}

/// A directory, and the names in it that are still to be visited, the last one first.
struct Level {
    directory: Location,
    names: Vec<Box<OsStr>>,
}

/// An inode of which more names are expected.
struct Link {
    /// The first name.
    first: Location,
    /// The number of names that are still expected.
    more: u64,
}

fn failed(path: &Path) -> impl Fn(io::Error) -> Error {
    move |source| Error::Io {
        path: path.to_owned(),
        source,
    }
}

impl<W: Write> Archive<'_, W> {
    /// Adds all files: a directory before its entries, and the entries ordered by name.
    fn walk(&mut self) -> Result<(), Error> {
        self.add(&Location::ROOT)?;
        let mut levels = vec![self.level(Location::ROOT)?];
        while let Some(level) = levels.last_mut() {
            let Some(name) = level.names.pop() else {
                levels.pop();
                continue;
            };
            self.held.visited(&name);
            let file = level.directory.join(name);
            if self.add(&file)? {
                levels.push(self.level(file)?);
            }
        }
        Ok(())
    }

    fn level(&mut self, directory: Location) -> Result<Level, Error> {
        let at = self.root.join(directory.path());
        let mut names = vec![];
        for entry in fs::read_dir(&at).map_err(failed(&at))? {
            let name = entry.map_err(failed(&at))?.file_name();
            let held = self.held.name(&name);
            held.map_err(|TooMany| Error::Names(at.clone()))?;
            names.push(name.into_boxed_os_str());
        }
        names.sort_unstable_by(|a, b| b.cmp(a));
        Ok(Level { directory, names })
    }

    /// Adds one file of any kind. Returns whether it is a directory.
    fn add(&mut self, file: &Location) -> Result<bool, Error> {
        let path = &*file.path();
        let at = self.root.join(path);
        if file.name().as_bytes().starts_with(WHITEOUT.as_bytes()) {
            return Err(Error::Name(at));
        }
        let metadata = fs::symlink_metadata(&at).map_err(failed(&at))?;
        let earlier = self.count(file, &metadata);
        let earlier = earlier.map_err(|TooMany| Error::Names(at.clone()))?;
        let file_type = metadata.file_type();
        let device = (major(metadata.rdev()), minor(metadata.rdev()));
        if file_type.is_char_device() && device == (0, 0) {
            self.add_marker(&whiteout(path), &metadata)?;
            return Ok(false);
        }
        let raw = attributes::read(&at).map_err(failed(&at))?;
        let attributes = attributes::sort(raw, self.userxattr);
        let attributes = attributes.map_err(|attribute| Error::Attribute {
            path: at.clone(),
            attribute,
        })?;
        let target;
        let kind = if file_type.is_dir() {
            Kind::Directory
        } else if let Some(earlier) = &earlier {
            Kind::HardLink(earlier)
        } else if file_type.is_symlink() {
            target = fs::read_link(&at).map_err(failed(&at))?;
            Kind::Symlink(target.as_os_str())
        } else if file_type.is_char_device() {
            Kind::Character(device.0, device.1)
        } else if file_type.is_block_device() {
            Kind::Block(device.0, device.1)
        } else if file_type.is_fifo() {
            Kind::Fifo
        } else if file_type.is_socket() {
            return Err(Error::Socket(at));
        } else {
            Kind::File(metadata.len())
        };
        let name = match path.as_os_str().is_empty() {
            true => Path::new(ROOT),
            false => path,
        };
        let entry = entry(name, kind, &metadata, &attributes.own);
        self.append(&entry, &at).map_err(failed(&at))?;
        if attributes.opaque {
            self.add_marker(&path.join(OPAQUE), &metadata)?;
        }
        Ok(file_type.is_dir())
    }

    /// Counts an inode at its first name. Returns that name for each further one.
    fn count(&mut self, file: &Location, metadata: &Metadata) -> Result<Option<PathBuf>, TooMany> {
        if metadata.is_dir() || metadata.nlink() == 1 {
            self.inodes += 1;
            return Ok(None);
        }
        let inode = (metadata.dev(), metadata.ino());
        let Some(link) = self.links.get_mut(&inode) else {
            self.inodes += 1;
            self.held.inode(file)?;
            let link = Link {
                first: file.clone(),
                more: metadata.nlink() - 1,
            };
            self.links.insert(inode, link);
            return Ok(None);
        };
        let first = link.first.path();
        link.more -= 1;
        if link.more == 0 {
            self.held.complete(&link.first);
            self.links.remove(&inode);
        }
        Ok(Some(first))
    }

    /// Adds an empty file whose name is its meaning: a whiteout or an opaque marker.
    fn add_marker(&mut self, path: &Path, metadata: &Metadata) -> Result<(), Error> {
        let entry = entry(path, Kind::File(0), metadata, &[]);
        let at = self.root.join(path);
        let (header, records) = entry.encode();
        let records = records
            .iter()
            .map(|(key, value)| (key.as_str(), &value[..]));
        let appended = self.tar.append_pax_extensions(records);
        let appended = appended.and_then(|()| self.tar.append(&header, io::empty()));
        appended.map_err(failed(&at))
    }

    fn append(&mut self, entry: &Entry<'_>, at: &Path) -> io::Result<()> {
        let (header, records) = entry.encode();
        let records = records
            .iter()
            .map(|(key, value)| (key.as_str(), &value[..]));
        self.tar.append_pax_extensions(records)?;
        let Kind::File(size) = entry.kind else {
            return self.tar.append(&header, io::empty());
        };
        let mut file = open(at)?;
        self.tar.append(&header, (&mut file).take(size))?;
        match file.stream_position()? == size {
            true => Ok(()),
            // The header states a larger size, so the archive is broken.
            false => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// Opens a file of the layer without following a link, so that no file outside of the layer is read.
fn open(path: &Path) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

fn whiteout(path: &Path) -> PathBuf {
    let name = path.file_name().unwrap_or_default();
    let name = [WHITEOUT.as_bytes(), name.as_bytes()].concat();
    path.with_file_name(OsStr::from_bytes(&name))
}

fn entry<'a>(
    path: &'a Path,
    kind: Kind<'a>,
    metadata: &Metadata,
    attributes: &'a [attributes::Attribute],
) -> Entry<'a> {
    Entry {
        path,
        kind,
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        seconds: metadata.mtime(),
        // The kernel keeps it below a second.
        nanoseconds: metadata.mtime_nsec().try_into().unwrap_or_default(),
        attributes,
    }
}
