//! Signals that end a program which keeps a lab running, so that it removes the lab before it exits.

use std::io;

use tokio::signal::unix::{SignalKind, signal};

/// Waits for Ctrl-C, `kill` or the end of the terminal.
///
/// # Errors
/// If the signal handlers cannot be installed.
pub async fn interrupted() -> io::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
