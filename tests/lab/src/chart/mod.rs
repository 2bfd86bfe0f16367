//! Renders a Helm chart. Helm is not packaged; `main.go` has the part of it that makes manifests of templates, of the
//! same libraries.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::go::Program;

const PROGRAM: Program = Program {
    name: "chart",
    source: include_str!("main.go"),
    libraries: &[
        "golang-github-masterminds-sprig-dev=3.*",
        "golang-k8s-sigs-yaml-dev",
    ],
};

/// Returns the manifests that the chart in this directory renders for a namespace, with these values (YAML) over its own.
///
/// # Errors
/// If the program cannot be compiled, or a template fails; the message has its error.
pub fn render_chart(chart: &Path, namespace: &str, values: &str) -> Result<String> {
    let mut command = Command::new(PROGRAM.built()?);
    command.arg(chart).arg(namespace).stdin(Stdio::piped());
    let mut child = command
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("running the renderer")?;
    // The program reads all input before it writes.
    let stdin = child.stdin.take();
    stdin
        .context("no standard input")?
        .write_all(values.as_bytes())?;
    let output = child.wait_with_output()?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{}: {stderr}", chart.display());
    Ok(String::from_utf8(output.stdout)?)
}
