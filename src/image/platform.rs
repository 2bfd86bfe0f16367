//! This node's platform, and which manifest of an index is for it.
//!
//! The same operating system and architecture; of several variants of arm the highest that this
//! processor runs.

use std::fmt;

/// An operating system and processor, in the words of OCI (`linux`, `amd64`, `arm` with `v7`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// A platform in OCI's words, brought to its normal form: no variant for `amd64`, `v8` for
    /// `arm64`, `v7` for an `arm` without one.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let architecture = match architecture {
            "x86_64" | "x86-64" => "amd64",
            "aarch64" => "arm64",
            "i386" => "386",
            "armhf" => "arm",
            other => other,
        };
        let variant = match (architecture, variant) {
            ("amd64", "v1") | ("arm64", "8" | "v8" | "") => "",
            ("arm", "" | "7") => "v7",
            ("arm", "5") => "v5",
            ("arm", "6") => "v6",
            ("arm", "8") => "v8",
            (_, other) => other,
        };
        Self {
            os: os.to_owned(),
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// The node that this program was built for.
    pub fn of_this_node() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Self::new("linux", architecture, "")
    }

    /// How well an image for `other` runs here: the lower the better, `None` for not at all.
    pub fn rank(&self, other: &Platform) -> Option<u32> {
        if self.os != other.os || self.architecture != other.architecture {
            return None;
        }
        if self.variant == other.variant {
            return Some(0);
        }
        let (here, there) = (level(&self.variant), level(&other.variant));
        (there < here).then(|| here - there)
    }
}

/// `v7` is 7; no variant is the least.
fn level(variant: &str) -> u32 {
    let digits = variant.strip_prefix('v').unwrap_or_default();
    digits.parse().unwrap_or_default()
}

impl fmt::Display for Platform {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        if !self.variant.is_empty() {
            write!(f, "/{}", self.variant)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ranks_follow_containerd() {
        let arm7 = Platform::new("linux", "arm", "");
        let amd64 = Platform::new("linux", "x86_64", "");
        for (here, other, rank) in [
            (&amd64, ("linux", "amd64", ""), Some(0)),
            (&amd64, ("linux", "amd64", "v1"), Some(0)),
            (&amd64, ("linux", "amd64", "v3"), None),
            (&amd64, ("windows", "amd64", ""), None),
            (&amd64, ("unknown", "unknown", ""), None),
            (&amd64, ("linux", "arm64", ""), None),
            (&arm7, ("linux", "arm", "v7"), Some(0)),
            (&arm7, ("linux", "arm", "v6"), Some(1)),
            (&arm7, ("linux", "arm", "v8"), None),
            (
                &Platform::new("linux", "arm64", ""),
                ("linux", "arm64", "v8"),
                Some(0),
            ),
        ] {
            let (os, architecture, variant) = other;
            let other = Platform::new(os, architecture, variant);
            assert_eq!(here.rank(&other), rank, "{other} on {here}");
        }
        assert_eq!(arm7.to_string(), "linux/arm/v7");
    }
}
