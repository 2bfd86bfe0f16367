//! A value, and the source that it was read from.

use std::{fmt, path::PathBuf};

/// Where a value was read.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// Our own configuration, `[handlers]`.
    Configuration,
    /// What the running containerd reports of itself.
    CriStatus,
    /// Where the running containerd keeps its images' file system (CRI `ImageFsInfo`).
    ImageFileSystem,
    /// This file of containerd's configuration.
    File(PathBuf),
    /// Nowhere: it is what containerd does when nothing is said.
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

/// A value, and where it was read.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Found {
    /// The value: a snapshotter, a runtime or an image.
    pub value: String,
    /// Where it was read.
    pub origin: Origin,
}

impl Found {
    pub(super) fn new(value: impl Into<String>, origin: Origin) -> Self {
        Self {
            value: value.into(),
            origin,
        }
    }

    /// An empty value, which is how containerd writes that nothing is set, is none.
    pub(super) fn some(value: Option<String>, origin: &Origin) -> Option<Self> {
        let value = value.filter(|value| !value.is_empty())?;
        Some(Self::new(value, origin.clone()))
    }
}
