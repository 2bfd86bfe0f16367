//! The names that a walk through a layer has to remember, in little and limited memory. No I/O.
//!
//! A file is held by its own name and its directory, which all files in it share. So 100,000 names below a path of
//! 3.8 kB take some megabytes, and their paths would take 380.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::rc::Rc;

/// The limit of all names that are held at the same time, in bytes: some 700,000 names of one directory, or 200,000
/// inodes with further names. Real layers have a tenth of it.
pub(super) const MAX_HELD: usize = 32 << 20;

/// What a name takes besides its bytes: its pointer and length, and the least that an allocation takes.
const NAME: usize = 48;

/// What an inode takes besides its name: its key and its directory, in a table that is up to half empty.
const INODE: usize = 160;

/// The place of a file in the layer.
#[derive(Clone, Debug)]
pub(super) struct Location(Option<Rc<Named>>);

#[derive(Debug)]
struct Named {
    directory: Location,
    name: Box<OsStr>,
}

impl Location {
    /// The layer's root.
    pub(super) const ROOT: Self = Self(None);

    /// Returns the place of a file in this directory.
    pub(super) fn join(&self, name: Box<OsStr>) -> Self {
        let directory = self.clone();
        Self(Some(Rc::new(Named { directory, name })))
    }

    /// Returns the file's name; empty for the root.
    pub(super) fn name(&self) -> &OsStr {
        self.0.as_ref().map_or(OsStr::new(""), |named| &named.name)
    }

    /// Returns the path from the layer's root; empty for the root.
    pub(super) fn path(&self) -> PathBuf {
        let mut names = vec![];
        let mut next = self;
        while let Self(Some(named)) = next {
            names.push(&*named.name);
            next = &named.directory;
        }
        names.into_iter().rev().collect()
    }
}

/// The bytes that names take, up to a limit.
#[derive(Debug)]
pub(super) struct Held {
    limit: usize,
    now: usize,
}

/// The names take more than the limit.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct TooMany;

impl Held {
    pub(super) fn within(limit: usize) -> Self {
        Self { limit, now: 0 }
    }

    /// Counts a name that is to be visited.
    pub(super) fn name(&mut self, name: &OsStr) -> Result<(), TooMany> {
        self.add(NAME + name.len())
    }

    /// Ends what [`Self::name`] counted.
    pub(super) fn visited(&mut self, name: &OsStr) {
        self.now -= NAME + name.len();
    }

    /// Counts an inode of which more names are expected.
    pub(super) fn inode(&mut self, first: &Location) -> Result<(), TooMany> {
        self.add(INODE + NAME + first.name().len())
    }

    /// Ends what [`Self::inode`] counted.
    pub(super) fn complete(&mut self, first: &Location) {
        self.now -= INODE + NAME + first.name().len();
    }

    fn add(&mut self, bytes: usize) -> Result<(), TooMany> {
        self.now += bytes;
        if self.now > self.limit {
            return Err(TooMany);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_has_the_names_of_its_directories() {
        let name = |name: &str| Box::from(OsStr::new(name));
        let file = Location::ROOT
            .join(name("a"))
            .join(name("b"))
            .join(name("c"));
        assert_eq!(file.path(), PathBuf::from("a/b/c"));
        assert_eq!(file.name(), "c");
        assert_eq!(Location::ROOT.path(), PathBuf::new());
        assert_eq!(Location::ROOT.name(), "");
    }

    #[test]
    fn names_that_were_visited_take_no_place() {
        let (name, file) = (
            OsStr::new("name"),
            Location::ROOT.join(Box::from(OsStr::new("f"))),
        );
        let mut held = Held::within(NAME + name.len() + INODE + NAME + 1);
        for _ in 0..3 {
            assert_eq!(held.name(name), Ok(()));
            assert_eq!(held.inode(&file), Ok(()));
            held.visited(name);
            held.complete(&file);
        }
        assert_eq!(held.now, 0);
        assert_eq!(held.name(name), Ok(()));
        assert_eq!(held.inode(&file), Ok(()));
        assert_eq!(held.name(OsStr::new("")), Err(TooMany));
    }
}
