//! A replacement of `crictl`, which Debian does not package, for the tests of scripts that call it. It speaks
//! CRI to a containerd, and has the flags, files, output and errors of cri-tools 1.34.
//!
//! It has only the commands and flags that such a script uses, and rejects all others. As with the original,
//! flags precede arguments, and a wrong number of arguments shows the help with exit code 0.

mod commands;
mod files;
mod flags;

use std::process::ExitCode;

use anyhow::{Result, bail};
use tokio::signal::unix::{SignalKind, signal};

use commands::Client;
use flags::{Flag, Flags};

/// The flags before the command.
const GLOBAL: &[Flag] = &[
    Flag::value(&["runtime-endpoint", "r"]),
    Flag::value(&["image-endpoint", "i"]),
    Flag::value(&["timeout", "t"]),
];

#[tokio::main]
async fn main() -> ExitCode {
    match run(std::env::args().skip(1)).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let message = format!("{error:#}");
            eprintln!("E0102 03:04:05.000000       1 log.go:32] \"call failed\" err={message:?}");
            eprintln!("time=\"2026-01-02T03:04:05Z\" level=fatal msg={message:?}");
            ExitCode::FAILURE
        }
    }
}

async fn run(arguments: impl Iterator<Item = String>) -> Result<()> {
    let (global, mut rest) = Flags::parse(GLOBAL, arguments)?;
    if rest.is_empty() {
        bail!("the stand-in shows no help: give a command");
    }
    let command = rest.remove(0);
    let work = async {
        let client = Client::connect(&global).await?;
        client.run(&command, rest).await
    };
    let (mut interrupt, mut terminate) = (
        signal(SignalKind::interrupt())?,
        signal(SignalKind::terminate())?,
    );
    // The call is cancelled with its connection, and containerd notices that.
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => bail!("interrupted: context canceled"),
        _ = terminate.recv() => bail!("interrupted: context canceled"),
    }
}
