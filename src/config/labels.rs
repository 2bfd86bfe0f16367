//! The labels that an operator adds to snapshots.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{InvalidValue, names::LabelKey};

/// containerd rejects a label whose key and value together are longer than this.
const LABEL_MAX: usize = 4096;

/// Labels for every layer's snapshot. Only those under `containerd.io/snapshot/` reach the
/// snapshotter itself; containerd's metadata store keeps all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(try_from = "BTreeMap<LabelKey, String>")]
pub struct ExtraLabels(BTreeMap<LabelKey, String>);

impl ExtraLabels {
    /// Key and value of each label, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_str()))
    }
}

impl TryFrom<BTreeMap<LabelKey, String>> for ExtraLabels {
    type Error = InvalidValue;

    fn try_from(labels: BTreeMap<LabelKey, String>) -> Result<Self, InvalidValue> {
        let too_long =
            |(key, value): &(&LabelKey, &String)| key.as_str().len() + value.len() > LABEL_MAX;
        match labels.iter().find(too_long) {
            None => Ok(Self(labels)),
            Some((key, _)) => Err(InvalidValue::new(format!(
                "the label \"{key}\" is too long for containerd: \
                 use at most {LABEL_MAX} bytes, key included"
            ))),
        }
    }
}
