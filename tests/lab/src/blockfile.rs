//! The file for containerd's blockfile snapshotter: an empty file system, which is copied for every lowest
//! layer.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::scratch::Scratch;

/// Its name as a snapshotter.
pub(crate) const NAME: &str = "blockfile";

/// The size in KiB. Every snapshot is a whole copy that is flushed to disk, so it is only as large as the test
/// images need.
const SIZE: &str = "16384";

/// Creates the file, and returns its table in containerd's configuration.
pub(crate) fn prepare(scratch: &Scratch) -> Result<String> {
    if !Path::new("/dev/loop-control").exists() {
        let _ = Command::new("modprobe").arg("loop").output();
    }
    let file = scratch.path("blockfile.ext4");
    let output = Command::new("mkfs.ext4")
        .arg("-q")
        .arg(&file)
        .arg(SIZE)
        .output()
        .context("mkfs.ext4 cannot be run: `make deps` installs it")?;
    ensure!(
        output.status.success(),
        "mkfs.ext4: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(format!(
        "[plugins.\"io.containerd.snapshotter.v1.{NAME}\"]\nscratch_file = \"{}\"\nfs_type = \"ext4\"\n",
        file.display()
    ))
}
