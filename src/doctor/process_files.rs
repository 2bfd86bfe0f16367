//! Files as another process sees them: paths resolve in its root.
//!
//! Any user may run a process that looks like a plugin and names files of its own choice. A file is therefore looked at
//! before it is opened, and nothing but a small regular file is read.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, Stat, fstat, open, openat, openat2};
use rustix::io::Errno;

/// The limit of a configuration file in bytes. The complete one has a third of it.
const MAX_CONFIG: u64 = 64 << 10;

/// Names a file without opening it: the open of a device or a pipe may act or wait.
const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);

/// Reads a file of the process with this directory in /proc; `None` if the file does not exist.
pub(super) fn read(proc: &Path, path: &Path) -> io::Result<Option<String>> {
    let file = match resolve(proc, path) {
        Err(Errno::NOENT) => return Ok(None),
        file => file?,
    };
    let stat = fstat(&file)?;
    let size = u64::try_from(stat.st_size).unwrap_or(u64::MAX);
    if FileType::from_raw_mode(stat.st_mode) != FileType::RegularFile || size > MAX_CONFIG {
        return Err(io::ErrorKind::InvalidData.into());
    }
    // The files of procfs have this size, and a read of some has an effect.
    if size == 0 {
        return Ok(Some(String::new()));
    }
    let reopened = format!("/proc/self/fd/{}", file.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let file = File::from(open(reopened, flags, Mode::empty())?);
    let mut text = String::new();
    // The file may grow meanwhile.
    file.take(MAX_CONFIG + 1).read_to_string(&mut text)?;
    match text.len() as u64 > MAX_CONFIG {
        true => Err(io::ErrorKind::InvalidData.into()),
        false => Ok(Some(text)),
    }
}

/// Returns the device and inode of a file of the process with this directory in /proc.
pub(super) fn inode(proc: &Path, path: &Path) -> rustix::io::Result<(u64, u64)> {
    let Stat { st_dev, st_ino, .. } = fstat(resolve(proc, path)?)?;
    Ok((st_dev, st_ino))
}

/// Looks up a path of a process. No link leads out of its root, or out of its working directory for a relative path.
fn resolve(proc: &Path, path: &Path) -> rustix::io::Result<OwnedFd> {
    let (base, how) = match path.is_absolute() {
        true => ("root", ResolveFlags::IN_ROOT),
        false => ("cwd", ResolveFlags::BENEATH),
    };
    let base = open(proc.join(base), LOOK | OFlags::DIRECTORY, Mode::empty())?;
    let how = how | ResolveFlags::NO_MAGICLINKS;
    match openat2(&base, path, LOOK, Mode::empty(), how) {
        // Linux before 5.6: there a link may lead out of the root, and only what the file is protects from it.
        Err(Errno::NOSYS) => {
            let relative = path.strip_prefix("/").unwrap_or(path);
            openat(&base, relative, LOOK, Mode::empty())
        }
        file => file,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::symlink;

    use rustix::fs::{CWD, mknodat};

    use super::*;

    /// A directory like that of a process in /proc, whose root and working directory are others than our own.
    fn process() -> tempfile::TempDir {
        let proc = tempfile::tempdir().unwrap();
        for directory in ["root/etc", "cwd"] {
            fs::create_dir_all(proc.path().join(directory)).unwrap();
        }
        proc
    }

    #[test]
    fn a_link_resolves_in_the_root_of_the_process() {
        let proc = process();
        let root = proc.path().join("root");
        fs::write(root.join("etc/real"), "a").unwrap();
        fs::write(proc.path().join("outside"), "b").unwrap();
        symlink("/etc/real", root.join("etc/absolute")).unwrap();
        symlink("../../outside", root.join("etc/up")).unwrap();
        symlink("/dev/zero", root.join("etc/zero")).unwrap();
        symlink("../outside", proc.path().join("cwd/up")).unwrap();
        fs::write(proc.path().join("cwd/file"), "c").unwrap();
        for (path, expected) in [
            ("/etc/real", Some("a")),
            ("/etc/absolute", Some("a")),
            ("/etc/up", None),
            ("/etc/zero", None),
            ("file", Some("c")),
        ] {
            let text = read(proc.path(), Path::new(path)).unwrap();
            assert_eq!(text.as_deref(), expected, "{path}");
        }
        assert!(read(proc.path(), Path::new("up")).is_err());
    }

    #[test]
    fn only_a_small_regular_file_is_read() {
        let proc = process();
        let root = proc.path().join("root");
        let pipe = root.join("pipe");
        mknodat(CWD, &pipe, FileType::Fifo, Mode::RUSR, 0).unwrap();
        fs::write(root.join("large"), vec![b'a'; 65537]).unwrap();
        fs::write(root.join("limit"), vec![b'a'; 65536]).unwrap();
        for (path, is_read) in [
            ("/pipe", false),
            ("/etc", false),
            ("/large", false),
            ("/limit", true),
        ] {
            let text = read(proc.path(), Path::new(path));
            assert_eq!(text.is_ok(), is_read, "{path}: {text:?}");
        }
    }
}
