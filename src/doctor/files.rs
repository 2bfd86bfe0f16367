//! Checks files: NRI's plugin directory, the configuration of a plugin that containerd launches, and containerd's
//! own configuration.

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

/// containerd also runs without a file, so a missing file at the default path is only a note.
fn no_file(file: &Path) -> Option<Finding> {
    let default = Config::default().containerd.config;
    let severity = match file == default.as_ref() {
        true => Severity::Note,
        false => Severity::Warning,
    };
    matches!(file.try_exists(), Ok(false)).then(|| {
        Finding::new(
            "containerd-config-missing",
            severity,
            format!("containerd's configuration {} does not exist", file.display()),
            "settings that containerd reports only in its files (labels of pulls, discarded layers, the pause image) are assumed to have their default values",
        )
        .advise("if containerd has a configuration, set containerd.config in the configuration of nri-unpack to its path (k3s: /var/lib/rancher/k3s/agent/etc/containerd/config.toml)")
    })
}

fn misnamed_plugin(path: &Path) -> Finding {
    Finding::new(
        "plugin-misnamed",
        Severity::Error,
        format!(
            "{} is executable, and its name is not NN-name, such as 10-nri-unpack",
            path.display()
        ),
        "containerd does not start while it is there: at its next restart the node is down",
    )
    .advise("before containerd is restarted, rename or remove it; a file that is not a link can also be made non-executable")
    // chmod on a link changes its target, which may be a program in use.
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
            "the plugin registers and does nothing: no image is made ready for a pod",
        )
        .advise("correct the file until the check finds no error, and restart containerd")
        .run(format!(
            "nri-unpack config --check {}",
            word(&file.display().to_string())
        ))
        .run("systemctl restart containerd"),
    )
}
