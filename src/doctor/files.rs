//! Whether the files are as containerd and the plugin need them: NRI's plugin directory, the configuration of a
//! plugin that containerd launches, and containerd's own.

use std::path::Path;

use crate::config::Config;
use crate::install;

use super::finding::{Finding, Severity, word};
use super::inventory::Inventory;

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let mut findings = Vec::new();
    findings.extend(no_file(inventory.config().containerd.config.as_ref()));
    let misnamed = install::misnamed(&inventory.files);
    findings.extend(misnamed.iter().map(|path| misnamed_plugin(path)));
    if let Some(file) = install::launched(&inventory.files).and_then(|launched| launched.config) {
        findings.extend(unusable(&file));
    }
    findings
}

/// containerd runs without a file as well, so the usual place may well be empty.
fn no_file(file: &Path) -> Option<Finding> {
    let usual = Config::default().containerd.config;
    let severity = match file == usual.as_ref() {
        true => Severity::Note,
        false => Severity::Warning,
    };
    matches!(file.try_exists(), Ok(false)).then(|| {
        Finding::new(
            "containerd-config-missing",
            severity,
            format!("containerd's configuration {} does not exist", file.display()),
            "what containerd tells only in its files (labels of pulls, discarded layers, the pause image) is taken to be its default",
        )
        .advise("if containerd has a configuration, say where: containerd.config in the configuration of nri-unpack (k3s: /var/lib/rancher/k3s/agent/etc/containerd/config.toml)")
    })
}

fn misnamed_plugin(path: &Path) -> Finding {
    Finding::new(
        "plugin-misnamed",
        Severity::Error,
        format!(
            "{} can be executed and is not called NN-name, such as 10-nri-unpack",
            path.display()
        ),
        "containerd does not start while it is there: at its next restart the node is down",
    )
    .advise("rename it or remove it, or take the right to execute a file that is no link; before containerd is restarted")
    // The mode of a link is that of its target, which may be a program in use.
    .run(match path.is_symlink() {
        true => format!("rm {}", word(&path.display().to_string())),
        false => format!("chmod a-x {}", word(&path.display().to_string())),
    })
}

fn unusable(file: &Path) -> Option<Finding> {
    let error = Config::load(Some(file)).err()?;
    Some(
        Finding::new(
            "plugin-config-wrong",
            Severity::Error,
            format!("the plugin that containerd launches cannot use its configuration: {error}"),
            "it is registered and does nothing: no image is made ready for a pod",
        )
        .advise("correct the file until the check finds no error, and restart containerd")
        .run(format!(
            "nri-unpack config --check {}",
            word(&file.display().to_string())
        ))
        .run("systemctl restart containerd"),
    )
}
