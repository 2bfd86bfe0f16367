//! The plugin under test as a process: its executable, its configuration file, its log.
//!
//! Knows only the command line `run --config FILE`. A plugin that containerd launches is set in
//! [`crate::Options::launched`] instead, and ends with that containerd.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Result, ensure};
use rustix::process::Signal;

use crate::containerd::Lab;
use crate::log::Log;
use crate::process::Process;

/// A plugin that connects to a lab's containerd by itself. Dropping it kills it.
#[derive(Debug)]
pub struct Plugin {
    program: PathBuf,
    config: PathBuf,
    log: Log,
    /// The ID of the lab's run, which marks the process.
    run: String,
    process: Option<Process>,
    /// Variables of its environment, besides the tests' own.
    variables: Vec<(String, String)>,
}

impl Plugin {
    /// Starts `program run --config FILE` with this configuration in the file. Does not wait until the plugin
    /// is ready: the plugin logs that, see [`Log::wait_for`].
    ///
    /// # Errors
    /// If the program cannot be started.
    pub fn start(lab: &Lab, program: impl AsRef<Path>, config: &str) -> Result<Self> {
        let file = lab.path("plugin.toml");
        fs::write(&file, config)?;
        let log = Log::new(lab.path("plugin.log"));
        let mut plugin = Self {
            program: program.as_ref().to_owned(),
            config: file,
            log,
            run: lab.scratch().id().to_owned(),
            process: None,
            variables: vec![],
        };
        plugin.restart()?;
        Ok(plugin)
    }

    /// Starts it again with the same configuration, after it was killed or stopped.
    ///
    /// # Errors
    /// If it still runs, or cannot be started.
    pub fn restart(&mut self) -> Result<()> {
        ensure!(
            self.process.is_none(),
            "the plugin still runs: kill or stop it first"
        );
        let mut command = Command::new(&self.program);
        command.arg("run").arg("--config").arg(&self.config);
        // As its unit does.
        command.env("MALLOC_ARENA_MAX", "1");
        command.envs(self.variables.iter().cloned());
        self.process = Some(Process::spawn(command, &self.run, self.log.clone())?);
        Ok(())
    }

    /// Sets variables of its environment from its next start on.
    pub fn set_variables(&mut self, variables: &[(&str, &str)]) {
        let owned = |&(name, value): &(&str, &str)| (name.to_owned(), value.to_owned());
        self.variables = variables.iter().map(owned).collect();
    }

    /// Returns its process ID while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }

    /// Writes another configuration, and sends SIGHUP.
    ///
    /// # Errors
    /// If it does not run.
    pub fn reload(&self, config: &str) -> Result<()> {
        let Some(process) = &self.process else {
            anyhow::bail!("the plugin does not run")
        };
        fs::write(&self.config, config)?;
        process.signal(Signal::HUP)
    }

    /// Kills it with SIGKILL.
    pub fn kill(&mut self) {
        self.process.take();
    }

    /// Sends SIGTERM, and waits until it has ended.
    ///
    /// # Errors
    /// If it does not run, or has to be killed because it does not end.
    pub async fn stop(&mut self) -> Result<ExitStatus> {
        match self.process.take() {
            Some(mut process) => process.terminate().await,
            None => anyhow::bail!("the plugin does not run"),
        }
    }

    /// Waits until it ends by itself.
    ///
    /// # Errors
    /// If it does not run, or does not end within `timeout`.
    pub async fn wait(&mut self, timeout: Duration) -> Result<ExitStatus> {
        let Some(process) = &mut self.process else {
            anyhow::bail!("the plugin does not run")
        };
        let status = process.wait(timeout).await?;
        self.process = None;
        Ok(status)
    }

    /// Returns its log, over all restarts.
    pub fn log(&self) -> &Log {
        &self.log
    }
}
