//! The configuration of a command: the one that the plugin of this node has, unless a file is named.

use std::path::{Path, PathBuf};

use crate::config::{Config, ConfigError};
use crate::handlers::FileConfig;
use crate::install;

/// A configuration, and where it is from.
pub(super) struct Configured {
    pub(super) config: Config,
    /// `None` where there is no file, and the defaults hold.
    pub(super) file: Option<PathBuf>,
    /// It is that of a plugin that containerd launches.
    pub(super) is_launched: bool,
}

impl Configured {
    /// That of the file that is named, else of the plugin that containerd launches, else of the file in its
    /// usual place.
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

    /// That of the file in its usual place.
    pub(super) fn find_default() -> Result<Self, ConfigError> {
        let usual = Path::new(Config::DEFAULT_PATH);
        Ok(Self {
            config: Config::load(None)?,
            file: usual.exists().then(|| usual.to_owned()),
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

    /// The configuration. That of a plugin that containerd launches is named on standard error: it decides what
    /// the command is about, and is not in the usual place.
    pub(super) fn said(self) -> Config {
        if let Some(file) = self.file.filter(|_| self.is_launched) {
            super::complain(&format!("configuration {}", file.display()));
        }
        self.config
    }
}

/// The configuration of the plugin that containerd launches, where it has one.
fn launched() -> Option<PathBuf> {
    // Where containerd's own configuration is, if that is said where the plugin runs by itself.
    let config = Config::load(None).unwrap_or_default();
    let files = FileConfig::read(config.containerd.config.as_ref(), None);
    install::launched(&files)?.config
}
