//! This node's platform, and the platforms whose images it can run.
//!
//! The rules are those of containerd's default matcher (its module `platforms`), so that both choose
//! the same manifest of an index.

use std::fmt;

/// The lowest and the highest version of 32-bit arm that containerd considers.
const ARM_VERSIONS: std::ops::RangeInclusive<u32> = 5..=8;

/// An operating system and a processor, as OCI names them (`linux`, `amd64`, `arm` with `v7`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Platform {
    os: String,
    architecture: String,
    variant: String,
}

impl Platform {
    /// Returns a platform in its normal form: no variant for plain `amd64` and `arm64`, `v7` for `arm`
    /// without a variant, and `linux` for an empty operating system.
    pub fn new(os: &str, architecture: &str, variant: &str) -> Self {
        let [os, architecture, variant] = [os, architecture, variant].map(str::to_ascii_lowercase);
        let (architecture, variant) = match (architecture.as_str(), variant.as_str()) {
            ("i386", _) => ("386", ""),
            ("x86_64" | "x86-64" | "amd64", "v1" | "") => ("amd64", ""),
            ("x86_64" | "x86-64", variant) => ("amd64", variant),
            ("aarch64" | "arm64", "8" | "v8" | "v8.0" | "") => ("arm64", ""),
            ("aarch64" | "arm64", "9" | "9.0" | "v9.0") => ("arm64", "v9"),
            ("aarch64", variant) => ("arm64", variant),
            ("armhf", _) | ("arm", "" | "7") => ("arm", "v7"),
            ("armel", _) | ("arm", "6") => ("arm", "v6"),
            ("arm", "5") => ("arm", "v5"),
            ("arm", "8") => ("arm", "v8"),
            other => other,
        };
        Self {
            os: if os.is_empty() { "linux".into() } else { os },
            architecture: architecture.to_owned(),
            variant: variant.to_owned(),
        }
    }

    /// Returns the platform of this node. containerd detects the variant of arm, but not the level of
    /// amd64, so no node runs an image that is only for `amd64/v2`.
    pub fn of_this_node() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            "powerpc64" => "ppc64",
            "loongarch64" => "loong64",
            other => other,
        };
        let variant = match architecture {
            // If the file cannot be read, the variant is the default one.
            "arm" => arm_variant(&std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()),
            _ => "",
        };
        Self::new("linux", architecture, variant)
    }

    /// Returns the rank of an image for `other` on this platform, 0 for the best; `None` if it does not run.
    pub fn rank(&self, other: &Platform) -> Option<usize> {
        self.runs().iter().position(|platform| platform == other)
    }

    /// Returns the platforms whose images run here, best first.
    fn runs(&self) -> Vec<Platform> {
        let other = |architecture, variant: &str| Self::new(&self.os, architecture, variant);
        let arm_up_to = |highest: u32| {
            let versions = (*ARM_VERSIONS.start()..=highest).rev();
            versions.map(|version| other("arm", &format!("v{version}")))
        };
        let mut runs = vec![self.clone()];
        match self.architecture.as_str() {
            "amd64" => runs.push(other("386", "")),
            "arm64" => runs.extend(arm_up_to(*ARM_VERSIONS.end())),
            "arm" => {
                let version = self.variant.strip_prefix('v').and_then(|v| v.parse().ok());
                let below = version.and_then(|version: u32| version.checked_sub(1));
                runs.extend(below.into_iter().flat_map(arm_up_to));
            }
            _ => {}
        }
        runs
    }
}

/// Returns the version of a 32-bit arm processor from `/proc/cpuinfo`; `""` if the file does not have it.
fn arm_variant(cpuinfo: &str) -> &'static str {
    let value = |key: &str| {
        let mut pairs = cpuinfo.lines().filter_map(|line| line.split_once(':'));
        let found = pairs.find(|(name, _)| name.trim().eq_ignore_ascii_case(key));
        found.map(|(_, value)| value.trim().to_ascii_lowercase())
    };
    let architecture = value("cpu architecture").unwrap_or_default();
    // The kernel of the first Raspberry Pis reports version 7 for a processor of version 6.
    let is_armv6 = || value("model name").is_some_and(|m| m.starts_with("armv6-compatible"));
    match architecture.as_str() {
        "8" | "aarch64" => "v8",
        "7" if is_armv6() => "v6",
        "6" | "6tej" => "v6",
        "5" | "5t" | "5te" | "5tej" => "v5",
        "4" | "4t" => "v4",
        "3" => "v3",
        "" => "",
        // `7`, `7m`, and the names that a kernel gives to unknown processors.
        _ => "v7",
    }
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

    /// Parses a platform such as `linux/arm/v6`.
    fn platform(text: &str) -> Platform {
        let mut words = text.split('/');
        let mut next = || words.next().unwrap_or_default();
        Platform::new(next(), next(), next())
    }

    #[test]
    fn spellings_have_one_normal_form() {
        for (text, normal) in [
            ("linux/x86_64", "linux/amd64"),
            ("Linux/X86-64/V1", "linux/amd64"),
            ("/amd64", "linux/amd64"),
            ("linux/amd64/v3", "linux/amd64/v3"),
            ("linux/i386/x", "linux/386"),
            ("linux/aarch64", "linux/arm64"),
            ("linux/arm64/v8", "linux/arm64"),
            ("linux/arm64/8", "linux/arm64"),
            ("linux/arm64/v8.1", "linux/arm64/v8.1"),
            ("linux/arm64/9", "linux/arm64/v9"),
            ("linux/arm", "linux/arm/v7"),
            ("linux/armhf/v6", "linux/arm/v7"),
            ("linux/armel", "linux/arm/v6"),
            ("linux/arm/5", "linux/arm/v5"),
            ("linux/arm/v8", "linux/arm/v8"),
            ("linux/riscv64", "linux/riscv64"),
            ("unknown/unknown", "unknown/unknown"),
        ] {
            assert_eq!(platform(text).to_string(), normal, "{text}");
        }
    }

    #[test]
    fn the_platforms_that_run_are_those_of_containerd() {
        for (here, expected) in [
            ("linux/amd64", &["linux/amd64", "linux/386"][..]),
            ("linux/386", &["linux/386"]),
            (
                "linux/arm64",
                &[
                    "linux/arm64",
                    "linux/arm/v8",
                    "linux/arm/v7",
                    "linux/arm/v6",
                    "linux/arm/v5",
                ],
            ),
            (
                "linux/arm/v7",
                &["linux/arm/v7", "linux/arm/v6", "linux/arm/v5"],
            ),
            ("linux/arm/v5", &["linux/arm/v5"]),
            ("linux/arm/v4", &["linux/arm/v4"]),
            ("linux/ppc64le", &["linux/ppc64le"]),
        ] {
            let here = platform(here);
            let runs: Vec<_> = here.runs().iter().map(ToString::to_string).collect();
            assert_eq!(runs, expected, "{here}");
            for (rank, other) in expected.iter().enumerate() {
                assert_eq!(here.rank(&platform(other)), Some(rank), "{other} on {here}");
            }
            for other in [
                "windows/amd64",
                "unknown/unknown",
                "linux/s390x",
                "linux/amd64/v2",
                "linux/arm64/v9",
                "linux/",
            ] {
                assert_eq!(here.rank(&platform(other)), None, "{other} on {here}");
            }
        }
    }

    #[test]
    fn the_arm_variant_is_read_from_cpuinfo() {
        for (cpuinfo, variant) in [
            ("processor\t: 0\nCPU architecture: 7\n", "v7"),
            ("CPU architecture\t: 8\nCPU architecture\t: 7\n", "v8"),
            ("CPU architecture: AArch64\n", "v8"),
            (
                "model name\t: ARMv6-compatible processor rev 7 (v6l)\nCPU architecture: 7\n",
                "v6",
            ),
            (
                "model name\t: ARMv7 Processor rev 4 (v7l)\nCPU architecture: 7\n",
                "v7",
            ),
            ("CPU architecture: 5TEJ\n", "v5"),
            ("CPU architecture: ?(12)\n", "v7"),
            ("model name: QEMU\n", ""),
            ("", ""),
        ] {
            assert_eq!(arm_variant(cpuinfo), variant, "{cpuinfo}");
        }
    }
}
