//! What the plugin tells systemd, on a socket that the test listens at; the other end of it, a real systemd, is in
//! `service.rs`.

use std::os::unix::net::UnixDatagram;
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use crate::support::{PATIENCE, PROGRAM};

/// What the watchdog allows; long enough for a machine on which much goes on.
const ALLOWED: Duration = Duration::from_secs(2);

/// The plugin on a node without containerd, which is no reason to be ended.
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
            .env("WATCHDOG_USEC", ALLOWED.as_micros().to_string())
            .spawn()?;
        Ok(Self {
            plugin,
            socket,
            _directory: directory,
        })
    }

    /// The next message, if one comes in time.
    fn next(&self, patience: Duration) -> Result<Option<String>> {
        self.socket.set_read_timeout(Some(patience))?;
        let mut message = [0; 4096];
        match self.socket.recv(&mut message) {
            Ok(length) => Ok(Some(String::from_utf8(message[..length].to_vec())?)),
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for a message; says which came before it.
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
fn it_is_ready_lives_and_stops() -> Result<()> {
    let mut notifier = Notifier::start()?;
    notifier.wait_for("READY=1", PATIENCE)?;
    let begin = Instant::now();
    let mut said = vec![];
    for _ in 0..4 {
        said.extend(notifier.wait_for("WATCHDOG=1", ALLOWED)?);
    }
    // The first comes at once, the others after half of what is allowed each.
    ensure!(
        begin.elapsed() >= ALLOWED,
        "too often: {:?}",
        begin.elapsed()
    );
    let status = said
        .iter()
        .find(|it| it.starts_with("STATUS=cannot connect"));
    status.with_context(|| format!("no status: {said:?}"))?;

    notifier.signal(Signal::STOP)?;
    while notifier.next(ALLOWED)?.is_some() {}
    notifier.signal(Signal::CONT)?;
    notifier.wait_for("WATCHDOG=1", ALLOWED)?;

    notifier.signal(Signal::TERM)?;
    notifier.wait_for("STOPPING=1", ALLOWED)?;
    ensure!(notifier.plugin.wait()?.success(), "it did not end in order");
    Ok(())
}
