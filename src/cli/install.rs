//! `install` and `uninstall`: set up and remove the start of the plugin by containerd or systemd, on this node
//! or in the image of a node.

use std::path::{Path, PathBuf};

use anyhow::Context as _;
use clap::{Args, ValueEnum};

use crate::config::Config;
use crate::doctor;
use crate::install::{self, Error, Install, LaunchedBy, Root, Step};

use super::{Exit, Failure, Global};

#[derive(Debug, Args)]
pub(super) struct InstallArguments {
    /// What starts the plugin
    #[arg(long, value_name = "WHO")]
    launched_by: By,
    /// Path of the program on the node [default: this program]
    #[arg(long, value_name = "FILE")]
    program: Option<PathBuf>,
    #[command(flatten)]
    location: Location,
}

#[derive(Debug, Args)]
pub(super) struct UninstallArguments {
    #[command(flatten)]
    location: Location,
}

#[derive(Debug, Args)]
struct Location {
    /// Root directory of an image or package; containerd's configuration is not read then
    #[arg(long, value_name = "DIRECTORY")]
    prefix: Option<PathBuf>,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum By {
    /// From NRI's plugin directory
    Containerd,
    /// By a systemd unit
    Systemd,
}

impl From<By> for LaunchedBy {
    fn from(by: By) -> Self {
        match by {
            By::Containerd => Self::Containerd,
            By::Systemd => Self::Systemd,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Config(error) => Self::Config(error),
            Error::Program { .. } | Error::ProgramName(_) => Self::Usage(error.to_string()),
            error => Self::Other(error.into()),
        }
    }
}

/// Writes the missing files, and names the command that starts the plugin.
pub(super) fn install(global: &Global, arguments: InstallArguments) -> Result<Exit, Failure> {
    let by = arguments.launched_by.into();
    let root = Root(arguments.location.prefix);
    let program = program(&root, arguments.program)?;
    let install = Install {
        root: root.clone(),
        program,
        config: global.config.as_deref(),
    };
    run(&install.plan(by)?)?;
    match (by, &root.0) {
        (LaunchedBy::Systemd, None) => {
            super::print("next: systemctl daemon-reload && systemctl enable --now nri-unpack")?;
        }
        (LaunchedBy::Systemd, Some(root)) => {
            super::print(&format!(
                "next: systemctl --root={} enable nri-unpack",
                root.display()
            ))?;
        }
        (LaunchedBy::Containerd, None) => {
            // The plan has read it without an error.
            let config = Config::load(global.config.as_deref()).unwrap_or_default();
            let command = doctor::restart(config.containerd.config.as_ref());
            super::print(&format!("next: {command}"))?;
        }
        // The containerd of that root finds the plugin at its start.
        (LaunchedBy::Containerd, Some(_)) => {}
    }
    Ok(Exit::Ready)
}

/// Removes what `install` has written, and names the command that ends the plugin. What the plugin has left in containerd
/// is the business of `purge`.
pub(super) fn uninstall(global: &Global, arguments: UninstallArguments) -> Result<Exit, Failure> {
    let root = Root(arguments.location.prefix);
    let config = match &global.config {
        Some(path) => Config::load(Some(path))?,
        // If the file has an error, the directories of the default configuration are used.
        None => Config::load(None).unwrap_or_default(),
    };
    let steps = install::removal(&root, &config)?;
    let launchers = install::launchers(&root, &steps);
    run(&steps)?;
    if !steps.iter().any(Step::is_change) {
        super::print("nothing to remove")?;
    }
    let end = |launcher| end(launcher, &config);
    let commands: Vec<_> = launchers.into_iter().map(end).collect();
    if root.0.is_none() && !commands.is_empty() {
        super::print(&format!("next: {}", commands.join(" && ")))?;
        super::print(
            "then: nri-unpack purge removes what the plugin has left in containerd (--dry-run lists it)",
        )?;
    }
    Ok(Exit::Ready)
}

/// Returns the command that ends a plugin of this launcher.
fn end(launcher: LaunchedBy, config: &Config) -> &'static str {
    match launcher {
        LaunchedBy::Systemd => "systemctl daemon-reload && systemctl stop nri-unpack",
        LaunchedBy::Containerd => doctor::restart(config.containerd.config.as_ref()),
    }
}

fn run(steps: &[Step]) -> Result<(), Failure> {
    for step in steps {
        super::print(&step.run()?)?;
    }
    Ok(())
}

/// Returns the program that the node starts. It must exist, unless --prefix names the root of an image.
fn program(root: &Root, named: Option<PathBuf>) -> Result<PathBuf, Failure> {
    let Some(named) = named else {
        let this = std::env::current_exe()
            .context("cannot find the path of this program; name it with --program")?;
        return Ok(root.inside(&this));
    };
    if root.0.is_none() && !is_program(&named) {
        return Err(Failure::Usage(format!(
            "{} is not an executable file: name an existing program with --program",
            named.display()
        )));
    }
    if named.is_absolute() {
        return Ok(named);
    }
    Err(Failure::Usage(format!(
        "{} is not an absolute path: name the program with an absolute path (--program)",
        named.display()
    )))
}

fn is_program(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;
    path.metadata()
        .is_ok_and(|it| it.is_file() && it.permissions().mode() & 0o111 != 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plugin_of_containerd_ends_with_the_service_of_the_distribution() {
        let k3s = "/var/lib/rancher/k3s/agent/etc/containerd/config.toml";
        for (path, command) in [
            (
                "/etc/containerd/config.toml",
                "systemctl restart containerd",
            ),
            (k3s, "systemctl try-restart 'k3s*.service'"),
        ] {
            let text = format!("[containerd]\nconfig = {path:?}");
            let config = Config::from_toml(&text, "config.toml").unwrap();
            assert_eq!(end(LaunchedBy::Containerd, &config), command);
        }
    }
}
