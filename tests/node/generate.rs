//! The files that a package ships with the program: completions and manual pages.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Result, ensure};

use crate::support::PROGRAM;

fn run(arguments: &[&str]) -> Result<Output> {
    Ok(Command::new(PROGRAM).args(arguments).output()?)
}

#[test]
fn completions_are_a_script() -> Result<()> {
    let output = run(&["completions", "bash"])?;
    ensure!(output.status.success(), "{output:?}");
    let mut bash = Command::new("bash")
        .args(["-c", "source /dev/stdin && complete -p nri-unpack"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut script = bash.stdin.take().expect("piped");
    script.write_all(&output.stdout)?;
    drop(script);
    let registered = bash.wait_with_output()?;
    let registered = String::from_utf8(registered.stdout)?;
    ensure!(registered.contains("-F"), "{registered}");
    for shell in ["zsh", "fish"] {
        let output = run(&["completions", shell])?;
        let script = String::from_utf8(output.stdout)?;
        ensure!(script.contains("containerd-socket"), "{shell}: {script}");
    }
    Ok(())
}

#[test]
fn every_command_has_a_man_page() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let at = directory.path().display().to_string();
    let output = run(&["man-pages", &at])?;
    ensure!(output.status.success(), "{output:?}");
    for name in [
        "",
        "-run",
        "-check",
        "-ensure",
        "-handlers",
        "-doctor",
        "-config",
        "-install",
        "-uninstall",
        "-purge",
    ] {
        let page = directory.path().join(format!("nri-unpack{name}.1"));
        let text = std::fs::read_to_string(&page)?;
        ensure!(text.contains(".SH DESCRIPTION"), "{name}: {text}");
    }
    let output = run(&["man-pages", "/nonexistent"])?;
    let stderr = String::from_utf8_lossy(&output.stderr);
    ensure!(
        output.status.code() == Some(1) && stderr.contains("/nonexistent/nri-unpack.1"),
        "{output:?}"
    );
    Ok(())
}
