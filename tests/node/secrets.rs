//! Secrets that the plugin and its commands read, or could: none is in a line of the log at any level, of any crate, in a
//! metric, a report, an error or a command line, in clear or encoded, on success and on failure.

mod containerd;
mod kubernetes;
mod process;
mod registry;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Output;

use anyhow::{Context, Result, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD_NO_PAD;
use lab::{Log, Plugin};
use tokio::net::UnixStream;

use crate::metrics::get;
use crate::support::{Node, PROGRAM, write_script};

/// How much is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Level {
    /// Everything of our own crates, by the configuration.
    Own,
    /// Everything of every crate, by the environment.
    Every,
}

/// Directives for all crates. Those that log each frame have to be named.
const CRATES: [&str; 9] = [
    "trace",
    "h2=trace",
    "hyper=trace",
    "hyper_util=trace",
    "kube_client=trace",
    "rustls=trace",
    "tonic=trace",
    "tower=trace",
    "tracing=trace",
];

const LEVELS: [Level; 2] = [Level::Own, Level::Every];

/// Returns the forms in which a secret could be shown: in clear, as base64 wherever it begins in the encoded text, as the
/// bytes of an array, and in hexadecimal numbers.
fn forms(secret: &str) -> Vec<String> {
    let bytes = secret.as_bytes();
    let list = |format: fn(&u8) -> String, between| {
        bytes.iter().map(format).collect::<Vec<_>>().join(between)
    };
    let base64 = (0..3).map(|before| {
        let text = STANDARD_NO_PAD.encode([&vec![0; before][..], bytes].concat());
        // The first and the last character also depend on what is around the secret.
        text[(before * 8).div_ceil(6)..(before + bytes.len()) * 8 / 6].to_owned()
    });
    let others = [
        secret.to_owned(),
        list(u8::to_string, ", "),
        list(|byte| format!("{byte:02x}"), ""),
    ];
    others.into_iter().chain(base64).collect()
}

/// Checks that a text has none of the secrets in any form.
fn check(what: &str, text: &[u8], secrets: &[&str]) -> Result<()> {
    let text = String::from_utf8_lossy(text);
    for secret in secrets {
        for form in forms(secret) {
            let line = text.lines().find(|line| line.contains(&form));
            let shown = line.map(|line| line.chars().take(2000).collect::<String>());
            ensure!(
                line.is_none(),
                "{what}: {secret}: {}",
                shown.unwrap_or_default()
            );
        }
    }
    Ok(())
}

fn check_output(what: &str, output: &Output, secrets: &[&str]) -> Result<()> {
    check(
        what,
        &[&output.stdout[..], &output.stderr].concat(),
        secrets,
    )
}

/// Checks the arguments of a process. Its environment is what its creator made it.
fn check_process(pid: u32, secrets: &[&str]) -> Result<()> {
    for file in ["cmdline", "comm", "status"] {
        let text = std::fs::read(format!("/proc/{pid}/{file}"))?;
        check(file, &text, secrets)?;
    }
    Ok(())
}

impl Node {
    /// Makes the program log at this level from its next start on.
    fn log_at(&mut self, level: Level) -> Result<()> {
        let path = self.lab.path("traced");
        let variable = match level {
            Level::Own => String::new(),
            Level::Every => format!("RUST_LOG={} ", CRATES.join(",")),
        };
        // The commands log with -vv only.
        let script = format!("#!/bin/sh\n{variable}exec {PROGRAM} \"$@\"\n");
        write_script(&path, &script)?;
        self.program = path;
        Ok(())
    }

    /// Starts the plugin with this configuration, and serves its metrics. Returns the socket of these.
    fn start_traced(&mut self, config: &str) -> Result<std::path::PathBuf> {
        let socket = self.lab.socket_path("metrics.sock")?;
        drop(std::fs::remove_file(&socket));
        let metrics = format!(
            "[metrics]\nlisten = \"unix:{}\"\n[log]\nlevel = \"trace\"",
            socket.display()
        );
        let config = config.replace("[log]\nlevel = \"debug\"", &metrics);
        let log = Log::new(self.lab.path("plugin.log")).from_now();
        self.plugin = Some(Plugin::start(&self.lab, &self.program, &config)?);
        self.log = log;
        Ok(socket)
    }

    /// Stops the plugin, and checks its log, its metrics and its process.
    async fn check_plugin(&mut self, what: &str, metrics: &Path, secrets: &[&str]) -> Result<()> {
        let stream = UnixStream::connect(metrics).await?;
        let (_, _, text) = get(stream, "/metrics", "text/plain").await?;
        ensure!(text.contains("nri_unpack_"), "no metrics: {text}");
        check(&format!("{what}: metrics"), text.as_bytes(), secrets)?;
        let plugin = self.plugin.as_mut().context("no plugin")?;
        check_process(plugin.pid().context("it has ended")?, secrets)?;
        plugin.stop().await?;
        let log = self.log.text();
        ensure!(!log.is_empty(), "no log");
        check(&format!("{what}: log"), log.as_bytes(), secrets)
    }

    /// Runs each command with this configuration, all levels, and both kinds of output.
    fn check_commands(&self, what: &str, config: &Path, secrets: &[&str]) -> Result<()> {
        let name = self.image.name();
        for arguments in [
            &["check", "--output", "json", "-vv"][..],
            &["check", name, "-vv"],
            &[
                "ensure",
                name,
                "--snapshotter",
                "native",
                "--output",
                "json",
                "-vv",
            ],
            &["doctor", "-vv"],
            &["doctor", "--output", "json", "-vv"],
            &["handlers", "-vv"],
            &["handlers", "--output", "json"],
            &["purge", "--dry-run", "-vv"],
        ] {
            let mut command = std::process::Command::new(&self.program);
            let output = command
                .args(arguments)
                .arg("--config")
                .arg(config)
                .output()?;
            check_output(&format!("{what}: {arguments:?}"), &output, secrets)?;
        }
        let mut command = std::process::Command::new(&self.program);
        let output = command.args(["config", "--check"]).arg(config).output()?;
        check_output(&format!("{what}: config"), &output, secrets)
    }
}

#[test]
fn a_secret_is_found_in_each_form() {
    let secret = "marker-of-a-test";
    let encoded =
        (0..3).map(|before| STANDARD_NO_PAD.encode(format!("{}{secret}:end", "u".repeat(before))));
    let bytes = format!(
        "Message {{ payload: {:?} }}",
        format!("a{secret}b").as_bytes()
    );
    let shown: BTreeSet<_> = encoded
        .chain([bytes, format!("token={secret}\n")])
        .collect();
    for text in shown {
        let found = check("text", format!("line\n{text}\n").as_bytes(), &[secret]);
        assert!(found.is_err(), "{text}");
    }
    assert!(check("text", b"another", &[secret]).is_ok());
}
