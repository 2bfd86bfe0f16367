//! The labels of each layer, and the rules under which a chain is ready, from what the configuration says. No I/O.

use crate::config::ExtraLabels;
use crate::containerd::Labels;
use crate::image::{self, LayerLabels, Manifest};

use super::label_policy::Labelling;
use crate::unpack::chain::profile::Repair;
use crate::unpack::chain::state::{Origin, Rules};

/// The labelling of an excluded image.
pub(crate) const EXCLUDED: Labelling = Labelling {
    cri: false,
    required: false,
};

/// Returns the labels that each layer gets, and those that it must have. With `is_bare`, a layer does not even get the
/// label with its chain id.
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
        // Committed layers without labels are ready.
        (false, _) => vec![Labels::new(); labels.len()],
    };
    (labels, required)
}

/// Returns the rules for a chain with these required labels. `repair` is how the configuration repairs missing labels;
/// without it, guest pull decides.
pub(crate) fn rules(
    labelling: Labelling,
    required: LayerLabels,
    guest_pulls: bool,
    repair: Option<Repair>,
    origin: Option<Origin>,
) -> Rules {
    let default = if guest_pulls {
        Repair::Replace
    } else {
        Repair::Relabel
    };
    let repair = repair.unwrap_or(default);
    Rules {
        required,
        origin,
        repair,
        guest_pulls: labelling.required && guest_pulls && repair == Repair::Replace,
        supports_guest_pull: false,
    }
}

/// Returns the repositories that the labels of an image may name; `None` if they need not name any.
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

/// Adds labels. A key that a layer already has keeps its value.
pub(crate) fn add(labels: &mut LayerLabels, more: LayerLabels) {
    for (labels, more) in labels.iter_mut().zip(more) {
        for (key, value) in more {
            labels.entry(key).or_insert(value);
        }
    }
}
