//! A log file that is opened again after a failed write, for example because the disk was full or the file system
//! was mounted again.
//!
//! It is opened for appending, so that a file that log rotation has truncated is written from its beginning.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The mode of a new file, whatever the umask is: names of images and pods are for root only.
const MODE: u32 = 0o600;

/// A file to append to. After a failed write the file is opened again and the write repeated once. If that fails, the
/// line is lost, and the next write opens the file again.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    /// Opens the file, or creates it. Its directory must exist.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        Ok(Self {
            path: path.to_owned(),
            file: Some(append(path)?),
        })
    }

    fn reopen(&mut self) -> io::Result<&mut File> {
        Ok(self.file.insert(append(&self.path)?))
    }
}

impl Write for LogFile {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let written = match self.file.take() {
            Some(mut file) => file.write(line).map(|count| (file, count)).ok(),
            None => None,
        };
        match written {
            Some((file, count)) => {
                self.file = Some(file);
                Ok(count)
            }
            None => self.reopen()?.write(line),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        // There is no buffer: a buffered line would be lost in a crash.
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    let mut options = OpenOptions::new();
    options.append(true).create(true).mode(MODE).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_opens_the_file_again() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("log");
        let mut log = LogFile::open(&path).expect("opened");
        log.write_all(b"one\n").expect("written");
        // A file that is open for reading cannot be written.
        log.file = Some(File::open(&path).expect("opened"));
        log.write_all(b"two\n")
            .expect("written to the file opened again");
        log.write_all(b"three\n").expect("written");
        assert_eq!(
            std::fs::read_to_string(&path).expect("read"),
            "one\ntwo\nthree\n"
        );
    }

    #[test]
    fn a_failed_write_is_an_error_and_the_next_write_opens_the_file() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("folder/log");
        let mut log = LogFile {
            path: path.clone(),
            file: None,
        };
        assert!(log.write_all(b"lost\n").is_err());
        std::fs::create_dir(folder.path().join("folder")).expect("created");
        log.write_all(b"kept\n").expect("written");
        assert_eq!(std::fs::read_to_string(&path).expect("read"), "kept\n");

        let mut full = LogFile::open(Path::new("/dev/full")).expect("opened");
        assert_eq!(
            full.write(b"x").expect_err("full").kind(),
            io::ErrorKind::StorageFull
        );
        assert_eq!(
            full.write(b"x").expect_err("still full").kind(),
            io::ErrorKind::StorageFull
        );
    }
}
