//! One file of containerd's configuration: its text in, what it says about runtimes out. No I/O.
//!
//! The settings moved with version 3 from one plugin's section to two others. Version 4 moved
//! nothing that is read here.

use std::{collections::BTreeMap, path::Path};

use serde::{Deserialize, de::IgnoredAny};

use super::source::{Found, Origin, Reported};

/// The version whose `io.containerd.grpc.v1.cri` section holds everything. Later versions ignore
/// what that section says about runtimes.
const VERSION_OF_ONE_SECTION: u32 = 2;

/// One file, parsed.
#[derive(Debug, Deserialize)]
pub(super) struct Document {
    /// The version of its format, where it states one.
    pub(super) version: Option<u32>,
    /// The files that it imports, as written.
    #[serde(default)]
    pub(super) imports: Vec<String>,
    #[serde(default)]
    plugins: Plugins,
}

impl Document {
    pub(super) fn parse(text: &str) -> Result<Self, toml::de::Error> {
        toml::from_str(text)
    }

    /// Whether a file of this version says something about runtimes in a form that is not read:
    /// before version 2, where plugins went by other names.
    pub(super) fn is_too_old(&self, version: u32) -> bool {
        version < VERSION_OF_ONE_SECTION
            && (self.plugins.version_1.is_some() || self.plugins.cri.is_some())
    }

    /// What the file, read as one of `version`, says.
    ///
    /// Where a file of version 2 has the sections of version 3 too, containerd 2 takes the images'
    /// settings from the old section and the runtimes' from the new one.
    pub(super) fn reported(self, version: u32, path: &Path) -> Reported {
        let Plugins {
            cri,
            runtime,
            images,
            ..
        } = self.plugins;
        let cri = cri
            .filter(|_| version == VERSION_OF_ONE_SECTION)
            .unwrap_or_default();
        let (new, old) = (runtime.containerd, cri.containerd);

        let origin = Origin::File(path.to_owned());
        let found = |value| Found::some(value, &origin);
        let runtimes = new.runtimes.or(old.runtimes).map(|runtimes| {
            let found = |(name, runtime): (_, Snapshotter)| (name, found(runtime.snapshotter));
            runtimes.into_iter().map(found).collect()
        });
        let pulls = images.runtime_platforms.into_iter();
        Reported {
            default_snapshotter: found(old.snapshotter).or_else(|| found(images.snapshotter)),
            default_runtime: found(new.default_runtime_name)
                .or_else(|| found(old.default_runtime_name)),
            sandbox_image: found(cri.sandbox_image).or_else(|| found(images.pinned_images.sandbox)),
            runtimes,
            pulls: pulls
                .filter_map(|(name, pull)| Some((name, found(pull.snapshotter)?)))
                .collect(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
struct Plugins {
    #[serde(rename = "cri")]
    version_1: Option<IgnoredAny>,
    #[serde(rename = "io.containerd.grpc.v1.cri")]
    cri: Option<Cri>,
    #[serde(default, rename = "io.containerd.cri.v1.runtime")]
    runtime: Runtime,
    #[serde(default, rename = "io.containerd.cri.v1.images")]
    images: Images,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Cri {
    containerd: Containerd,
    sandbox_image: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runtime {
    containerd: Containerd,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Containerd {
    snapshotter: Option<String>,
    default_runtime_name: Option<String>,
    runtimes: Option<BTreeMap<String, Snapshotter>>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Images {
    snapshotter: Option<String>,
    pinned_images: PinnedImages,
    runtime_platforms: BTreeMap<String, Snapshotter>,
}

#[derive(Debug, Default, Deserialize)]
struct PinnedImages {
    sandbox: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Snapshotter {
    snapshotter: Option<String>,
}
