//! The labels that the configuration adds to snapshots (`extra_labels`).

use std::collections::BTreeMap;

use serde::Deserialize;

use super::{InvalidValue, names::LabelKey, template::Template};

/// containerd rejects a label whose key and value together are longer than this.
const LABEL_MAX: usize = 4096;

/// Labels that every layer's snapshot gets. containerd's metadata store keeps all of them. Only those whose
/// keys begin with `containerd.io/snapshot/` reach the snapshotter itself.
#[derive(Clone, Debug, Default, Deserialize, PartialEq)]
#[serde(try_from = "BTreeMap<LabelKey, Template>")]
pub struct ExtraLabels(BTreeMap<LabelKey, Template>);

impl ExtraLabels {
    /// Iterates over key and value of each label, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Template)> {
        self.0.iter().map(|(key, value)| (key.as_str(), value))
    }
}

impl TryFrom<BTreeMap<LabelKey, Template>> for ExtraLabels {
    type Error = InvalidValue;

    /// Rejects a label that is empty, or too long even with empty variables. A label that an image's
    /// digests make too long is found when the variables are filled in.
    fn try_from(labels: BTreeMap<LabelKey, Template>) -> Result<Self, InvalidValue> {
        let too_long = |(key, value): &(&LabelKey, &Template)| {
            key.as_str().len() + value.least_len() > LABEL_MAX
        };
        if let Some((key, _)) = labels.iter().find(|(_, value)| value.is_empty()) {
            return Err(InvalidValue::new(format!(
                "the label \"{}\" is empty, and containerd does not store empty labels: give it a \
                 value, or leave it out",
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
