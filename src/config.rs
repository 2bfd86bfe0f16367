//! The configuration: TOML text in, a checked [`Config`] or one precise error out.
//!
//! Every value is checked while it is parsed, so a `Config` is always valid. This module does not
//! know containerd or images. Of NRI it knows only the rules for a plugin's name and index. It reads
//! one file and nothing else.

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
pub use names::{Name, Namespace, NodeName, PodNamespace, TaintKey};
pub use paths::{AbsolutePath, Listen, SocketPath};
pub use patterns::ImagePattern;
pub use policy::{
    Eager, ImageLabels, Labels, Profile, SnapshotterPolicy, Snapshotters, Unlabelled,
};
pub use sections::{
    Config, Containerd, DuringPull, Hooks, Kubernetes, Level, Log, LogFormat, Metrics,
    MissingContent, Nri, OnUnready, Pull, Unpack, Watch,
};
pub use template::{Template, Variable};
pub(crate) use units::parse_duration;
pub use units::{HookWait, Interval, Percent, Workers};

impl Config {
    /// The configuration file that is read when no file is named. It may be missing.
    pub const DEFAULT_PATH: &str = "/etc/nri-unpack/config.toml";

    /// Returns the commented file that the project ships: every key with its default value.
    pub fn default_toml() -> &'static str {
        include_str!("../conf/nri-unpack.toml")
    }

    /// Reads `explicit`, or [`Config::DEFAULT_PATH`] when no file is named.
    ///
    /// A named file must exist. When the default path has no file, the defaults apply.
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

    /// Parses `text`. Error messages call it `source`: a path, or another origin of the text.
    pub fn from_toml(text: &str, source: &str) -> Result<Self, ConfigError> {
        let document = toml::Deserializer::parse(text)
            .map_err(|error| ConfigError::malformed(source, text, &error))?;
        serde_path_to_error::deserialize(document).map_err(|error| {
            ConfigError::invalid(source, text, error.inner(), error.path().to_string())
        })
    }

    /// Returns the policy of this snapshotter: its own table, or `[snapshotters.default]`.
    pub fn snapshotter(&self, name: &str) -> &SnapshotterPolicy {
        self.snapshotters.policy(name)
    }
}
