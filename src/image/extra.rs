//! The labels that the configuration (`extra_labels`) adds to each layer, with their variables replaced.

use crate::config::{ExtraLabels, Template, Variable};
use crate::containerd::MAX_LABEL;

use super::{Layer, Manifest};

/// Returns the labels of `extra` for a layer of `manifest`, by its position. `reference` is the name that the image is
/// pulled by, if it has one.
///
/// A label that is too long for containerd is omitted, since containerd would reject the whole call and with it the
/// layer. So is a label with `{image-ref}` if there is no name.
pub(super) fn of_layer<'a>(
    manifest: &'a Manifest,
    i: usize,
    reference: Option<&'a str>,
    extra: &'a ExtraLabels,
) -> impl Iterator<Item = (&'a str, String)> {
    let filled = move |(key, template): (&'a str, &'a Template)| {
        let layer = &manifest.layers[i];
        let filled = template.fill(|variable| value(variable, manifest, layer, reference))?;
        (key.len() + filled.len() <= MAX_LABEL).then_some((key, filled))
    };
    extra.iter().filter_map(filled)
}

/// Logs which labels of `extra` are omitted for an image.
pub fn log_omitted(manifest: &Manifest, reference: Option<&str>, extra: &ExtraLabels) {
    for (label, _) in extra.iter() {
        let has = |i| of_layer(manifest, i, reference, extra).any(|(key, _)| key == label);
        let layers = (0..manifest.layers.len()).filter(|i| !has(*i)).count();
        if layers > 0 {
            let image = reference.unwrap_or(&manifest.digest);
            log::warn!(image, label, layers; "label of extra_labels omitted: it is longer than {MAX_LABEL} bytes with its key, or the image has no name for {{image-ref}}");
        }
    }
}

fn value<'a>(
    variable: Variable,
    manifest: &'a Manifest,
    layer: &'a Layer,
    reference: Option<&'a str>,
) -> Option<&'a str> {
    match variable {
        Variable::ImageRef => reference,
        Variable::ManifestDigest => Some(&manifest.digest),
        Variable::LayerDigest => Some(&layer.blob.digest),
        Variable::DiffId => Some(&layer.diff_id),
        Variable::ChainId => Some(&layer.chain_id),
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::*;
    use crate::config::Config;
    use crate::containerd::Labels;

    fn extra_labels(
        manifest: &Manifest,
        reference: Option<&str>,
        extra: &ExtraLabels,
    ) -> Vec<Labels> {
        let of_layer = |i| of_layer(manifest, i, reference, extra);
        let owned = |(key, value): (&str, String)| (key.to_owned(), value);
        let layers = 0..manifest.layers.len();
        layers.map(|i| of_layer(i).map(owned).collect()).collect()
    }

    fn extra(labels: &str) -> ExtraLabels {
        let text = format!("[snapshotters.x.extra_labels]\n{labels}\n");
        let config = Config::from_toml(&text, "test").unwrap();
        config.snapshotter("x").extra_labels.clone()
    }

    #[test]
    fn every_variable_has_the_value_of_its_layer() {
        let manifest = manifest(2);
        let extra = extra(
            "a = \"{image-ref} {manifest-digest} {layer-digest} {diff-id} {chain-id}\"\nb = \"x\"",
        );
        let labels = extra_labels(&manifest, Some("r.example/app:1"), &extra);
        for (i, layer) in manifest.layers.iter().enumerate() {
            let expected = [
                "r.example/app:1",
                &manifest.digest,
                &layer.blob.digest,
                &layer.diff_id,
                &layer.chain_id,
            ];
            let label = |key: &str, value: String| (key.to_owned(), value);
            let expected = [label("a", expected.join(" ")), label("b", "x".to_owned())];
            assert_eq!(labels[i], Labels::from(expected));
        }
    }

    #[test]
    fn labels_that_containerd_would_reject_are_omitted() {
        let manifest = manifest(1);
        let fits = "x".repeat(MAX_LABEL - 1 - 71);
        let extra = extra(&format!(
            "a = \"{fits}{{diff-id}}\"\nb = \"{fits}x{{diff-id}}\"\nc = \"{{image-ref}}\""
        ));
        let labels = extra_labels(&manifest, None, &extra);
        assert_eq!(labels[0]["a"].len(), MAX_LABEL - 1);
        assert!(!labels[0].contains_key("b"), "a byte too long");
        assert!(!labels[0].contains_key("c"), "the image has no name");
    }
}
