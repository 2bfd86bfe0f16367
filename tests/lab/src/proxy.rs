//! A snapshotter that is a daemon of its own, to which containerd speaks as a proxy plugin.
//!
//! Knows how such a daemon is started, killed alone, and started again; what it makes of labels is its own business.

use std::ffi::OsString;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Result, ensure};

use crate::log::Log;
use crate::options::Remote;
use crate::process::Process;
use crate::scratch::Scratch;

/// How long a snapshotter may take to listen: it takes a tenth of a second, on a busy machine more.
const START_TIMEOUT: Duration = Duration::from_secs(15);

/// A remote snapshotter beside a lab's containerd. Dropped, it is killed.
#[derive(Debug)]
pub struct ProxySnapshotter {
    remote: Remote,
    socket: PathBuf,
    log: Log,
    /// The id of the lab's run, which marks the process.
    run: String,
    invocation: Invocation,
    process: Mutex<Option<Process>>,
}

/// How its daemon is started, every time alike.
#[derive(Debug)]
pub(crate) struct Invocation {
    pub(crate) program: PathBuf,
    pub(crate) arguments: Vec<OsString>,
    /// All that it has of an environment, beside the run's mark.
    pub(crate) environment: Vec<(&'static str, OsString)>,
}

impl ProxySnapshotter {
    /// One that does not run yet and will listen on the socket of its name.
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

    /// Starts it and waits until it listens; also after [`ProxySnapshotter::kill`], on the same state. containerd
    /// finds it again by itself, a second after the first call that did not reach it.
    ///
    /// # Errors
    /// If it still runs, or does not come up.
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

    /// Kills it with -9, and containerd stays.
    pub fn kill(&self) {
        self.process().take();
    }

    /// Its table in containerd's configuration.
    pub(crate) fn table(&self) -> String {
        format!(
            "[proxy_plugins.{}]\ntype = \"snapshot\"\naddress = \"{}\"\n",
            self.remote.name(),
            self.socket.display()
        )
    }

    /// Which one it is.
    pub fn remote(&self) -> Remote {
        self.remote
    }

    /// What it has logged, over all restarts.
    pub fn log(&self) -> &Log {
        &self.log
    }

    fn process(&self) -> MutexGuard<'_, Option<Process>> {
        self.process.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Where a remote snapshotter of this run listens.
pub(crate) fn socket(remote: Remote, scratch: &Scratch) -> Result<PathBuf> {
    scratch.socket(&format!("{}.sock", remote.name()))
}
