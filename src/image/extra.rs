//! The labels that the configuration (`extra_labels`) adds to each layer, with their variables replaced.

use crate::config::{ExtraLabels, Variable};
use crate::containerd::{Labels, MAX_LABEL};

use super::labels::LayerLabels;
use super::{Layer, Manifest};

/// Returns the labels of `extra` for every layer of `manifest`. `reference` is the name that the image
/// is pulled by, if it has one.
///
/// A label that is too long for containerd is omitted and logged, since containerd would reject the whole
/// call and with it the layer. So is a label with `{image-ref}` if there is no name.
pub fn extra_labels(
    manifest: &Manifest,
    reference: Option<&str>,
    extra: &ExtraLabels,
) -> LayerLabels {
    let mut labels = vec![Labels::new(); manifest.layers.len()];
    for (key, template) in extra.iter() {
        let mut omitted = 0;
        for (labels, layer) in labels.iter_mut().zip(&manifest.layers) {
            match template.fill(|variable| value(variable, manifest, layer, reference)) {
                Some(value) if key.len() + value.len() <= MAX_LABEL => {
                    labels.insert(key.to_owned(), value);
                }
                _ => omitted += 1,
            }
        }
        if omitted > 0 {
            let image = reference.unwrap_or(&manifest.digest);
            log::warn!(image, label = key, layers = omitted; "label of extra_labels omitted: it is longer than {MAX_LABEL} bytes with its key, or the image has no name for {{image-ref}}");
        }
    }
    labels
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
