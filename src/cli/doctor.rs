//! `doctor`: finds what on this node keeps the plugin from working, and prints each finding with its remedy.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;
use serde::Serialize;

use crate::doctor::{self, Examination, Finding, Severity};
use crate::node::Node;
use crate::unpack::Role;

use super::configured::Configured;
use super::style::{self, Style};
use super::{Exit, Failure, Output};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// Apply the safe remedies: make the pause image ready, remove what a crash has left
    #[arg(long)]
    fix: bool,
    /// Output format
    #[arg(long, value_enum, default_value_t)]
    output: Output,
}

/// The JSON output.
#[derive(Debug, Serialize)]
struct Report<'a> {
    containerd: Containerd,
    /// The file that was read; `null` if there is none, and the defaults apply.
    configuration: Option<PathBuf>,
    findings: &'a [Finding],
}

#[derive(Debug, Serialize)]
struct Containerd {
    socket: String,
    /// `null` if it does not answer.
    version: Option<String>,
}

pub(super) async fn doctor(configured: Configured, arguments: &Arguments) -> Result<Exit, Failure> {
    let file = configured.file.clone();
    let config = configured.announced();
    let socket = config.containerd.socket.to_string();
    let node = Node::open(config, Role::Command)?;
    let mut examination = doctor::examine(&node).await;
    if arguments.fix && examination.containerd.is_ok() {
        examination.fix(&node).await;
    }
    node.close().await;
    let Examination {
        containerd,
        findings,
    } = examination;
    let exit = match containerd {
        Err(_) => Exit::Unreachable,
        Ok(_) if findings.iter().any(Finding::is_open) => Exit::NotReady,
        Ok(_) => Exit::Ready,
    };
    let report = Report {
        containerd: Containerd {
            socket,
            version: containerd.ok(),
        },
        configuration: file,
        findings: &findings,
    };
    match arguments.output {
        Output::Json => super::print_json(&report)?,
        Output::Table => super::print(&report.text())?,
    }
    Ok(exit)
}

impl Report<'_> {
    fn text(&self) -> String {
        let socket = &self.containerd.socket;
        let mut text = match &self.containerd.version {
            Some(version) => format!("containerd {version} at {socket}\n"),
            None => format!("containerd at {socket} does not answer\n"),
        };
        for finding in self.findings {
            text += "\n";
            text += &paragraph(finding);
        }
        text += "\n";
        text += &self.summary();
        text
    }

    fn summary(&self) -> String {
        let counted = |severity, word: &str| {
            let of_it = |f: &&Finding| f.severity == severity && f.fixed.is_none();
            match self.findings.iter().filter(of_it).count() {
                0 => None,
                1 => Some(format!("1 {word}")),
                n => Some(format!("{n} {word}s")),
            }
        };
        let fixed = self.findings.iter().filter(|f| f.fixed.is_some()).count();
        let counts = [
            counted(Severity::Error, "error"),
            counted(Severity::Warning, "warning"),
            counted(Severity::Note, "note"),
            (fixed > 0).then(|| format!("{fixed} fixed")),
        ];
        let counts: Vec<_> = counts.into_iter().flatten().collect();
        match counts.is_empty() {
            true => "nothing is wrong".to_owned(),
            false => counts.join(", "),
        }
    }
}

/// Returns a finding as text. Lines and commands to copy are on lines of their own.
fn paragraph(finding: &Finding) -> String {
    let style = match finding.severity {
        Severity::Error => Style::Bad,
        Severity::Warning => Style::Attention,
        Severity::Note => Style::Quiet,
    };
    let severity = finding.severity.to_string();
    let found = format!("{severity}: {} [{}]", finding.found, finding.id);
    let found = style::wrapped(&found, "", "  ");
    let mut text = found.replacen(&severity, &style::painted(style, &severity), 1) + "\n";
    let mut line = |line: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{line}");
    };
    if let Some(fixed) = &finding.fixed {
        let fixed = style::wrapped(&format!("fixed: {fixed}"), "  ", "  ");
        line(&style::painted(Style::Good, &fixed));
        return text;
    }
    line(&style::wrapped(&finding.means, "  ", "  "));
    let remedy = &finding.remedy;
    if !remedy.say.is_empty() {
        line(&style::wrapped(&remedy.say, "  -> ", "     "));
    }
    // Text to copy is not wrapped.
    if let Some(file) = &remedy.file {
        line(&format!("     in {}:", file.display()));
    }
    for content in &remedy.lines {
        line(&format!("         {content}"));
    }
    for command in &remedy.commands {
        line(&format!("     $ {command}"));
    }
    text
}
