//! The steps of `install` and `uninstall`. Files are written atomically.

use std::fs::{self, DirBuilder, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Error, unit};

/// The mode of installed files. All users may read them, since they contain no secrets.
const MODE: u32 = 0o644;

/// The mode of directories that are missing. The umask may reduce it.
const DIRECTORY_MODE: u32 = 0o755;

/// One step of `install` or `uninstall`, also for a file that stays as it is.
#[derive(Debug)]
pub enum Step {
    /// Write a file that does not exist.
    Write {
        /// The path.
        path: PathBuf,
        /// The whole text.
        text: String,
    },
    /// Replace a unit that another version has written, and that is unchanged since.
    Replace {
        /// The path.
        path: PathBuf,
        /// The whole text.
        text: String,
    },
    /// Make a link that does not exist.
    Link {
        /// The path.
        path: PathBuf,
        /// The target.
        target: PathBuf,
    },
    /// Keep a file or link that exists already.
    Keep(PathBuf),
    /// Remove a file or link that `install` has written.
    Remove(PathBuf),
    /// Remove such a file, and its directory if that is empty then.
    RemoveWithDirectory(PathBuf),
    /// Leave a file that `install` did not write, or that was changed since.
    Leave {
        /// The path.
        path: PathBuf,
        /// The reason.
        why: &'static str,
    },
}

impl Step {
    /// Returns the step for a link to the program. Any other file at this path is an error.
    pub(super) fn link(path: PathBuf, target: &Path) -> Result<Self, Error> {
        match fs::read_link(&path) {
            Ok(existing) if existing == target => Ok(Self::Keep(path)),
            Ok(_) => Err(Error::in_the_way(
                path,
                "it is a link to another program",
                "run `nri-unpack uninstall` if that is an earlier path of this program, or remove it",
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::Link {
                path,
                target: target.to_owned(),
            }),
            Err(_) => Err(Error::in_the_way(
                path,
                "it is not a link",
                "remove it: `install` makes a link to the program here",
            )),
        }
    }

    /// Returns the step for the unit. An unchanged unit of an earlier version is replaced; a changed one is an error.
    pub(super) fn unit(path: PathBuf, text: String) -> Result<Self, Error> {
        match fs::read_to_string(&path) {
            Ok(existing) if existing == text => Ok(Self::Keep(path)),
            Ok(existing) if unit::is_as_written(&existing) => Ok(Self::Replace { path, text }),
            Ok(_) => Err(Error::in_the_way(
                path,
                "it was not written by `install`, or was changed since",
                "move the changes into a drop-in (`systemctl edit nri-unpack`), and remove it",
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::Write { path, text }),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    /// Returns the path that the step is about.
    pub(super) fn path(&self) -> &Path {
        match self {
            Self::Write { path, .. }
            | Self::Replace { path, .. }
            | Self::Link { path, .. }
            | Self::Keep(path)
            | Self::Remove(path)
            | Self::RemoveWithDirectory(path)
            | Self::Leave { path, .. } => path,
        }
    }

    /// Runs the step, and returns a line that says what was done.
    pub fn run(&self) -> Result<String, Error> {
        let path = self.path();
        let done = match self {
            Self::Write { text, .. } => write(path, text, false),
            Self::Replace { text, .. } => write(path, text, true),
            Self::Link { target, .. } => link(path, target),
            Self::Keep(_) | Self::Leave { .. } => Ok(()),
            Self::Remove(_) => fs::remove_file(path),
            Self::RemoveWithDirectory(_) => remove_with_directory(path),
        };
        done.map_err(|e| Error::io(path, e))?;
        let path = path.display();
        Ok(match self {
            Self::Write { .. } => format!("wrote {path}"),
            Self::Replace { .. } => format!("replaced {path}"),
            Self::Link { target, .. } => format!("linked {path} to {}", target.display()),
            Self::Keep(_) => format!("kept {path}, which exists"),
            Self::Remove(_) | Self::RemoveWithDirectory(_) => format!("removed {path}"),
            Self::Leave { why, .. } => format!("left {path}: {why}"),
        })
    }

    /// Whether the step changes a file.
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::Keep(_) | Self::Leave { .. })
    }
}

/// Writes a temporary file in the same directory, and renames it. A file that exists at `path` is replaced only if
/// `replace` is set.
fn write(path: &Path, text: &str, replace: bool) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    make(directory)?;
    let mut file = tempfile::Builder::new()
        .prefix(".nri-unpack")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    // Sets the mode independently of the umask.
    file.as_file()
        .set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    match replace {
        true => file.persist(path)?,
        false => file.persist_noclobber(path)?,
    };
    Ok(())
}

fn make(directory: &Path) -> io::Result<()> {
    let mut missing = DirBuilder::new();
    missing
        .recursive(true)
        .mode(DIRECTORY_MODE)
        .create(directory)
}

fn link(path: &Path, target: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        make(directory)?;
    }
    symlink(target, path)
}

fn remove_with_directory(path: &Path) -> io::Result<()> {
    fs::remove_file(path)?;
    match path.parent().map(fs::remove_dir) {
        Some(Err(e)) if e.kind() != io::ErrorKind::DirectoryNotEmpty => Err(e),
        _ => Ok(()),
    }
}
