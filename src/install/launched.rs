//! The plugin that containerd launches on this node: where it is, where its configuration is, and what else
//! containerd would find beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nri::Identity;

use crate::handlers::FileConfig;

use super::places::{Root, entries, is_ours};

/// A plugin of ours in NRI's plugin directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Launched {
    /// Its entry in the directory.
    pub plugin: PathBuf,
    /// The file that NRI hands it; `None` where there is none, or nothing is in it.
    pub config: Option<PathBuf>,
}

/// The first of ours that containerd launches, by containerd's own configuration. `files` are those of
/// containerd.
pub fn launched(files: &FileConfig) -> Option<Launched> {
    let nri = Root::default().nri_by(files);
    let plugins = entries(&nri.plugins).ok()?;
    let mut ours = plugins.into_iter().filter(|path| is_ours(path));
    ours.find_map(|plugin| {
        let identity: Identity = plugin.file_name()?.to_str()?.parse().ok()?;
        // NRI takes the first of the two that is there.
        let names = [identity.to_string(), identity.name.to_string()];
        let mut files = names
            .map(|name| nri.config.join(format!("{name}.conf")))
            .into_iter();
        let config = files.find(|file| file.exists());
        let config = config.filter(|file| !is_blank(file));
        Some(Launched { plugin, config })
    })
}

/// The files in NRI's plugin directory with which containerd does not start: it launches each that can be
/// executed, and takes its name apart first.
pub fn misnamed(files: &FileConfig) -> Vec<PathBuf> {
    let nri = Root::default().nri_by(files);
    let plugins = entries(&nri.plugins).unwrap_or_default();
    plugins
        .into_iter()
        .filter(|path| is_misnamed(path))
        .collect()
}

/// Whether containerd would launch it, and cannot.
pub(super) fn is_misnamed(path: &Path) -> bool {
    let Ok(metadata) = fs::symlink_metadata(path) else {
        return false;
    };
    let is_executable = !metadata.is_dir() && metadata.permissions().mode() & 0o111 != 0;
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    is_executable && name.parse::<Identity>().is_err()
}

/// The plugin then reads what one that runs by itself reads.
fn is_blank(file: &Path) -> bool {
    fs::read_to_string(file).is_ok_and(|text| text.trim().is_empty())
}
