//! The configuration: TOML text in, a checked [`Config`] or one precise error out.
//!
//! Every value is checked while it is parsed, so whoever holds a `Config` has nothing left to
//! check. This module does not know containerd or images, and of NRI only what a plugin's name and
//! index may be; it reads one file and nothing else.

mod error;
mod labels;
mod live;
mod names;
mod paths;
mod patterns;
mod policy;
#[cfg(test)]
mod reference;
mod sections;
mod template;
#[cfg(test)]
mod tests;
mod units;

use std::{io, path::Path};

pub(crate) use error::line_and_column;
pub use error::{ConfigError, InvalidValue};
pub use labels::ExtraLabels;
pub use live::Live;
pub use names::{Name, Namespace};
pub use paths::{AbsolutePath, Listen, SocketPath};
pub use patterns::ImagePattern;
pub use policy::{
    Eager, ImageLabels, Labels, Profile, SnapshotterPolicy, Snapshotters, Unlabelled,
};
pub use sections::{
    Config, Containerd, Hooks, Level, Log, LogFormat, Metrics, MissingContent, Nri, OnUnready,
    Pull, Unpack,
};
pub use template::{Template, Variable};
pub use units::{HookWait, Interval, Percent, Workers};

impl Config {
    /// Where the configuration is looked for when nobody names a file. It may be missing.
    pub const DEFAULT_PATH: &str = "/etc/nri-unpack/config.toml";

    /// The commented file that the project ships: every key with its default value.
    pub fn default_toml() -> &'static str {
        include_str!("../conf/nri-unpack.toml")
    }

    /// Reads `explicit`, or [`Config::DEFAULT_PATH`] when no file was named.
    ///
    /// A file that was named has to exist; without one at the default path, the defaults hold.
    pub fn load(explicit: Option<&Path>) -> Result<Self, ConfigError> {
        match explicit {
            Some(path) => Self::read(path),
            None => Self::read_if_there(Path::new(Self::DEFAULT_PATH)),
        }
    }

    fn read(path: &Path) -> Result<Self, ConfigError> {
        let unreadable = |reason| ConfigError::Unreadable {
            path: path.to_owned(),
            reason,
        };
        let text = std::fs::read_to_string(path).map_err(unreadable)?;
        Self::from_toml(&text, &path.display().to_string())
    }

    fn read_if_there(path: &Path) -> Result<Self, ConfigError> {
        match Self::read(path) {
            Err(ConfigError::Unreadable { reason, .. })
                if reason.kind() == io::ErrorKind::NotFound =>
            {
                Ok(Self::default())
            }
            other => other,
        }
    }

    /// Parses `text`; `source` is what error messages call it: a path, or where else the text came
    /// from.
    pub fn from_toml(text: &str, source: &str) -> Result<Self, ConfigError> {
        let document = toml::Deserializer::parse(text)
            .map_err(|error| ConfigError::malformed(source, text, &error))?;
        serde_path_to_error::deserialize(document).map_err(|error| {
            ConfigError::invalid(source, text, error.inner(), error.path().to_string())
        })
    }

    /// What is wanted of this snapshotter: its own table's word, or that of
    /// `[snapshotters.default]`.
    pub fn snapshotter(&self, name: &str) -> &SnapshotterPolicy {
        self.snapshotters.policy(name)
    }
}
