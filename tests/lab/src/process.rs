//! A child process that logs to a file. It is watched until it is ready, and always killed in the end.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

use crate::log::Log;
use crate::traces::MARK;

/// Go's `GOGC` for the daemons of the lab, which run for seconds: less garbage collection for more memory.
pub(crate) const GARBAGE_PERCENT: &str = "400";

/// The interval between checks of a condition: short compared to the second that a containerd takes to start.
pub(crate) const POLL: Duration = Duration::from_millis(10);

/// The timeout between SIGTERM and SIGKILL.
const TERM_GRACE: Duration = Duration::from_secs(10);

/// A running process. Dropping it kills and reaps it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    name: String,
    log: Log,
}

impl Process {
    /// Starts `command` as a part of the run with this ID. Appends stdout and stderr to `log`. Starts it in a
    /// process group of its own, so that Ctrl-C at the terminal does not signal it.
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

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), signal)?)
    }

    /// Polls `ready` until it returns true.
    ///
    /// # Errors
    /// If the process ends or the timeout expires first; the message has the end of its log.
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
            // The timeout also applies to a process that accepts a request and never responds.
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

    /// Waits until it ends by itself.
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

    /// Sends SIGTERM and waits until it has ended. If that takes too long, it is killed, and an error returned.
    pub(crate) async fn terminate(&mut self) -> Result<std::process::ExitStatus> {
        // The process is not reaped yet, so the ID is still its own; an error means that it has just ended.
        let _ = self.signal(Signal::TERM);
        let ended = self.wait(TERM_GRACE).await;
        if ended.is_err() {
            self.kill();
        }
        ended.context("on SIGTERM")
    }

    /// Kills it with SIGKILL and reaps it. Does nothing if it has ended already.
    pub(crate) fn kill(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
