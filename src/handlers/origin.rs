//! A value and its source.

use std::{fmt, path::PathBuf};

/// The source of a value.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// `[handlers]` of the plugin's configuration.
    Configuration,
    /// The CRI status of the running containerd.
    CriStatus,
    /// The image file system of the running containerd (CRI `ImageFsInfo`).
    ImageFileSystem,
    /// A file of containerd's configuration.
    File(PathBuf),
    /// containerd's default, if no source has the value.
    Default,
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Configuration => f.write_str("configuration"),
            Self::CriStatus => f.write_str("CRI status"),
            Self::ImageFileSystem => f.write_str("CRI image file system"),
            Self::File(path) => path.display().fmt(f),
            Self::Default => f.write_str("default"),
        }
    }
}

/// A value and its source.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// The value: a snapshotter, a runtime or an image.
    pub value: String,
    /// The source.
    pub origin: Origin,
}

impl Found {
    pub(super) fn new(value: impl Into<String>, origin: Origin) -> Self {
        Self {
            value: value.into(),
            origin,
        }
    }

    /// Returns `None` for an empty value, which containerd writes for a value that is not set.
    pub(super) fn some(value: Option<String>, origin: &Origin) -> Option<Self> {
        let value = value.filter(|value| !value.is_empty())?;
        Some(Self::new(value, origin.clone()))
    }
}
