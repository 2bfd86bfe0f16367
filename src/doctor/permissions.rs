//! Checks the permissions of this process.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use crate::config::MissingContent;
use crate::unpack::{REBUILT_FROM, attributes_are_seen};

use super::finding::{Finding, Severity};
use super::inventory::Inventory;

pub(super) fn check(inventory: &Inventory) -> Vec<Finding> {
    let root = not_root().into_iter();
    root.chain(rebuild(inventory)).collect()
}

fn not_root() -> Option<Finding> {
    let user = fs::metadata("/proc/self").ok()?.uid();
    (user != 0).then(|| {
        Finding::new(
            "not-root",
            Severity::Warning,
            format!("this runs as user {user}"),
            "other plugins and containerd's files cannot be read, so findings may be missing",
        )
        .advise("run it as root")
        .run("sudo nri-unpack doctor")
    })
}

/// Checks that the directories of overlayfs, which layers are rebuilt from, can be read.
fn rebuild(inventory: &Inventory) -> Option<Finding> {
    let means = &inventory.config().unpack.missing_content;
    let source = inventory.seen()?.snapshotter(REBUILT_FROM)?;
    let root = source.exports.get("root")?;
    let rebuilds = means.contains(&MissingContent::Rebuild) && source.init_error.is_none();
    let why = unreadable(Path::new(root)).filter(|_| rebuilds)?;
    Some(
        Finding::new(
            "rebuild-unreadable",
            Severity::Warning,
            format!("the directories of overlayfs below {root} cannot be read: {why}"),
            "a layer whose blob is gone cannot be rebuilt from them: «content digest … not found»",
        )
        .advise("run as root; in a container, mount containerd's root directory of the host at the same path, and add DAC_READ_SEARCH and SYS_ADMIN to its capabilities"),
    )
}

/// Returns why layers below the root of [`REBUILT_FROM`] cannot be read; `None` if they can.
pub(super) fn unreadable(root: &Path) -> Option<String> {
    match fs::read_dir(root) {
        Err(e) => Some(e.to_string()),
        Ok(_) if !attributes_are_seen() => {
            Some("the kernel hides overlayfs' own attributes from this process".to_owned())
        }
        Ok(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_directory_is_unreadable() {
        assert!(unreadable(Path::new("/nowhere/overlayfs")).is_some());
        assert!(unreadable(Path::new("/")).is_none());
    }
}
