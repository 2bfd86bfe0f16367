//! The configuration of a command: the named file, or else the configuration that the plugin of this node uses.

use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError};
use crate::handlers::FileConfig;
use crate::install;

/// A configuration and its origin.
pub(super) struct Configured {
    pub(super) config: Config,
    /// `None` if there is no file, and the defaults apply.
    pub(super) file: Option<PathBuf>,
    /// Whether it is the configuration of a plugin that containerd launches.
    pub(super) is_launched: bool,
}

impl Configured {
    /// Reads the named file; else the file of the plugin that containerd launches; else the file at the default
    /// path.
    pub(super) fn find(named: Option<&Path>) -> Result<Self, ConfigError> {
        match named {
            Some(file) => Self::of(file),
            None => match launched() {
                Some(file) => Ok(Self {
                    is_launched: true,
                    ..Self::of(&file)?
                }),
                None => Self::find_default(),
            },
        }
    }

    /// Reads the file at the default path.
    pub(super) fn find_default() -> Result<Self, ConfigError> {
        let default = Path::new(Config::DEFAULT_PATH);
        Ok(Self {
            config: Config::load(None)?,
            file: default.exists().then(|| default.to_owned()),
            is_launched: false,
        })
    }

    fn of(file: &Path) -> Result<Self, ConfigError> {
        Ok(Self {
            config: Config::load(Some(file))?,
            file: Some(file.to_owned()),
            is_launched: false,
        })
    }

    /// Returns the configuration. Names the file on standard error if it belongs to a plugin that containerd
    /// launches, since it is not at the default path.
    pub(super) fn announced(self) -> Config {
        if let Some(file) = self.file.filter(|_| self.is_launched) {
            super::complain(&format!("configuration {}", file.display()));
        }
        self.config
    }
}

/// Returns the configuration file of the plugin that containerd launches, if it has one.
fn launched() -> Option<PathBuf> {
    // The default configuration file may name the path of containerd's own configuration.
    let config = Config::load(None).unwrap_or_default();
    let files = FileConfig::read(config.containerd.config.as_ref(), None);
    install::launched(&files)?.config
}
