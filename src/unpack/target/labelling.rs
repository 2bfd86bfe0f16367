//! From what the configuration wants of an image's labels to the labels of each layer, and to the rules by
//! which its chain is ready. Pure.

use crate::config::ExtraLabels;
use crate::containerd::Labels;
use crate::image::{self, LayerLabels, Manifest};

use super::label_policy::Labelling;
use crate::unpack::chain::profile::Repair;
use crate::unpack::chain::state::{Origin, Rules};

/// What is wanted of the layers of an excluded image.
pub(crate) const LEFT_OUT: Labelling = Labelling {
    cri: false,
    required: false,
};

/// The labels that each layer gets, and those that it must have. A layer without any label of ours
/// (`is_bare`) does not even carry its chain id.
pub(crate) fn labels(
    manifest: &Manifest,
    Labelling { cri, required }: Labelling,
    reference: Option<&str>,
    is_bare: bool,
    extra: &ExtraLabels,
) -> (LayerLabels, LayerLabels) {
    let mut labels = match is_bare {
        true => vec![Labels::new(); manifest.layers.len()],
        false => image::layer_labels(manifest, reference.filter(|_| cri)),
    };
    let extra = image::extra_labels(manifest, reference, extra);
    for (labels, extra) in labels.iter_mut().zip(&extra) {
        labels.extend(extra.clone());
    }
    let required = match (required, cri) {
        (true, true) => labels.clone(),
        (true, false) => extra,
        // Committed layers without labels are ready then.
        (false, _) => vec![Labels::new(); labels.len()],
    };
    (labels, required)
}

/// When a chain with these required labels is ready. `repair` is what the configuration says about absent
/// labels; without it, the snapshotter's way of pulling decides.
pub(crate) fn rules(
    labelling: Labelling,
    required: LayerLabels,
    guest_pulls: bool,
    repair: Option<Repair>,
    origin: Option<Origin>,
) -> Rules {
    let usual = if guest_pulls {
        Repair::Replace
    } else {
        Repair::Relabel
    };
    let repair = repair.unwrap_or(usual);
    Rules {
        required,
        origin,
        repair,
        guest_pulls: labelling.required && guest_pulls && repair == Repair::Replace,
    }
}

/// Where the labels of an image may say that it comes from, if they have to say that.
pub(crate) fn origin(
    manifest: &Manifest,
    labelling: Labelling,
    names: &[String],
) -> Option<Origin> {
    let repositories = names.iter().filter_map(|name| image::repository(name));
    let origin = Origin {
        manifest: manifest.digest.clone(),
        repositories: repositories.collect(),
    };
    (labelling.cri && labelling.required).then_some(origin)
}

/// Adds labels to those that are there. A key that is there keeps its value.
pub(crate) fn add(labels: &mut LayerLabels, more: LayerLabels) {
    for (labels, more) in labels.iter_mut().zip(more) {
        for (key, value) in more {
            labels.entry(key).or_insert(value);
        }
    }
}
