//! nydus-snapshotter in its proxy mode, in which a confidential guest pulls the image and the host has none of it.
//!
//! There is no guest here: runc stands in for it, and `mount.fuse` gives it the files of the images that it is to pull.
//! Everything up to that, the snapshots and the mounts, is nydus-snapshotter's own.

mod volume;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;

use crate::config::PAUSE;
use crate::containerd::Lab;
use crate::images::{self, Image};
use crate::options::Remote;
use crate::packages::Packages;
use crate::proxy::{Invocation, ProxySnapshotter, socket};
use crate::scratch::Scratch;

pub use volume::{GUEST_PULL, KataVolume};

/// What containerd calls for a mount of a type `fuse.*`. Kata, which hands such a mount on to its guest, has no need
/// of it.
const MOUNT_FUSE: &str = include_str!("mount.fuse");

/// Writes its configuration, and the guest's directory.
pub(crate) fn prepare(scratch: &Scratch) -> Result<ProxySnapshotter> {
    let packages = Packages::fetch()?;
    let config = scratch.path("nydus.toml");
    let root = scratch.path("nydus");
    fs::write(&config, render(&root, &socket(Remote::Nydus, scratch)?))?;
    let guest = guest_dir(scratch);
    fs::create_dir(&guest)?;
    let helper = guest.join("mount.fuse");
    fs::write(&helper, MOUNT_FUSE)?;
    fs::set_permissions(&helper, fs::Permissions::from_mode(0o755))?;
    let program = |name: &str| packages.program("nydus-snapshotter", &format!("usr/bin/{name}"));
    symlink(program("nydus-overlayfs"), guest.join("nydus-overlayfs"))?;
    give_to_guest(&guest, &images::pause(&[PAUSE])?)?;
    let invocation = Invocation {
        program: program("containerd-nydus-grpc"),
        arguments: vec!["--config".into(), config.into()],
        // It looks for registry credentials there.
        environment: vec![("HOME", scratch.path("tmp").into())],
    };
    ProxySnapshotter::new(Remote::Nydus, scratch, invocation)
}

impl Lab {
    /// Lets the guest pull an image: a container that is left to the guest can be started then. The guest knows it by
    /// its top layer. The pause image needs no such call. [`Remote::Nydus`] has to be among [`crate::Options::remotes`].
    ///
    /// # Errors
    /// If an image without layers, one of other than gzipped layers, or one twice is given.
    pub fn give_to_guest(&self, image: &Image) -> Result<()> {
        give_to_guest(&guest_dir(self.scratch()), image)
    }
}

/// The directory to put first on containerd's PATH: the mount helper, and beside it what it serves.
pub(crate) fn guest_dir(scratch: &Scratch) -> PathBuf {
    scratch.path("guest")
}

/// Unpacks an image where `mount.fuse` looks for it.
fn give_to_guest(guest: &Path, image: &Image) -> Result<()> {
    let top = image.layers.last().context("an image without layers")?;
    let files = guest.join(&top.digest);
    fs::create_dir(&files).with_context(|| format!("giving {} to the guest", image.name()))?;
    for layer in &image.layers {
        let blob = image.blobs.iter().find(|blob| blob.digest == layer.digest);
        let blob = blob.with_context(|| format!("{} lacks {}", image.name(), layer.digest))?;
        apply(&blob.bytes, &files).with_context(|| format!("unpacking {}", layer.digest))?;
    }
    Ok(())
}

/// Puts a gzipped layer on top of the files that are there; of whiteouts it knows those that a [`crate::Layer`] makes.
fn apply(layer: &[u8], files: &Path) -> Result<()> {
    for entry in tar::Archive::new(GzDecoder::new(layer)).entries()? {
        let mut entry = entry?;
        let path = files.join(entry.path()?);
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        match name.strip_prefix(".wh.") {
            Some(hidden) => fs::remove_file(path.with_file_name(hidden))?,
            None => drop(entry.unpack_in(files)?),
        }
    }
    Ok(())
}

/// `enable_kata_volume`, since without nydusd a labelled container otherwise fails on a missing `image.boot`.
fn render(root: &Path, socket: &Path) -> String {
    format!(
        r#"version = 1
root = "{root}"
address = "{socket}"
daemon_mode = "none"
[daemon]
fs_driver = "proxy"
recover_policy = "none"
[snapshot]
enable_kata_volume = true
[cache_manager]
disable = true
[log]
log_to_stdout = true
level = "debug"
"#,
        root = root.display(),
        socket = socket.display(),
    )
}
