//! File systems of a fixed size, each in a file.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::scratch::Scratch;

/// Loads the kernel's module for loop devices, if it is not there.
pub(crate) fn load_loop_devices() {
    if !Path::new("/dev/loop-control").exists() {
        let _ = Command::new("modprobe").arg("loop").output();
    }
}

/// Creates a file with an empty file system of this size in KiB.
pub(crate) fn make_file_system(file: &Path, size: u64) -> Result<()> {
    let mut command = Command::new("mkfs.ext4");
    command.arg("-q").arg(file).arg(size.to_string());
    run(command, "mkfs.ext4")
}

/// Mounts a file system of this size in MiB at a directory of the run. The run unmounts it when it ends; the loop
/// device goes with the mount.
pub(crate) fn mount(scratch: &Scratch, at: &Path, size: u64) -> Result<()> {
    load_loop_devices();
    let file = scratch.path("disk.ext4");
    make_file_system(&file, size * 1024)?;
    let mut command = Command::new("mount");
    command.args(["-o", "loop"]).arg(&file).arg(at);
    run(command, "mount")
}

fn run(mut command: Command, name: &str) -> Result<()> {
    let output = command.output();
    let output =
        output.with_context(|| format!("{name} cannot be run: `make deps` installs it"))?;
    ensure!(
        output.status.success(),
        "{name}: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
