//! The messages of the plugin to systemd, on a socket of the test. `service.rs` tests them with a real systemd.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{PATIENCE, PROGRAM};

/// The watchdog timeout; long enough for a loaded machine.
const TIMEOUT: Duration = Duration::from_secs(2);

/// The plugin on a node without containerd. The watchdog must not end it for that.
struct Notifier {
    plugin: Child,
    socket: UnixDatagram,
    _directory: TempDir,
}

impl Notifier {
    fn start() -> Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("notify");
        let socket = UnixDatagram::bind(&path)?;
        let nowhere = directory.path().join("nowhere.sock");
        let plugin = Command::new(PROGRAM)
            .args(["run", "--containerd-socket"])
            .arg(&nowhere)
            .arg("--nri-socket")
            .arg(&nowhere)
            .env("NOTIFY_SOCKET", &path)
            .env("WATCHDOG_USEC", TIMEOUT.as_micros().to_string())
            .spawn()?;
        Ok(Self {
            plugin,
            socket,
            _directory: directory,
        })
    }

    /// Returns the next message, if one arrives in time.
    fn next(&self, patience: Duration) -> Result<Option<String>> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut message = [0; 4096];
        match self.socket.recv(&mut message) {
            Ok(length) => Ok(Some(String::from_utf8(message[..length].to_vec())?)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for a message; returns the messages before it.
    fn wait_for(&self, words: &str, patience: Duration) -> Result<Vec<String>> {
        let until = Instant::now() + patience;
        let mut before = vec![];
        while let Some(left) = until.checked_duration_since(Instant::now()) {
            match self.next(left.max(Duration::from_millis(1)))? {
                Some(message) if message.contains(words) => return Ok(before),
                Some(message) => before.push(message),
                None => {}
            }
        }
        bail!("no {words} within {patience:?}, but {before:?}")
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.plugin), signal)?)
    }
}

impl Drop for Notifier {
    fn drop(&mut self) {
        let _ = self.plugin.kill();
        let _ = self.plugin.wait();
    }
}

#[test]
fn systemd_gets_ready_watchdog_and_stopping() -> Result<()> {
    let mut notifier = Notifier::start()?;
    notifier.wait_for("READY=1", PATIENCE)?;
    let begin = Instant::now();
    let mut messages = vec![];
    for _ in 0..4 {
        messages.extend(notifier.wait_for("WATCHDOG=1", TIMEOUT)?);
    }
    // The first message comes at once, each further one after half of the timeout.
    ensure!(
        begin.elapsed() >= TIMEOUT,
        "messages were sent too often: {:?}",
        begin.elapsed()
    );
    let status = messages
        .iter()
        .find(|it| it.starts_with("STATUS=cannot connect"));
    status.with_context(|| format!("no status: {messages:?}"))?;

    notifier.signal(Signal::STOP)?;
    while notifier.next(TIMEOUT)?.is_some() {}
    notifier.signal(Signal::CONT)?;
    notifier.wait_for("WATCHDOG=1", TIMEOUT)?;

    notifier.signal(Signal::TERM)?;
    notifier.wait_for("STOPPING=1", TIMEOUT)?;
    ensure!(
        notifier.plugin.wait()?.success(),
        "the plugin did not end with success"
    );
    Ok(())
}
