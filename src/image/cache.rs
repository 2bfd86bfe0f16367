//! The manifests that were read, as many as fit into a limit of bytes. Pure.

use std::collections::HashMap;

use super::digest::Digest;
use super::manifest::Manifest;
use super::packed::Packed;

/// The limit of the cache in bytes: at about 120 bytes for each layer, the manifests of 3,000 images of 20 layers.
const LIMIT: usize = 8 << 20;

/// The limit of one manifest in bytes, so that a few large ones do not take the place of all others.
const LARGEST: usize = LIMIT / 16;

/// What an entry takes besides its manifest, in bytes.
const ENTRY: usize = 256;

/// The remembered manifests.
#[derive(Debug, Default)]
pub(super) struct Cache {
    /// By the digest of the image's target.
    entries: HashMap<Digest, Entry>,
    /// What all entries take, in bytes.
    size: usize,
}

#[derive(Debug)]
struct Entry {
    config: Digest,
    chain: Option<Digest>,
    manifest: Packed,
}

/// The ends of an image: its config, and the top of its chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ends {
    /// The digest of the config blob.
    pub config: String,
    /// The chain id of the whole image; `None` for an image without layers.
    pub chain: Option<String>,
}

impl Cache {
    pub(super) fn packed(&self, target: &Digest) -> Option<Packed> {
        self.entries.get(target).map(|entry| entry.manifest.clone())
    }

    pub(super) fn ends(&self, target: &Digest) -> Option<Ends> {
        self.entries.get(target).map(Entry::ends)
    }

    /// Adds a manifest, unless it is very large. If the limit is reached, all others are forgotten.
    pub(super) fn insert(&mut self, target: Digest, manifest: &Manifest) {
        if annotations(manifest) > LARGEST {
            return;
        }
        let entry = Entry {
            config: Digest::of(&manifest.config),
            chain: manifest.chain_id().map(Digest::of),
            manifest: Packed::of(manifest),
        };
        let size = entry.size();
        if size > LARGEST {
            return;
        }
        if self.size + size > LIMIT {
            *self = Self::default();
        }
        let replaced = self.entries.insert(target, entry);
        self.size += size;
        self.size -= replaced.map_or(0, |entry| entry.size());
    }

    pub(super) fn retain(&mut self, is_kept: impl Fn(&Digest) -> bool) {
        self.entries.retain(|target, _| is_kept(target));
        self.entries.shrink_to_fit();
        self.size = self.entries.values().map(Entry::size).sum();
    }
}

/// Returns the size of all annotations in bytes. Nothing else in a manifest can be large.
fn annotations(manifest: &Manifest) -> usize {
    let layers = manifest.layers.iter();
    let annotations = layers.flat_map(|layer| &layer.blob.annotations);
    annotations
        .map(|(key, value)| key.len() + value.len())
        .sum()
}

impl Entry {
    fn size(&self) -> usize {
        ENTRY + self.manifest.size()
    }

    fn ends(&self) -> Ends {
        Ends {
            config: self.config.text(),
            chain: self.chain.as_ref().map(Digest::text),
        }
    }
}

impl Ends {
    pub(super) fn of(manifest: &Manifest) -> Self {
        Self {
            config: manifest.config.clone(),
            chain: manifest.chain_id().map(str::to_owned),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::manifest::tests::manifest;
    use super::*;

    fn target(n: usize) -> Digest {
        Digest::Other(format!("sha256:{n}").into())
    }

    #[test]
    fn the_ends_are_those_of_the_manifest() {
        for layers in [0, 1, 3] {
            let (manifest, mut cache) = (manifest(layers), Cache::default());
            cache.insert(target(0), &manifest);
            assert_eq!(cache.ends(&target(0)), Some(Ends::of(&manifest)));
            let packed = cache.packed(&target(0)).unwrap();
            assert_eq!(packed.manifest(), Some(manifest));
            assert_eq!(cache.ends(&target(1)), None);
        }
    }

    #[test]
    fn the_cache_stays_within_its_limit() {
        let (manifest, mut cache) = (manifest(400), Cache::default());
        for n in 0..1000 {
            cache.insert(target(n), &manifest);
            let size: usize = cache.entries.values().map(Entry::size).sum();
            assert_eq!(cache.size, size);
            assert!(size <= LIMIT, "{size}");
            assert!(cache.packed(&target(n)).is_some());
        }
        // Again the same image, whose index was pulled again.
        let size = cache.size;
        cache.insert(target(999), &manifest);
        assert_eq!(cache.size, size);
        cache.retain(|kept| *kept == target(999));
        assert_eq!(cache.size, size_of_one(&cache));
        cache.retain(|_| false);
        assert_eq!(cache.size, 0);
    }

    fn size_of_one(cache: &Cache) -> usize {
        assert_eq!(cache.entries.len(), 1);
        cache.entries.values().map(Entry::size).sum()
    }

    #[test]
    fn a_very_large_manifest_is_not_kept_and_pushes_none_out() {
        let (small, mut large, mut cache) = (manifest(2), manifest(1), Cache::default());
        cache.insert(target(0), &small);
        let annotation = ("containerd.io/snapshot/a".to_owned(), "b".repeat(LARGEST));
        large.layers[0].blob.annotations.extend([annotation]);
        cache.insert(target(1), &large);
        assert!(cache.packed(&target(1)).is_none());
        assert!(cache.packed(&target(0)).is_some());
    }
}
