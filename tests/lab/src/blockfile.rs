//! The file for containerd's blockfile snapshotter: an empty file system, which is copied for every lowest
//! layer.

use anyhow::Result;

use crate::disk;
use crate::scratch::Scratch;

/// Its name as a snapshotter.
pub(crate) const NAME: &str = "blockfile";

/// The size in KiB. Every snapshot is a whole copy that is flushed to disk, so it is only as large as the test
/// images need.
const SIZE: u64 = 16384;

/// Creates the file, and returns its table in containerd's configuration.
pub(crate) fn prepare(scratch: &Scratch) -> Result<String> {
    disk::load_loop_devices();
    let file = scratch.path("blockfile.ext4");
    disk::make_file_system(&file, SIZE)?;
    Ok(format!(
        "[plugins.\"io.containerd.snapshotter.v1.{NAME}\"]\nscratch_file = \"{}\"\nfs_type = \"ext4\"\n",
        file.display()
    ))
}
