//! A log file that outlives what happens to it: a full disk, a file system mounted anew.
//!
//! It only appends, so that a file which is truncated by a log rotation starts over at its front.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// A file to append to. A write that fails opens it again and tries once more; a line that then
/// fails too is lost, and the next one starts with opening the file.
#[derive(Debug)]
pub(super) struct LogFile {
    path: PathBuf,
    file: Option<File>,
}

impl LogFile {
    /// Opens the file, which is created if need be; its folder is not.
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
        // Nothing is kept back: a line that is still in memory is no use after a crash.
        Ok(())
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).open(path)
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
        // What is open for reading cannot be written to.
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
    fn what_cannot_be_written_is_an_error_until_it_can() {
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
