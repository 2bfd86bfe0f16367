//! The steps there and back: files that appear whole or not at all, and links.

use std::fs::{self, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use super::{Error, unit};

/// Everybody may read what is installed; secrets have files of their own.
const MODE: u32 = 0o644;

/// One thing that is to be done, or need not be.
#[derive(Debug)]
pub enum Step {
    /// A file that is not there yet.
    Write {
        /// Where.
        path: PathBuf,
        /// All of it.
        text: String,
    },
    /// A unit that another version has written, and nobody has changed.
    Replace {
        /// Where.
        path: PathBuf,
        /// All of it.
        text: String,
    },
    /// A link that is not there yet.
    Link {
        /// Where.
        path: PathBuf,
        /// To what.
        target: PathBuf,
    },
    /// There already.
    Keep(PathBuf),
    /// A file or a link that `install` has written.
    Remove(PathBuf),
    /// The same, with its directory if nothing else is in it.
    RemoveWithDirectory(PathBuf),
    /// Not ours, or not any more.
    Leave {
        /// Where.
        path: PathBuf,
        /// What it is.
        why: &'static str,
    },
}

impl Step {
    /// A link to the program. Anything else in its place is not ours to replace.
    pub(super) fn link(path: PathBuf, target: &Path) -> Result<Self, Error> {
        match fs::read_link(&path) {
            Ok(there) if there == target => Ok(Self::Keep(path)),
            Ok(_) => Err(Error::in_the_way(
                path,
                "it is a link to another program",
                "run `nri-unpack uninstall` if that is an earlier place of this one, or take it away",
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::Link {
                path,
                target: target.to_owned(),
            }),
            Err(_) => Err(Error::in_the_way(
                path,
                "it is no link",
                "take it away; the program stays where it is, and is linked here",
            )),
        }
    }

    /// A unit: one of an earlier version makes room, one that somebody has changed does not.
    pub(super) fn unit(path: PathBuf, text: String) -> Result<Self, Error> {
        match fs::read_to_string(&path) {
            Ok(there) if there == text => Ok(Self::Keep(path)),
            Ok(there) if unit::is_as_written(&there) => Ok(Self::Replace { path, text }),
            Ok(_) => Err(Error::in_the_way(
                path,
                "somebody has written or changed it",
                "move the changes into a drop-in (`systemctl edit nri-unpack`), and take it away",
            )),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(Self::Write { path, text }),
            Err(e) => Err(Error::io(&path, e)),
        }
    }

    /// Where it is done.
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

    /// Does it, and says so.
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
            Self::Keep(_) => format!("kept {path}, which is there"),
            Self::Remove(_) | Self::RemoveWithDirectory(_) => format!("removed {path}"),
            Self::Leave { why, .. } => format!("left {path}: {why}"),
        })
    }

    /// Whether it changes anything.
    pub fn is_change(&self) -> bool {
        !matches!(self, Self::Keep(_) | Self::Leave { .. })
    }
}

/// Beside it first, then by one renaming; what has appeared meanwhile is replaced only if that was
/// asked for.
fn write(path: &Path, text: &str, replace: bool) -> io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory)?;
    let mut file = tempfile::Builder::new()
        .prefix(".nri-unpack")
        .permissions(Permissions::from_mode(MODE))
        .tempfile_in(directory)?;
    file.write_all(text.as_bytes())?;
    // Whatever umask this runs under: a node's other tools read it too.
    file.as_file()
        .set_permissions(Permissions::from_mode(MODE))?;
    file.as_file().sync_all()?;
    match replace {
        true => file.persist(path)?,
        false => file.persist_noclobber(path)?,
    };
    Ok(())
}

fn link(path: &Path, target: &Path) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
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
