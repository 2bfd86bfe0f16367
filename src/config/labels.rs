//! The labels that an operator adds to snapshots.

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{InvalidValue, names::LabelKey, template::Template};

/// containerd rejects a label whose key and value together are longer than this.
const LABEL_MAX: usize = 4096;

/// Labels for every layer's snapshot. Only those under `containerd.io/snapshot/` reach the
/// snapshotter itself; containerd's metadata store keeps all.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(try_from = "BTreeMap<LabelKey, Template>")]
pub struct ExtraLabels(BTreeMap<LabelKey, Template>);

impl ExtraLabels {
    /// Key and value of each label, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Template)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

impl TryFrom<BTreeMap<LabelKey, Template>> for ExtraLabels {
    type Error = InvalidValue;

    /// What is empty, or too long whatever its variables stand for, is refused here; what becomes too
    /// long with an image's digests in it is found out then.
    fn try_from(labels: BTreeMap<LabelKey, Template>) -> Result<Self, InvalidValue> {
        let too_long = |(key, value): &(&LabelKey, &Template)| {
            key.as_str().len() + value.least_len() > LABEL_MAX
        };
        if let Some((key, _)) = labels.iter().find(|(_, value)| value.is_empty()) {
            return Err(InvalidValue::new(format!(
                "the label \"{}\" is empty, and containerd keeps no such label: give it a value, or \
                 leave it out",
                key.as_str()
            )));
        }
        match labels.iter().find(too_long) {
            None => Ok(Self(labels)),
            Some((key, _)) => Err(InvalidValue::new(format!(
                "the label \"{key}\" is too long for containerd: \
                 use at most {LABEL_MAX} bytes, key included"
            ))),
        }
    }
}
