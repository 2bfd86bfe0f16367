//! nydus-snapshotter in its proxy mode, in which a confidential guest pulls the image and the host has none of it.
//!
//! There is no guest here: runc stands in for it, and `mount.fuse` gives it the files of the images it is to have.
//! Everything up to that, the snapshots and the mounts, is nydus-snapshotter's own.

mod volume;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use flate2::read::GzDecoder;

use crate::config::PAUSE;
use crate::images::{self, Image};
use crate::options::Remote;
use crate::packages::Packages;
use crate::proxy::{Invocation, ProxySnapshotter, socket};
use crate::scratch::Scratch;

pub use volume::{GUEST_PULL, KataVolume};

/// What containerd calls for a mount of the type `fuse.*`, and what real guests need on no host.
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
    give_to_guest(scratch, &images::pause(&[PAUSE])?)?;
    let invocation = Invocation {
        program: program("containerd-nydus-grpc"),
        arguments: vec!["--config".into(), config.into()],
        // It looks for registry credentials there.
        environment: vec![("HOME", scratch.path("tmp").into())],
    };
    ProxySnapshotter::new(Remote::Nydus, scratch, invocation)
}

/// The directory to put first on containerd's PATH: the mount helper, and what it serves.
pub(crate) fn guest_dir(scratch: &Scratch) -> PathBuf {
    scratch.path("guest")
}

/// Gives the guest the files of an image's top layer, so that it can run a container of it.
fn give_to_guest(scratch: &Scratch, image: &Image) -> Result<()> {
    let top = image.layers.last().context("an image without layers")?;
    let blob = image.blobs.iter().find(|blob| blob.digest == top.digest);
    let blob = blob.context("an image without its top layer")?;
    let files = guest_dir(scratch).join(&top.digest);
    tar::Archive::new(GzDecoder::new(&blob.bytes[..]))
        .unpack(&files)
        .with_context(|| format!("unpacking {} for the guest", image.name()))
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
