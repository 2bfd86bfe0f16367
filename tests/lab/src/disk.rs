//! File systems of a fixed size, each in a file. The file can be on a file system that a program serves: while that
//! program is stopped, reads and writes hang.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::fs::statfs;
use rustix::process::Signal;

use crate::log::Log;
use crate::packages::Packages;
use crate::process::{POLL, Process};
use crate::scratch::Scratch;

/// `f_type` of FUSE.
const FUSE: i64 = 0x6573_5546;

/// The timeout until the program serves.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// The program that serves the file system on which the file of a disk is.
#[derive(Debug)]
pub struct Disk(Process);

/// Loads the kernel's module for loop devices, if it is not there.
pub(crate) fn load_loop_devices() {
    load_module("loop", "/dev/loop-control");
}

fn load_module(name: &str, device: &str) {
    if !Path::new(device).exists() {
        let _ = Command::new("modprobe").arg(name).output();
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
    mount_file(&scratch.path("disk.ext4"), at, size)
}

/// Like [`mount`], on a disk that can be made to hang.
pub(crate) fn mount_that_can_hang(scratch: &Scratch, at: &Path, size: u64) -> Result<Disk> {
    let [files, served] = ["disk", "disk-served"].map(|name| scratch.path(name));
    for directory in [&files, &served] {
        fs::create_dir(directory)?;
    }
    load_module("fuse", "/dev/fuse");
    let mut command = Packages::fetch()?.on_its_own_libc("bindfs", "usr/bin/bindfs")?;
    command.arg("-f").args([&files, &served]);
    let log = Log::new(scratch.path("bindfs.log"));
    let disk = Disk(Process::spawn(command, scratch.id(), log.clone())?);
    let deadline = Instant::now() + START_TIMEOUT;
    while statfs(&served)?.f_type != FUSE {
        ensure!(
            Instant::now() < deadline,
            "bindfs does not serve; {}",
            log.show()
        );
        std::thread::sleep(POLL);
    }
    mount_file(&served.join("disk.ext4"), at, size)?;
    Ok(disk)
}

fn mount_file(file: &Path, at: &Path, size: u64) -> Result<()> {
    load_loop_devices();
    make_file_system(file, size * 1024)?;
    let mut command = Command::new("mount");
    command.args(["-o", "loop"]).arg(file).arg(at);
    run(command, "mount")
}

impl Disk {
    /// Lets all reads and writes hang.
    ///
    /// # Errors
    /// If its program does not run.
    pub fn pause(&self) -> Result<()> {
        self.0.signal(Signal::STOP)
    }

    /// Lets them go on.
    ///
    /// # Errors
    /// If its program does not run.
    pub fn go_on(&self) -> Result<()> {
        self.0.signal(Signal::CONT)
    }
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
