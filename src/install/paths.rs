//! The paths that `install` uses, and the check whether a file there belongs to this plugin.

use std::borrow::Cow;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::handlers::{FileConfig, NRI_TABLE};

use super::Error;

/// The configuration file if systemd starts the plugin.
pub(super) const CONFIG: &str = Config::DEFAULT_PATH;

/// The unit that `install` writes.
pub(crate) const UNIT: &str = "/etc/systemd/system/nri-unpack.service";

/// The link that `systemctl enable` makes.
pub(crate) const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/nri-unpack.service";

/// The unit of a package, before and after Debian merged `/usr`.
pub(crate) const PACKAGED: [&str; 2] = [
    "/usr/lib/systemd/system/nri-unpack.service",
    "/lib/systemd/system/nri-unpack.service",
];

/// NRI's plugin directory, unless containerd's configuration names another.
pub(crate) const PLUGINS: &str = "/opt/nri/plugins";

/// The directory of the plugins' configurations, unless containerd's configuration names another.
const PLUGIN_CONFIGS: &str = "/etc/nri/conf.d";

/// The name of the program. In NRI's directories an index precedes it.
const PROGRAM: &str = "nri-unpack";

/// The root directory below which all paths lie: of an image or a package, or `None` for the node itself.
#[derive(Clone, Debug, Default)]
pub struct Root(pub Option<PathBuf>);

/// NRI's directories.
#[derive(Debug)]
pub(super) struct Nri {
    pub(super) plugins: PathBuf,
    pub(super) config: PathBuf,
}

impl Root {
    /// Returns an absolute path of the node below the root.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match &self.0 {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// Returns a path as the node has it, with the root as `/`.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let below = self.0.as_ref().and_then(|root| {
            let root = fs::canonicalize(root).ok()?;
            Some(Path::new("/").join(path.strip_prefix(root).ok()?))
        });
        below.unwrap_or_else(|| path.to_owned())
    }

    /// Checks that no link leads from a path below the root out of the root, to the machine that this runs on.
    pub(super) fn check_holds(&self, path: &Path) -> Result<(), Error> {
        let Some(root) = self.0.as_ref().and_then(|root| fs::canonicalize(root).ok()) else {
            return Ok(());
        };
        let is_there = |directory: &&Path| fs::symlink_metadata(directory).is_ok();
        let Some(directory) = path.ancestors().skip(1).find(is_there) else {
            return Ok(());
        };
        match fs::canonicalize(directory) {
            Ok(real) if real.starts_with(&root) => Ok(()),
            Ok(_) => Err(Error::in_the_way(
                directory.to_owned(),
                "a link leads from there out of --prefix",
                "replace it with a relative link or a directory",
            )),
            Err(e) => Err(Error::io(directory, e)),
        }
    }

    /// Returns NRI's directories by containerd's configuration. With another root that is not known, and the usual
    /// directories are used.
    pub(super) fn nri(&self, config: &Config) -> Nri {
        let files = match self.0 {
            Some(_) => FileConfig::default(),
            None => FileConfig::read(config.containerd.config.as_ref(), None),
        };
        self.nri_by(&files)
    }

    /// Returns NRI's directories by these files of containerd.
    pub(super) fn nri_by(&self, files: &FileConfig) -> Nri {
        let directory = |key: &str, default: &str| {
            let configured = files.settings().find(&["plugins", NRI_TABLE, key]);
            let configured = configured.and_then(|(path, _)| path.as_str());
            self.at(configured.unwrap_or(default))
        };
        Nri {
            plugins: directory("plugin_path", PLUGINS),
            config: directory("plugin_config_path", PLUGIN_CONFIGS),
        }
    }
}

/// Returns the paths in a directory, sorted; none if it does not exist.
pub(super) fn entries(directory: &Path) -> Result<Vec<PathBuf>, Error> {
    let read = || {
        let paths = fs::read_dir(directory)?.map(|entry| Ok(entry?.path()));
        paths.collect::<io::Result<Vec<_>>>()
    };
    match read() {
        Ok(mut paths) => {
            paths.sort();
            Ok(paths)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(vec![]),
        Err(e) => Err(Error::io(directory, e)),
    }
}

/// Whether a file name is `nri-unpack`, or has the form that NRI requires, such as `10-nri-unpack`.
pub fn is_named(name: &str) -> bool {
    suffix(name) == Some("")
}

/// Whether a file name is that of this program in some version, such as `nri-unpack-0.2.0`, or `nri-unpack.old` after an
/// update.
pub(crate) fn is_program(name: &str) -> bool {
    suffix(name).is_some_and(|suffix| suffix.is_empty() || suffix.starts_with(['.', '-']))
}

/// Returns what follows the name of the program, which an index may precede.
fn suffix(name: &str) -> Option<&str> {
    let named = match name.split_once('-') {
        Some((index, rest)) if index.len() == 2 && index.bytes().all(|b| b.is_ascii_digit()) => {
            rest
        }
        _ => name,
    };
    named.strip_prefix(PROGRAM)
}

/// Whether an entry of the plugin directory starts this plugin, by its name or the name of its target.
pub(super) fn is_ours(path: &Path) -> bool {
    is_named(&file_name(path)) || is_our_link(path)
}

/// Whether a path is a link to this program, as `install` makes it.
pub(super) fn is_our_link(path: &Path) -> bool {
    fs::read_link(path).is_ok_and(|target| is_program(&file_name(&target)))
}

pub(super) fn file_name(path: &Path) -> Cow<'_, str> {
    path.file_name().unwrap_or_default().to_string_lossy()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_is_known_by_its_name() {
        for (name, named, program) in [
            ("nri-unpack", true, true),
            ("10-nri-unpack", true, true),
            ("nri-unpack.old", false, true),
            ("nri-unpack-0.2.0", false, true),
            ("nri-unpacker", false, false),
            ("100-nri-unpack", false, false),
            ("not-nri-unpack", false, false),
            ("", false, false),
        ] {
            let found = (is_named(name), is_program(name));
            assert_eq!(found, (named, program), "{name}");
        }
    }
}
