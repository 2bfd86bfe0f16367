//! A snapshotter in a separate daemon, which containerd uses as a proxy plugin.
//!
//! Knows how to start, kill and restart such a daemon, but not what it does with labels.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rustix::process::Signal;

use crate::log::Log;
use crate::options::Remote;
use crate::process::Process;
use crate::scratch::Scratch;

/// The timeout until a snapshotter listens: it takes a tenth of a second, or longer on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// A remote snapshotter beside a lab's containerd. Dropping it kills it.
#[derive(Debug)]
pub struct ProxySnapshotter {
    remote: Remote,
    socket: PathBuf,
    log: Log,
    /// The ID of the lab's run, which marks the process.
    run: String,
    invocation: Invocation,
    process: Mutex<Option<Process>>,
}

/// The command of its daemon, the same for every start.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// The whole environment, besides the run's mark.
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

impl ProxySnapshotter {
    /// Returns a snapshotter that does not run yet, and will listen on the socket of its name.
    pub(crate) fn new(remote: Remote, scratch: &Scratch, invocation: Invocation) -> Result<Self> {
        Ok(Self {
            remote,
            socket: socket(remote, scratch)?,
            log: Log::new(scratch.path(&format!("{}.log", remote.name()))),
            run: scratch.id().to_owned(),
            invocation,
            process: Mutex::new(None),
        })
    }

    /// Starts it and waits until it listens; also after [`ProxySnapshotter::kill`], on the same state.
    /// containerd reconnects by itself, one second after the first failed call.
    ///
    /// # Errors
    /// If it still runs, or does not start.
    pub async fn restart(&self) -> Result<()> {
        let name = self.remote.name();
        ensure!(
            self.process().is_none(),
            "the {name} snapshotter still runs: kill it first"
        );
        let mut command = Command::new(&self.invocation.program);
        command.args(&self.invocation.arguments).env_clear();
        for (name, value) in &self.invocation.environment {
            command.env(name, value);
        }
        let mut process = Process::spawn(command, &self.run, self.log.clone())?;
        let listening = async |_: &Log| UnixStream::connect(&self.socket).is_ok();
        process
            .wait_until("listening", START_TIMEOUT, listening)
            .await?;
        *self.process() = Some(process);
        Ok(())
    }

    /// Kills it with SIGKILL, but not containerd.
    pub fn kill(&self) {
        self.process().take();
    }

    /// Stops it with SIGSTOP: it takes connections and calls, and never answers.
    ///
    /// # Errors
    /// If it does not run.
    pub fn pause(&self) -> Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on with SIGCONT.
    ///
    /// # Errors
    /// If it does not run.
    pub fn go_on(&self) -> Result<()> {
        self.signal(Signal::CONT)
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        let process = self.process();
        let name = self.remote.name();
        let process = process.as_ref();
        process
            .with_context(|| format!("the {name} snapshotter does not run"))?
            .signal(signal)
    }

    /// Returns its table in containerd's configuration.
    pub(crate) fn table(&self) -> String {
        format!(
            "[proxy_plugins.{}]\ntype = \"snapshot\"\naddress = \"{}\"\n",
            self.remote.name(),
            self.socket.display()
        )
    }

    /// Returns which snapshotter this is.
    pub fn remote(&self) -> Remote {
        self.remote
    }

    /// Returns the socket on which it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Returns its log, over all restarts.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the socket of a remote snapshotter of this run.
pub(crate) fn socket(remote: Remote, scratch: &Scratch) -> Result<PathBuf> {
    scratch.socket(&format!("{}.sock", remote.name()))
}
