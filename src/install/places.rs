//! Where everything is, and what there is ours.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::handlers::{FileConfig, NRI_TABLE};

use super::Error;

/// The configuration where systemd starts the plugin.
pub(super) const CONFIG: &str = Config::DEFAULT_PATH;

/// The unit that `install` writes.
pub(crate) const UNIT: &str = "/etc/systemd/system/nri-unpack.service";

/// Where `systemctl enable` links a unit.
pub(crate) const ENABLED: &str = "/etc/systemd/system/multi-user.target.wants/nri-unpack.service";

/// The unit of a package, before and after Debian merged `/usr`.
pub(crate) const PACKAGED: [&str; 2] = [
    "/usr/lib/systemd/system/nri-unpack.service",
    "/lib/systemd/system/nri-unpack.service",
];

/// Where containerd looks for plugins to launch, if its configuration says nothing else.
pub(crate) const PLUGINS: &str = "/opt/nri/plugins";

/// Where it looks for their configurations.
const PLUGIN_CONFIGS: &str = "/etc/nri/conf.d";

/// What the program is called; in NRI's directories with its index before it.
const PROGRAM: &str = "nri-unpack";

/// The directory below which everything lies: that of an image or a package, or the node's own.
#[derive(Clone, Debug, Default)]
pub struct Root(pub Option<PathBuf>);

/// NRI's directories.
#[derive(Debug)]
pub(super) struct Nri {
    pub(super) plugins: PathBuf,
    pub(super) config: PathBuf,
}

impl Root {
    /// An absolute path of the node.
    pub(super) fn at(&self, path: impl AsRef<Path>) -> PathBuf {
        let path = path.as_ref();
        match &self.0 {
            Some(root) => root.join(path.strip_prefix("/").unwrap_or(path)),
            None => path.to_owned(),
        }
    }

    /// A path as the node has it, where the root has become `/`.
    pub fn inside(&self, path: &Path) -> PathBuf {
        let below = self.0.as_ref().and_then(|root| {
            let root = fs::canonicalize(root).ok()?;
            Some(Path::new("/").join(path.strip_prefix(root).ok()?))
        });
        below.unwrap_or_else(|| path.to_owned())
    }

    /// What lies below it lies there in truth: a link in a tree may lead to the node that this runs on.
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
                "make it a relative one, or a directory",
            )),
            Err(e) => Err(Error::io(directory, e)),
        }
    }

    /// As the node's containerd has them. What another root will find is not known yet.
    pub(super) fn nri(&self, config: &Config) -> Nri {
        let files = match self.0 {
            Some(_) => FileConfig::default(),
            None => FileConfig::read(config.containerd.config.as_ref(), None),
        };
        self.nri_by(&files)
    }

    /// The same by these files of containerd's.
    pub(super) fn nri_by(&self, files: &FileConfig) -> Nri {
        let said = |key: &str, usual: &str| {
            let said = files.settings().find(&["plugins", NRI_TABLE, key]);
            let said = said.and_then(|(path, _)| path.as_str());
            self.at(said.unwrap_or(usual))
        };
        Nri {
            plugins: said("plugin_path", PLUGINS),
            config: said("plugin_config_path", PLUGIN_CONFIGS),
        }
    }
}

/// What is in a directory, in order; nothing where there is none.
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

/// `nri-unpack` or, as NRI wants it, `10-nri-unpack`.
pub fn is_named(name: &str) -> bool {
    match name.split_once('-') {
        Some((index, rest)) if index.len() == 2 && index.bytes().all(|b| b.is_ascii_digit()) => {
            rest == PROGRAM
        }
        _ => name == PROGRAM,
    }
}

/// Whether what is in the plugin directory starts this plugin, going by the names.
pub(super) fn is_ours(path: &Path) -> bool {
    let named = |path: &Path| is_named(&path.file_name().unwrap_or_default().to_string_lossy());
    named(path) || target(path).is_some_and(|target| named(&target))
}

/// Whether it is a link to this program, as `install` makes them.
pub(super) fn is_our_link(path: &Path) -> bool {
    let target = target(path);
    target.is_some_and(|target| target.file_name() == Some(OsStr::new(PROGRAM)))
}

fn target(path: &Path) -> Option<PathBuf> {
    fs::read_link(path).ok()
}
