//! The fuzzer of an image's documents.

use std::sync::Arc;

use super::document::{Config, Index, Manifest as Document};
use super::layer_labels::{Base, LayerLabels};
use super::manifest::{Manifest, chain, sha256};
use super::packed::Packed;
use super::{Platform, SNAPSHOT_REF};
use crate::containerd::MAX_LABEL;

/// A manifest, a config and an index, with a zero byte between them: each is parsed. Where manifest and config make an
/// image, its labels are those that containerd accepts and that only containerd sets.
///
/// # Panics
/// If not.
pub fn documents(bytes: &[u8]) {
    let mut documents = bytes.split(|byte| *byte == 0);
    let mut next = || documents.next().unwrap_or_default();
    let (manifest, config, index) = (next(), next(), next());
    let here = Platform::of_this_node();
    if let Ok(Some(entry)) = Index::parse(index, &here) {
        let _ = entry.descriptor();
    }
    let parts = Document::parse(manifest).map(Document::into_parts);
    let (Ok(Ok((blob, layers))), Ok(config)) = (parts, Config::parse(config)) else {
        return;
    };
    let _ = here.rank(&config.platform());
    let diff_ids = config.into_diff_ids();
    if layers.len() != diff_ids.len() {
        return;
    }
    let manifest = Arc::new(Manifest {
        digest: sha256(manifest),
        config: blob.digest,
        layers: chain(layers, diff_ids),
    });
    let packed = Packed::of(&manifest).manifest();
    assert_eq!(packed.as_ref(), Some(&*manifest));
    let labels = LayerLabels::new(&manifest, Base::Pull, Some("r.example/app:1")).with_lineage();
    for (i, layer) in manifest.layers.iter().enumerate().take(64) {
        let labels = &labels[i];
        assert_eq!(labels[SNAPSHOT_REF], layer.chain_id);
        assert!(!labels.contains_key("containerd.io/snapshot/uidmapping"));
        assert!(!labels.contains_key("containerd.io/snapshot/nydus-proxy-mode"));
        let diff_id = labels.get("containerd.io/snapshot/diff-id");
        assert_eq!(diff_id, Some(&layer.diff_id));
        // A digest may be as long as a document. Such a label is refused by containerd, and with it the layer.
        let short = [&layer.chain_id, &layer.diff_id, &layer.blob.digest];
        if short.iter().all(|digest| digest.len() < 128) {
            let fits = |(key, value): (&String, &String)| key.len() + value.len() <= MAX_LABEL;
            assert!(labels.iter().all(fits), "{labels:?}");
        }
    }
}
