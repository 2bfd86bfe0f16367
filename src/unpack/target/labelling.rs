//! The labels of each layer, and the rules under which a chain is ready, from what the configuration says. No I/O.

use std::sync::Arc;

use crate::config::ExtraLabels;
use crate::image::{self, Base, LayerLabels, Manifest};

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
    manifest: &Arc<Manifest>,
    Labelling { cri, required }: Labelling,
    reference: Option<&str>,
    is_bare: bool,
    extra: &ExtraLabels,
) -> (LayerLabels, LayerLabels) {
    image::log_omitted(manifest, reference, extra);
    let with_extra = |base| LayerLabels::new(manifest, base, reference).with_extra(extra);
    let labels = with_extra(match (is_bare, cri) {
        (true, _) => Base::Bare,
        (false, true) => Base::Pull,
        (false, false) => Base::ChainId,
    });
    let required = match (required, cri) {
        (true, true) => labels.clone(),
        (true, false) => with_extra(Base::Bare),
        // Committed layers without labels are ready.
        (false, _) => LayerLabels::none(manifest.layers.len()),
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
