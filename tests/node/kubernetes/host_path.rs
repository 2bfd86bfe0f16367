//! The kubelet's check of a `hostPath` before it starts a pod, by the type of the volume.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use k8s_openapi::api::core::v1::HostPathVolumeSource;
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, mkdirat, openat2};
use rustix::io::Errno;

/// The mode of the directories that the kubelet makes.
const MODE: Mode = Mode::from_raw_mode(0o755);

/// A node as its kubelet sees it.
pub(super) struct View {
    /// The root of the node's file system.
    pub(super) root: PathBuf,
    /// The directories that a kubelet in a container sees; `None` for a kubelet that sees all.
    pub(super) seen: Option<&'static [&'static str]>,
}

impl View {
    /// Returns an error if the kubelet does not start a pod with this volume; else makes what the type asks for.
    pub(super) fn check(&self, host_path: &HostPathVolumeSource) -> Result<()> {
        let path = Path::new(&host_path.path);
        let expected = host_path.type_.as_deref().unwrap_or_default();
        if expected.is_empty() {
            return Ok(());
        }
        let found = match self.sees(path) {
            true => self.kind(path)?,
            false => None,
        };
        let (kind, is_made) = match expected {
            "Directory" => (FileType::Directory, false),
            "DirectoryOrCreate" => (FileType::Directory, true),
            "File" => (FileType::RegularFile, false),
            "Socket" => (FileType::Socket, false),
            other => bail!("a type that no manifest has: {other}"),
        };
        match found {
            None if is_made && self.sees(path) => self.make(path),
            // It is made in the kubelet's own container.
            None if is_made => Ok(()),
            found => {
                ensure!(
                    found == Some(kind),
                    "hostPath type check failed: {} is no {expected}, but {found:?}",
                    path.display()
                );
                Ok(())
            }
        }
    }

    fn sees(&self, path: &Path) -> bool {
        let all = self.seen.unwrap_or(&["/"]);
        all.iter().any(|directory| path.starts_with(directory))
    }

    /// Returns the kind of a file, behind links; `None` if it does not exist.
    fn kind(&self, path: &Path) -> Result<Option<FileType>> {
        match self.open(path) {
            Ok(file) => Ok(Some(FileType::from_raw_mode(fstat(file)?.st_mode))),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(None),
            Err(e) => Err(e).with_context(|| path.display().to_string()),
        }
    }

    /// Makes a directory and those above it.
    fn make(&self, path: &Path) -> Result<()> {
        let (parent, name) = (path.parent(), path.file_name());
        let (parent, name) = parent.zip(name).context("the root exists")?;
        if self.kind(parent)?.is_none() {
            self.make(parent)?;
        }
        Ok(mkdirat(self.open(parent)?, name, MODE)?)
    }

    /// Opens a file; links lead to files below the root.
    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        let root =
            File::open(&self.root).map_err(|e| Errno::from_io_error(&e).unwrap_or(Errno::IO))?;
        openat2(
            root,
            path,
            OFlags::PATH | OFlags::CLOEXEC,
            Mode::empty(),
            ResolveFlags::IN_ROOT,
        )
    }
}

/// Each type accepts what the kubelet accepts.
#[test]
fn types_are_checked_as_the_kubelet_does() -> Result<()> {
    const ALL: [&str; 5] = ["", "Directory", "DirectoryOrCreate", "File", "Socket"];
    let directory = tempfile::tempdir()?;
    let root = directory.path();
    std::fs::create_dir_all(root.join("etc/k0s"))?;
    std::fs::create_dir(root.join("run"))?;
    std::fs::create_dir(root.join("var"))?;
    std::fs::write(root.join("etc/k0s/containerd.toml"), "")?;
    let _listener = std::os::unix::net::UnixListener::bind(root.join("run/s.sock"))?;
    std::os::unix::fs::symlink("/run", root.join("var/run"))?;
    let view = |seen| View {
        root: root.to_owned(),
        seen,
    };
    let accepted = |view: &View, path: &str| {
        let is_accepted = |kind: &&str| {
            let source = HostPathVolumeSource {
                path: path.to_owned(),
                type_: Some((*kind).to_owned()),
            };
            view.check(&source).is_ok()
        };
        let accepted: Vec<_> = ALL.into_iter().filter(|kind| is_accepted(kind)).collect();
        accepted.join(" ")
    };
    for (path, expected) in [
        ("/etc/k0s", " Directory DirectoryOrCreate"),
        ("/etc/k0s/containerd.toml", " File"),
        ("/var/run/s.sock", " Socket"),
        ("/run/s.sock", " Socket"),
        ("/etc/containerd/certs.d", " DirectoryOrCreate"),
        ("/etc/k0s/containerd.toml/x", ""),
    ] {
        let found = accepted(&view(None), path);
        ensure!(found == expected, "{path}: {found:?}");
    }
    // It was made, by the last type but two.
    ensure!(root.join("etc/containerd/certs.d").is_dir());
    // A kubelet in a container.
    let contained = view(Some(&["/var/run"]));
    ensure!(accepted(&contained, "/etc/k0s") == " DirectoryOrCreate");
    ensure!(accepted(&contained, "/var/run/s.sock") == " Socket");
    ensure!(accepted(&contained, "/run/nri") == " DirectoryOrCreate");
    ensure!(!root.join("run/nri").exists());
    Ok(())
}
