//! The volume that nydus-snapshotter adds to a mount's options for the Kata runtime: it describes the guest
//! pull.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::mounts::Mount;
use crate::store::Labels;

/// The mount option of the volume; its value is JSON in base64.
const OPTION: &str = "io.katacontainers.volume=";

/// The volume type of an image that the guest pulls.
pub const GUEST_PULL: &str = "image_guest_pull";

/// A volume for the Kata runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KataVolume {
    /// [`GUEST_PULL`] for all snapshots in proxy mode.
    pub volume_type: String,
    /// The labels of the top layer that the guest gets. In 0.13.4 these are the layer digest and the proxy mode
    /// label. The guest gets the image reference from the container's annotations.
    pub labels: Labels,
}

impl Mount {
    /// Returns the volume in this mount's options, if there is one.
    ///
    /// # Errors
    /// If the volume cannot be parsed.
    pub fn kata_volume(&self) -> Result<Option<KataVolume>> {
        let encoded = self.options.iter().find_map(|o| o.strip_prefix(OPTION));
        let Some(encoded) = encoded else {
            return Ok(None);
        };
        let json = STANDARD.decode(encoded);
        let json = json.with_context(|| format!("a volume that is not base64: {encoded}"))?;
        KataVolume::parse(&json)
            .with_context(|| format!("in the volume {}", String::from_utf8_lossy(&json)))
            .map(Some)
    }
}

impl KataVolume {
    fn parse(json: &[u8]) -> Result<Self> {
        let volume: Value = serde_json::from_slice(json)?;
        let volume_type = volume["volume_type"].as_str();
        Ok(Self {
            volume_type: volume_type.context("no text under volume_type")?.to_owned(),
            labels: serde_json::from_value(volume["image_pull"]["metadata"].clone())
                .context("no labels under image_pull.metadata")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(volume: &str) -> Mount {
        let encoded = STANDARD.encode(volume);
        Mount {
            kind: "fuse.nydus-overlayfs".to_owned(),
            source: "overlay".to_owned(),
            options: vec!["lowerdir=/a:/b".to_owned(), format!("{OPTION}{encoded}")],
        }
    }

    #[test]
    fn a_volume_is_parsed() {
        let json = r#"{"volume_type": "image_guest_pull", "options": ["k=v"], "image_pull": {"metadata": {"k": "v"}}}"#;
        let volume = mount(json).kata_volume().unwrap().unwrap();
        assert_eq!(volume.volume_type, GUEST_PULL);
        assert_eq!(
            volume.labels,
            Labels::from([("k".to_owned(), "v".to_owned())])
        );
    }

    #[test]
    fn other_mounts_have_no_volume_and_broken_volumes_fail() {
        let mut plain = mount("");
        plain.options.pop();
        assert_eq!(plain.kata_volume().unwrap(), None);
        plain.options.push(format!("{OPTION}%"));
        let cases = [
            (plain, "not base64"),
            (mount("{"), "in the volume {"),
            (mount("{}"), "in the volume {}: no text"),
            (mount(r#"{"volume_type": "t"}"#), "no labels"),
        ];
        for (mount, message) in cases {
            let error = format!("{:#}", mount.kata_volume().unwrap_err());
            assert!(error.contains(message), "{error}");
        }
    }
}
