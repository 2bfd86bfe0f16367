//! A child process that logs to a file, watched until it is ready and never left behind.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::log::Log;
use crate::traces::MARK;

/// Go's `GOGC` for the daemons of the lab, which live for seconds: less garbage collection for more memory.
pub(crate) const GARBAGE_PERCENT: &str = "400";

/// How often a condition is looked at again: short against the second that a containerd takes to start.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// How long a process may take to obey SIGTERM before it is killed.
const TERM_GRACE: Duration = Duration::from_secs(10);

/// A running process. Dropped, it is killed and reaped.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    log: Log,
}

impl Process {
    /// Starts `command` as a part of the run of this id, with stdout and stderr appended to `log`, and in a process
    /// group of its own: a Ctrl-C at the terminal is not for it.
    pub(crate) fn spawn(mut command: Command, run: &str, log: Log) -> Result<Self> {
        let name = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        command.env(MARK, run);
        let file = File::options().create(true).append(true).open(log.path())?;
        command
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("starting {:?}", command.get_program()))?;
        Ok(Self { child, name, log })
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Sends SIGHUP.
    pub(crate) fn hang_up(&self) -> Result<()> {
        let pid = Pid::from_child(&self.child);
        Ok(kill_process(pid, Signal::HUP)?)
    }

    /// Polls `ready` until it holds.
    ///
    /// # Errors
    /// If the process ends or the time runs out first; the message carries the end of its log.
    pub(crate) async fn wait_until<F>(
        &mut self,
        what: &str,
        timeout: Duration,
        mut ready: F,
    ) -> Result<()>
    where
        F: AsyncFnMut(&Log) -> bool,
    {
        let deadline = Instant::now() + timeout;
        loop {
            // One that takes the question and never answers runs out of time as well.
            if tokio::time::timeout_at(deadline.into(), ready(&self.log)).await == Ok(true) {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended ({status}) before it was {what}; {}",
                    self.name,
                    self.log.show()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{}: not {what} within {timeout:?}; {}",
                    self.name,
                    self.log.show()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for it to end by itself.
    pub(crate) async fn wait(&mut self, timeout: Duration) -> Result<std::process::ExitStatus> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(status) = self.child.try_wait()? {
                return Ok(status);
            }
            if Instant::now() > deadline {
                bail!(
                    "{} still runs after {timeout:?}; {}",
                    self.name,
                    self.log.show()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Asks it to end, and waits until it did; it is killed when it takes too long, which is an error.
    pub(crate) async fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        self.signal(Signal::TERM);
        let ended = self.wait(TERM_GRACE).await;
        if ended.is_err() {
            self.kill();
        }
        ended.context("on SIGTERM")
    }

    /// Kills it with -9 and reaps it. Nothing happens if it has ended already.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn signal(&self, signal: Signal) {
        // Not reaped yet, so the id is still this process's; an error means that it has just ended.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
