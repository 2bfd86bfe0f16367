//! The labels of many snapshots in few bytes: sets of keys, and the names of images, are held once.

use std::collections::HashMap;

use crate::containerd::Labels;
use crate::image::{IMAGE_LAYERS, IMAGE_REF, MANIFEST_DIGEST, PROXY_MODE};
use crate::unpack::chain::profile::is_proxied;

/// What is kept of the labels of one snapshot: the keys, and the values of [`IMAGE_REF`], [`MANIFEST_DIGEST`] and
/// [`PROXY_MODE`]. Of [`IMAGE_LAYERS`] a comma is kept, if it lists more than one layer.
#[derive(Clone, Copy, Debug)]
pub(super) struct KeptLabels {
    /// The index of the set of keys.
    keys: u32,
    /// The index of the image.
    image: u32,
    is_proxied: bool,
    lists_more: bool,
}

impl KeptLabels {
    /// Whether the snapshot is a guest-pulled layer.
    pub(super) fn is_proxied(&self) -> bool {
        self.is_proxied
    }
}

/// The keys and values that the snapshots of one listing share.
#[derive(Debug, Default)]
pub(super) struct LabelPool {
    keys: Shared<Vec<String>>,
    /// The values of [`IMAGE_REF`] and of [`MANIFEST_DIGEST`].
    images: Shared<[String; 2]>,
}

/// Values with the same index for equal ones.
#[derive(Debug)]
struct Shared<T> {
    all: Vec<T>,
    index: HashMap<T, u32>,
}

impl<T> Default for Shared<T> {
    fn default() -> Self {
        Self {
            all: Vec::new(),
            index: HashMap::new(),
        }
    }
}

impl<T: Clone + Eq + std::hash::Hash> Shared<T> {
    fn index(&mut self, value: T) -> u32 {
        if let Some(index) = self.index.get(&value) {
            return *index;
        }
        // There are fewer than snapshots in an answer of containerd.
        let index = u32::try_from(self.all.len()).unwrap_or(u32::MAX);
        self.index.insert(value.clone(), index);
        self.all.push(value);
        index
    }
}

impl LabelPool {
    pub(super) fn keep(&mut self, mut labels: Labels) -> KeptLabels {
        let is_proxied = is_proxied(&labels);
        let listed = labels.get(IMAGE_LAYERS);
        let lists_more = listed.is_some_and(|layers| layers.contains(','));
        let mut value = |key| labels.get_mut(key).map(std::mem::take).unwrap_or_default();
        KeptLabels {
            image: self
                .images
                .index([value(IMAGE_REF), value(MANIFEST_DIGEST)]),
            keys: self.keys.index(labels.into_keys().collect()),
            is_proxied,
            lists_more,
        }
    }

    /// Frees what only [`Self::keep`] needs.
    pub(super) fn complete(&mut self) {
        self.keys.index = HashMap::new();
        self.images.index = HashMap::new();
    }

    /// Returns the labels, those without a kept value with an empty one.
    pub(super) fn labels(&self, kept: &KeptLabels) -> Labels {
        let [image_ref, manifest] = match self.images.all.get(kept.image as usize) {
            Some([image_ref, manifest]) => [image_ref.as_str(), manifest],
            None => [""; 2],
        };
        let value = |key: &str| match key {
            IMAGE_REF => image_ref,
            MANIFEST_DIGEST => manifest,
            PROXY_MODE if kept.is_proxied => "true",
            IMAGE_LAYERS if kept.lists_more => ",",
            _ => "",
        };
        let keys = self.keys.all.get(kept.keys as usize).into_iter().flatten();
        keys.map(|key| (key.clone(), value(key).to_owned()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{LAYER_DIGEST, SNAPSHOT_REF};

    const VALUES: [&str; 4] = [IMAGE_REF, MANIFEST_DIGEST, PROXY_MODE, IMAGE_LAYERS];

    fn labels(layer: &str, layers: &str) -> Labels {
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        Labels::from([
            label(SNAPSHOT_REF, layer),
            label(LAYER_DIGEST, layer),
            label(IMAGE_LAYERS, layers),
            label(IMAGE_REF, "r.example/app:1"),
            label(MANIFEST_DIGEST, "sha256:m"),
            label(PROXY_MODE, "true"),
        ])
    }

    #[test]
    fn the_values_that_a_check_uses_are_kept() {
        let mut pool = LabelPool::default();
        for (given, layers) in [("a,b", ","), ("b", "")] {
            let given = labels("a", given);
            let kept = pool.keep(given.clone());
            assert_eq!(kept.is_proxied(), is_proxied(&given));
            let mut expected = given;
            expected.insert(IMAGE_LAYERS.to_owned(), layers.to_owned());
            for (key, value) in &mut expected {
                if !VALUES.contains(&key.as_str()) {
                    value.clear();
                }
            }
            assert_eq!(pool.labels(&kept), expected);
        }
        let none = pool.keep(Labels::new());
        assert_eq!(pool.labels(&none), Labels::new());
        let unproxied = [(PROXY_MODE.to_owned(), "false".to_owned())];
        let unproxied = pool.keep(unproxied.into());
        assert!(!is_proxied(&pool.labels(&unproxied)));
    }

    #[test]
    fn the_layers_of_an_image_share_their_strings() {
        let mut pool = LabelPool::default();
        for layer in ["a", "b", "c"] {
            pool.keep(labels(layer, "a,b,c"));
        }
        assert_eq!((pool.keys.all.len(), pool.images.all.len()), (1, 1));
        let kept = pool.keep(labels("a", "a"));
        pool.complete();
        assert_eq!(pool.labels(&kept)[IMAGE_REF], "r.example/app:1");
    }
}
