//! nydus-snapshotter in proxy mode: a confidential guest pulls the image, and the host does not unpack it.
//!
//! The lab has no guest: runc replaces it, and `mount.fuse` gives runc the files of the images that a guest
//! would pull. The snapshots and mounts are those of nydus-snapshotter itself.

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

/// The program that containerd calls for a mount of a type `fuse.*`. Kata passes such a mount to its guest and
/// does not call it.
const MOUNT_FUSE: &str = include_str!("mount.fuse");

/// Writes its configuration, and creates the guest's directory.
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
        // nydus-snapshotter reads registry credentials from this path.
        environment: vec![("HOME", scratch.path("tmp").into())],
    };
    ProxySnapshotter::new(Remote::Nydus, scratch, invocation)
}

impl Lab {
    /// Gives an image to the guest, so that a container of it can be started. The guest finds the image by its
    /// top layer. The pause image needs no such call. [`Remote::Nydus`] must be in [`crate::Options::remotes`].
    ///
    /// # Errors
    /// If the image has no layers, has layers that are not gzipped, or is given twice.
    pub fn give_to_guest(&self, image: &Image) -> Result<()> {
        give_to_guest(&guest_dir(self.scratch()), image)
    }
}

/// Returns the first directory of containerd's PATH, with the mount helper and the files that it adds.
pub(crate) fn guest_dir(scratch: &Scratch) -> PathBuf {
    scratch.path("guest")
}

/// Unpacks an image into the directory of `mount.fuse`.
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

/// Applies a gzipped layer to the existing files. Supports only the whiteouts that a [`crate::Layer`] creates.
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

/// Sets `enable_kata_volume`: without nydusd a labelled container would fail because `image.boot` is missing.
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
