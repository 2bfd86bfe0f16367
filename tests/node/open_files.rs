//! A process begins with a low limit of open files, as systemd and containerd start it. The plugin may need more: each layer
//! that is being unpacked has a lock, which is a socket, and containerd 2.2 unpacks all layers of an image at once.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::support::{PATIENCE, PROGRAM};

/// Returns the limits of a process' open files: the one that holds, and the highest that may be set.
fn limits(pid: u32) -> Result<(String, String)> {
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let mut lines = limits.lines();
    let of_files = lines.find_map(|line| line.strip_prefix("Max open files"));
    let mut numbers = of_files.context("no limit")?.split_whitespace();
    let mut next = || Ok::<_, anyhow::Error>(numbers.next().context("no number")?.to_owned());
    Ok((next()?, next()?))
}

/// Whether the process is the plugin, and no longer the shell that starts it, and has the highest limit.
fn has_highest(pid: u32) -> Result<bool> {
    let program = std::fs::read_link(format!("/proc/{pid}/exe"))?;
    let (holds, highest) = limits(pid)?;
    Ok(program == Path::new(PROGRAM).canonicalize()? && holds == highest)
}

#[test]
fn the_highest_limit_of_open_files_holds() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let nowhere = directory.path().join("nowhere.sock");
    let mut plugin = Command::new("sh")
        .args(["-c", "ulimit -S -n 64; exec \"$@\"", "sh", PROGRAM])
        .args(["run", "--containerd-socket"])
        .arg(&nowhere)
        .arg("--nri-socket")
        .arg(&nowhere)
        .spawn()?;
    let began = Instant::now();
    let mut holds = has_highest(plugin.id());
    while matches!(holds, Ok(false)) && began.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(10));
        holds = has_highest(plugin.id());
    }
    plugin.kill()?;
    plugin.wait()?;
    ensure!(holds?, "the limit stays low");
    Ok(())
}
