//! A stand-in for `crictl`, which Debian does not have, for the tests of scripts that call it: it speaks CRI to a
//! containerd and takes the flags and the files, prints the lines, and fails in the words of cri-tools 1.34.
//!
//! It has only the commands and flags that such a script uses, and refuses all others. Like the
//! original it wants flags before arguments, and shows its help, with status 0, for a wrong number of arguments.

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
    // The call is given up with its connection, and containerd hears of that.
    tokio::select! {
        done = work => done,
        _ = interrupt.recv() => bail!("interrupted: context canceled"),
        _ = terminate.recv() => bail!("interrupted: context canceled"),
    }
}
