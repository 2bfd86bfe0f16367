//! The memory of the process: a crash writes none of it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Version;
use rustix::process::{Pid, Signal, kill_process};

use crate::support::{Node, write_script};

/// Where the kernel writes a core dump: a file, or the standard input of a program.
const PATTERN: &str = "/proc/sys/kernel/core_pattern";

/// Longer than a core dump of the plugin takes.
const ENDED: Duration = Duration::from_secs(10);

/// The limit holds also where the shell that starts the plugin has none.
#[tokio::test(flavor = "multi_thread")]
async fn a_crash_writes_no_core_dump() -> Result<()> {
    let mut node = Node::start(Version::V2_1).await?;
    let directory = node.lab.path("crash");
    std::fs::create_dir(&directory)?;
    let wrapper = node.lab.path("wrapper");
    let text = format!(
        "#!/bin/sh\nulimit -c unlimited\ncd {}\nexec {} \"$@\"\n",
        directory.display(),
        node.program.display()
    );
    write_script(&wrapper, &text)?;
    node.program = wrapper;
    node.serve("").await?;
    let plugin = node.plugin.as_mut().context("no plugin")?;
    let pid = plugin.pid().context("it has ended")?;
    let limits = std::fs::read_to_string(format!("/proc/{pid}/limits"))?;
    let limit = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    // A program that collects core dumps is not started for a limit of 1.
    let limit = limit.context("no limit")?.split_whitespace().nth(4);
    ensure!(limit == Some("1"), "{limits}");

    let pid = Pid::from_raw(pid.try_into()?).context("no pid")?;
    // Rust's own handler of a segmentation fault lets the process go on after a signal of another process.
    kill_process(pid, Signal::ABORT)?;
    let status = plugin.wait(ENDED).await?;
    ensure!(!status.success(), "{status}");
    let pattern = std::fs::read_to_string(PATTERN)?;
    let is_in_directory = !pattern.starts_with(['/', '|']);
    println!(
        "core pattern {}, in the directory: {is_in_directory}, {status:?}",
        pattern.trim()
    );
    let left: Vec<_> = std::fs::read_dir(&directory)?.collect();
    ensure!(left.is_empty(), "{left:?}");
    Ok(())
}
