//! The volume that nydus-snapshotter puts into a mount's options for the Kata runtime: what the guest is to pull.

use anyhow::{Context, Result};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use crate::mounts::Mount;
use crate::store::Labels;

/// Its mount option; the value is JSON in base64.
const OPTION: &str = "io.katacontainers.volume=";

/// The volume type of an image that the guest pulls.
pub const GUEST_PULL: &str = "image_guest_pull";

/// A volume for the Kata runtime.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KataVolume {
    /// [`GUEST_PULL`] for all that is made in proxy mode.
    pub volume_type: String,
    /// What of the top layer's labels the guest gets. With 0.13.4 that is its digest and the mark of proxy mode: the
    /// image's reference reaches the guest by the container's annotations, not from here.
    pub labels: Labels,
}

impl Mount {
    /// The volume in this mount's options, if there is one.
    ///
    /// # Errors
    /// If there is one that cannot be read.
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
    fn a_volume_is_read() {
        let json = r#"{"volume_type": "image_guest_pull", "options": ["k=v"], "image_pull": {"metadata": {"k": "v"}}}"#;
        let volume = mount(json).kata_volume().unwrap().unwrap();
        assert_eq!(volume.volume_type, GUEST_PULL);
        assert_eq!(
            volume.labels,
            Labels::from([("k".to_owned(), "v".to_owned())])
        );
    }

    #[test]
    fn what_is_no_volume_is_none_and_a_broken_one_an_error() {
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
