//! A child process that logs to a file, watched until it is ready and never left behind.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, Signal, kill_process};

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
    /// Starts `command` with stdout and stderr appended to `log`, in a process group of its own so that a Ctrl-C at
    /// the terminal leaves the teardown to the lab.
    pub(crate) fn spawn(mut command: Command, log: Log) -> Result<Self> {
        use std::os::unix::process::CommandExt;
        let name = Path::new(command.get_program())
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let file = File::options().create(true).append(true).open(&log.path)?;
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
            if ready(&self.log).await {
                return Ok(());
            }
            if let Some(status) = self.child.try_wait()? {
                bail!(
                    "{} ended ({status}) before {what}:\n{}",
                    self.name,
                    self.log.tail()
                );
            }
            if Instant::now() > deadline {
                bail!(
                    "{}: not {what} within {timeout:?}:\n{}",
                    self.name,
                    self.log.tail()
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
                    "{} still runs after {timeout:?}:\n{}",
                    self.name,
                    self.log.tail()
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

/// The file that a process logs to. It outlives the process, and a restart appends to it.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

/// What of a log is shown when something went wrong.
const TAIL_LINES: usize = 30;

impl Log {
    pub(crate) fn new(path: PathBuf) -> Self {
        Self { path }
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it so far; empty if nothing was logged.
    pub fn text(&self) -> String {
        fs::read(&self.path)
            .map(|bytes| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    /// The lines that contain `pattern`.
    pub fn lines_with(&self, pattern: &str) -> Vec<String> {
        self.text()
            .lines()
            .filter(|l| l.contains(pattern))
            .map(str::to_owned)
            .collect()
    }

    /// Its last lines.
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(TAIL_LINES)..].join("\n")
    }

    /// Waits for the first line that contains `pattern`, and returns it.
    ///
    /// # Errors
    /// If none has come within `timeout`; the message carries the end of the log.
    pub async fn wait_for(&self, pattern: &str, timeout: Duration) -> Result<String> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(line) = self.lines_with(pattern).into_iter().next() {
                return Ok(line);
            }
            if Instant::now() > deadline {
                bail!(
                    "no «{pattern}» in {} within {timeout:?}:\n{}",
                    self.path.display(),
                    self.tail()
                );
            }
            tokio::time::sleep(POLL).await;
        }
    }
}
