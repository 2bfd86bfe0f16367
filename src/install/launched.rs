//! The plugin that containerd launches on this node: its path, its configuration, and misnamed files in NRI's
//! plugin directory.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nri::Identity;

use crate::handlers::FileConfig;

use super::paths::{Root, entries, file_name, is_ours};

/// This plugin in NRI's plugin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// The entry in the directory.
    pub plugin: PathBuf,
    /// The configuration file that NRI passes to it; `None` if it is missing or empty.
    pub config: Option<PathBuf>,
}

/// Returns the first entry of NRI's plugin directory by which containerd launches this plugin. `files` are
/// containerd's configuration files, which name the directory.
pub fn launched(files: &FileConfig) -> Option<Launched> {
    let nri = Root::default().nri_by(files);
    let plugins = entries(&nri.plugins).ok()?;
    let mut ours = plugins.into_iter().filter(|path| is_ours(path));
    ours.find_map(|plugin| {
        let identity: Identity = plugin.file_name()?.to_str()?.parse().ok()?;
        // NRI uses the first of the two that exists.
        let names = [identity.to_string(), identity.name.to_string()];
        let mut files = names
            .map(|name| nri.config.join(format!("{name}.conf")))
            .into_iter();
        let config = files.find(|file| file.exists());
        let config = config.filter(|file| !is_blank(file));
        Some(Launched { plugin, config })
    })
}

/// Returns the files in NRI's plugin directory with which containerd does not start. containerd launches each
/// executable file there, and fails if it cannot parse the name.
pub fn misnamed(files: &FileConfig) -> Vec<PathBuf> {
    let nri = Root::default().nri_by(files);
    let plugins = entries(&nri.plugins).unwrap_or_default();
    plugins
        .into_iter()
        .filter(|path| is_misnamed(path))
        .collect()
}

/// Whether containerd would launch a file and cannot parse its name.
pub(super) fn is_misnamed(path: &Path) -> bool {
    is_executable(path) && file_name(path).parse::<Identity>().is_err()
}

/// Whether containerd launches this file of NRI's plugin directory.
pub(crate) fn is_launched(path: &Path) -> bool {
    is_executable(path) && file_name(path).parse::<Identity>().is_ok()
}

fn is_executable(path: &Path) -> bool {
    let metadata = fs::symlink_metadata(path);
    metadata.is_ok_and(|it| !it.is_dir() && it.permissions().mode() & 0o111 != 0)
}

/// Whether a file has no text. The plugin then reads the default configuration file instead.
fn is_blank(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim().is_empty())
}
