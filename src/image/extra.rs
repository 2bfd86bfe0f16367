//! The labels that the configuration adds to those of each layer, their variables filled in.

use crate::config::{ExtraLabels, Variable};
use crate::containerd::{Labels, MAX_LABEL};

use super::labels::LayerLabels;
use super::{Layer, Manifest};

/// What `extra` says for every layer of `manifest`; `reference` is the name that the image is pulled
/// by, where it has one.
///
/// What containerd would reject as too long is left out and logged: it rejects the whole call, and
/// with it the layer. So is what speaks of a name that there is none of.
pub fn extra_labels(
    manifest: &Manifest,
    reference: Option<&str>,
    extra: &ExtraLabels,
) -> LayerLabels {
    let mut labels = vec![Labels::new(); manifest.layers.len()];
    for (key, template) in extra.iter() {
        let mut left_out = 0;
        for (labels, layer) in labels.iter_mut().zip(&manifest.layers) {
            match template.fill(|variable| value(variable, manifest, layer, reference)) {
                Some(value) if key.len() + value.len() <= MAX_LABEL => {
                    labels.insert(key.to_owned(), value);
                }
                _ => left_out += 1,
            }
        }
        if left_out > 0 {
            let image = reference.unwrap_or(&manifest.digest);
            log::warn!(image, label = key, layers = left_out; "label of extra_labels left out: longer than {MAX_LABEL} bytes with its key, or without a name for {{image-ref}}");
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
    fn every_variable_has_the_layers_own_value() {
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
    fn what_containerd_would_reject_is_left_out() {
        let manifest = manifest(1);
        let fits = "x".repeat(MAX_LABEL - 1 - 71);
        let extra = extra(&format!(
            "a = \"{fits}{{diff-id}}\"\nb = \"{fits}x{{diff-id}}\"\nc = \"{{image-ref}}\""
        ));
        let labels = extra_labels(&manifest, None, &extra);
        assert_eq!(labels[0]["a"].len(), MAX_LABEL - 1);
        assert!(!labels[0].contains_key("b"), "a byte too long");
        assert!(!labels[0].contains_key("c"), "there is no name");
    }
}
