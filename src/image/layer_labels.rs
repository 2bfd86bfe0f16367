//! The labels that the layers of an image get: those of containerd's own labelled pull, those of the configuration, and
//! those of its newer versions. Pure.
//!
//! The labels of a layer are made when they are used. All sets of an image of thousands of layers take many times the
//! memory of its manifest, and each request for the image would hold them while it waits.

use std::ops::Index;
use std::sync::{Arc, OnceLock};

use crate::config::ExtraLabels;
use crate::containerd::Labels;

use super::manifest::Manifest;
use super::{extra, labels};

/// The labels of an image's layers, bottom first, one set for each layer.
#[derive(Clone, Debug)]
pub struct LayerLabels {
    made: Box<[OnceLock<Labels>]>,
    /// How the sets are made that were not used yet; `None` if all are made.
    recipe: Option<Recipe>,
}

#[derive(Clone, Debug)]
struct Recipe {
    manifest: Arc<Manifest>,
    /// The name that the image is pulled by.
    reference: Option<String>,
    base: Base,
    extra: ExtraLabels,
    has_lineage: bool,
}

/// The labels to which others are added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Base {
    /// None.
    Bare,
    /// Those that need no name.
    ChainId,
    /// Those of containerd's labelled pull, if the image has a name; else [`Base::ChainId`].
    Pull,
}

impl LayerLabels {
    /// Returns the labels of every layer of `manifest`. `reference` is the name that the image is pulled by.
    pub fn new(manifest: &Arc<Manifest>, base: Base, reference: Option<&str>) -> Self {
        let recipe = Recipe {
            manifest: manifest.clone(),
            reference: reference.map(str::to_owned),
            base,
            extra: ExtraLabels::default(),
            has_lineage: false,
        };
        Self::of(recipe)
    }

    /// Returns no labels for each of these layers.
    pub fn none(layers: usize) -> Self {
        vec![Labels::new(); layers].into()
    }

    /// Adds the labels of the configuration. They replace others with the same key.
    #[must_use]
    pub fn with_extra(self, extra: &ExtraLabels) -> Self {
        self.changed(|recipe| recipe.extra = extra.clone())
    }

    /// Adds the labels that containerd 2.3 and later set. A key that a layer already has keeps its value.
    #[must_use]
    pub fn with_lineage(self) -> Self {
        self.changed(|recipe| recipe.has_lineage = true)
    }

    /// Returns the labels of the top layer.
    pub fn last(&self) -> Option<&Labels> {
        Some(&self[self.made.len().checked_sub(1)?])
    }

    /// Whether the top layer gets a label with this key.
    pub fn top_has(&self, key: &str) -> bool {
        let top = self.made.len().checked_sub(1);
        top.is_some_and(|top| match &self.recipe {
            Some(recipe) => !recipe.all_keys(top, |own| own != key),
            None => self[top].contains_key(key),
        })
    }

    /// Whether `found` has all keys that the labels of this layer have.
    pub fn has_all_keys(&self, i: usize, found: &Labels) -> bool {
        match &self.recipe {
            Some(recipe) => recipe.all_keys(i, |key| found.contains_key(key)),
            None => self[i].keys().all(|key| found.contains_key(key)),
        }
    }

    /// Returns the number of layers.
    pub fn layers(&self) -> usize {
        self.made.len()
    }

    fn of(recipe: Recipe) -> Self {
        Self {
            made: vec![OnceLock::new(); recipe.manifest.layers.len()].into(),
            recipe: Some(recipe),
        }
    }

    fn changed(self, change: impl FnOnce(&mut Recipe)) -> Self {
        match self.recipe {
            Some(mut recipe) => {
                change(&mut recipe);
                Self::of(recipe)
            }
            None => self,
        }
    }
}

impl Recipe {
    fn labels(&self, i: usize) -> Labels {
        let reference = self.reference.as_deref();
        let mut made = match self.base {
            Base::Bare => Labels::new(),
            Base::ChainId => labels::of_layer(&self.manifest, i, None),
            Base::Pull => labels::of_layer(&self.manifest, i, reference),
        };
        let extra = extra::of_layer(&self.manifest, i, reference, &self.extra);
        made.extend(extra.map(|(key, value)| (key.to_owned(), value)));
        if self.has_lineage {
            for (key, value) in labels::lineage(&self.manifest, i) {
                made.entry(key).or_insert(value);
            }
        }
        made
    }

    /// Whether this holds for the keys of all labels of a layer, of which none is made for that.
    fn all_keys(&self, i: usize, holds: impl Fn(&str) -> bool) -> bool {
        let manifest = &self.manifest;
        let of_base = match self.base {
            Base::Bare => true,
            Base::ChainId => labels::keys(manifest, i, false).all(&holds),
            Base::Pull => labels::keys(manifest, i, self.reference.is_some()).all(&holds),
        };
        let reference = self.reference.as_deref();
        let mut extra = extra::of_layer(manifest, i, reference, &self.extra);
        of_base
            && extra.all(|(key, _)| holds(key))
            && (!self.has_lineage || labels::lineage(manifest, i).all(|(key, _)| holds(&key)))
    }
}

/// The labels of a layer, which are made at their first use.
impl Index<usize> for LayerLabels {
    type Output = Labels;

    fn index(&self, i: usize) -> &Labels {
        self.made[i].get_or_init(|| {
            let recipe = self.recipe.as_ref();
            recipe.map_or_else(Labels::new, |recipe| recipe.labels(i))
        })
    }
}

impl From<Vec<Labels>> for LayerLabels {
    fn from(labels: Vec<Labels>) -> Self {
        Self {
            made: labels.into_iter().map(OnceLock::from).collect(),
            recipe: None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::super::{IMAGE_REF, PARENT_CHAIN_ID};
    use super::*;
    use crate::config::Config;
    use crate::peak;

    const NAME: &str = "r.example/app:1";

    fn extra(text: &str) -> ExtraLabels {
        let text = format!("[snapshotters.x.extra_labels]\n{text}\n");
        let config = Config::from_toml(&text, "test").unwrap();
        config.snapshotter("x").extra_labels.clone()
    }

    #[test]
    fn the_keys_are_those_of_the_labels() {
        let manifest = Arc::new(manifest(2));
        let extra = extra("a = \"{image-ref}\"\nb = \"x\"");
        for (base, reference, count) in [
            (Base::Bare, None, 0),
            (Base::Bare, Some(NAME), 0),
            (Base::ChainId, Some(NAME), 1),
            (Base::Pull, None, 1),
            (Base::Pull, Some(NAME), 5),
        ] {
            let plain = LayerLabels::new(&manifest, base, reference);
            assert_eq!(plain[1].len(), count, "{base:?}");
            let of_extra = usize::from(reference.is_some()) + 1;
            let all = plain.clone().with_extra(&extra).with_lineage();
            assert_eq!(all[1].len(), count + of_extra + 2, "{base:?}");
            for labels in [plain, all] {
                assert!(labels.has_all_keys(1, &labels[1]));
                for key in labels[1].keys() {
                    assert!(labels.top_has(key));
                    let mut less = labels[1].clone();
                    less.remove(key);
                    assert!(!labels.has_all_keys(1, &less), "{base:?} {key}");
                }
                assert!(!labels.top_has("c"));
            }
        }
    }

    #[test]
    fn an_image_sets_no_label_that_is_set_here() {
        let mut manifest = manifest(2);
        let annotations = [PARENT_CHAIN_ID, IMAGE_REF, "containerd.io/snapshot/a"];
        for layer in &mut manifest.layers {
            let forged = annotations.map(|key| (key.to_owned(), "forged".to_owned()));
            layer.blob.annotations.extend(forged);
        }
        let manifest = Arc::new(manifest);
        let extra = extra("\"containerd.io/snapshot/a\" = \"x\"");
        let labels = LayerLabels::new(&manifest, Base::ChainId, Some(NAME));
        let labels = labels.with_extra(&extra).with_lineage();
        for i in 0..2 {
            let is_forged = labels[i].values().any(|value| value == "forged");
            assert!(!is_forged, "{:?}", labels[i]);
        }
        assert_eq!(labels[1][PARENT_CHAIN_ID], manifest.layers[0].chain_id);
    }

    /// As many requests as pods that wait at the same time for one image of the most layers. All sets of labels of one
    /// request take some 25 MiB.
    #[test]
    fn labels_that_are_not_used_take_no_memory() {
        let test = "labels_that_are_not_used_take_no_memory";
        let peak = peak::of(module_path!(), test, || {
            let manifest = Arc::new(manifest(4096));
            let requests = (0..20).map(|_| {
                let labels = LayerLabels::new(&manifest, Base::Pull, Some(NAME));
                assert!(!labels.has_all_keys(0, &Labels::new()));
                labels
            });
            let requests: Vec<_> = requests.collect();
            assert_eq!(requests[19][4095].len(), 5);
        });
        assert!(peak < 80, "{peak} MiB");
    }
}
