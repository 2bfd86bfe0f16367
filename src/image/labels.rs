//! The labels of each layer's snapshot, with the same keys and values as containerd's own labelled pull
//! sets them (its `pkg/snapshotters/annotations.go` and its unpacker).

use crate::containerd::{Labels, MAX_LABEL};

use super::manifest::{Layer, Manifest};
use super::reference::{hostname, repository};

/// The chain id, by which a remote snapshotter's snapshot is found in containerd's metadata store.
pub const SNAPSHOT_REF: &str = "containerd.io/snapshot.ref";
/// The name that the image is pulled by.
pub const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";
/// The manifest that the layer was unpacked for.
pub const MANIFEST_DIGEST: &str = "containerd.io/snapshot/cri.manifest-digest";
/// The digest of the layer's blob.
pub const LAYER_DIGEST: &str = "containerd.io/snapshot/cri.layer-digest";
/// The digests of the blobs of this layer and of those above it, as many as fit into a label.
pub const IMAGE_LAYERS: &str = "containerd.io/snapshot/cri.image-layers";

/// The layer's diff id. Set by containerd 2.3 and later.
const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
/// The chain id of the layer below. Set by containerd 2.3 and later.
pub const PARENT_CHAIN_ID: &str = "containerd.io/snapshot/parent-chain-id";

/// The label by which nydus-snapshotter marks a layer that it has not unpacked, since the guest pulls the image.
pub const PROXY_MODE: &str = "containerd.io/snapshot/nydus-proxy-mode";

/// The prefix of a layer's annotations that its snapshot inherits as labels.
const INHERITED: &str = "containerd.io/snapshot/";

/// Annotations that a snapshot does not inherit. The runtime chooses user id mappings; an image that set them
/// could choose the owner of its files. The snapshotter says which layers the guest pulls; an image that said so
/// would look as if its content were not there. Which image and which layer a snapshot is of is known here, also where
/// the layers get no labels of it: an image that said so could have another one mounted.
const NEVER_INHERITED: [&str; 9] = [
    "containerd.io/snapshot/uidmapping",
    "containerd.io/snapshot/gidmapping",
    PROXY_MODE,
    IMAGE_REF,
    MANIFEST_DIGEST,
    LAYER_DIGEST,
    IMAGE_LAYERS,
    DIFF_ID,
    PARENT_CHAIN_ID,
];

/// Returns the labels of a layer of `manifest`, by its position. `reference` is the name that the image is pulled by.
/// Without it the result has only labels that need no name: the chain id and the inherited annotations.
pub(super) fn of_layer(manifest: &Manifest, i: usize, reference: Option<&str>) -> Labels {
    let layer = &manifest.layers[i];
    let inherited = inherited(manifest, i);
    let mut labels: Labels = inherited.map(|(k, v)| (k.clone(), v.clone())).collect();
    labels.insert(SNAPSHOT_REF.to_owned(), layer.chain_id.clone());
    if let Some(reference) = reference {
        for (key, value) in [
            (IMAGE_REF, reference.to_owned()),
            (MANIFEST_DIGEST, manifest.digest.clone()),
            (LAYER_DIGEST, layer.blob.digest.clone()),
            (IMAGE_LAYERS, joined(&manifest.layers[i..])),
        ] {
            labels.insert(key.to_owned(), value);
        }
    }
    labels
}

/// Returns the keys of [`of_layer`]'s labels, for an image with a name or without one.
pub(super) fn keys(manifest: &Manifest, i: usize, is_named: bool) -> impl Iterator<Item = &str> {
    const OF_NAME: [&str; 4] = [IMAGE_REF, MANIFEST_DIGEST, LAYER_DIGEST, IMAGE_LAYERS];
    let of_name = OF_NAME.into_iter().filter(move |_| is_named);
    let inherited = inherited(manifest, i).map(|(key, _)| key.as_str());
    inherited.chain([SNAPSHOT_REF]).chain(of_name)
}

/// Returns the annotations of a layer that its snapshot inherits.
fn inherited(manifest: &Manifest, i: usize) -> impl Iterator<Item = (&String, &String)> {
    let annotations = manifest.layers[i].blob.annotations.iter();
    annotations.filter(|(key, value)| {
        let key = key.as_str();
        key.starts_with(INHERITED)
            && !NEVER_INHERITED.contains(&key)
            && key.len() + value.len() <= MAX_LABEL
            // containerd drops labels with an empty value.
            && !value.is_empty()
    })
}

/// Returns the labels with a layer's diff id and the chain id of the layer below, which containerd 2.3 and later set. A
/// chain counts as labelled without them, since an older containerd sets none.
pub(super) fn lineage(manifest: &Manifest, i: usize) -> impl Iterator<Item = (String, String)> {
    let layers = &manifest.layers;
    let below = i.checked_sub(1).map(|below| layers[below].chain_id.clone());
    let parent = below.map(|chain_id| (PARENT_CHAIN_ID.to_owned(), chain_id));
    let diff_id = (DIFF_ID.to_owned(), layers[i].diff_id.clone());
    std::iter::once(diff_id).chain(parent)
}

/// Joins the digests of as many layers with commas as fit into one label. containerd rejects a label whose key and value
/// together exceed [`MAX_LABEL`] bytes, and cuts this list in the same way.
fn joined(layers: &[Layer]) -> String {
    let mut list = String::new();
    for digest in layers.iter().map(|layer| layer.blob.digest.as_str()) {
        let comma = usize::from(!list.is_empty());
        if IMAGE_LAYERS.len() + list.len() + comma + digest.len() > MAX_LABEL {
            break;
        }
        if comma == 1 {
            list.push(',');
        }
        list.push_str(digest);
    }
    list
}

/// Whether the labels name the image by the digest of its manifest.
pub fn is_named_by(labels: &Labels, manifest: &str) -> bool {
    let name = labels.get(IMAGE_REF).and_then(|name| name.split_once('@'));
    name.is_some_and(|(_, digest)| digest == manifest)
}

/// Whether the labels `found` name the image by the digest of its manifest, and `wanted` name it otherwise but
/// in the same repository. The registry's port is ignored.
pub fn is_from_the_pull(found: &Labels, wanted: &Labels, manifest: &str) -> bool {
    let (Some(found), Some(wanted)) = (found.get(IMAGE_REF), wanted.get(IMAGE_REF)) else {
        return false;
    };
    let by_digest = found
        .split_once('@')
        .filter(|(_, digest)| *digest == manifest);
    let Some(((found_in, _), wanted_in)) = by_digest.zip(repository(wanted)) else {
        return false;
    };
    found != wanted && without_port(found_in) == without_port(&wanted_in)
}

/// Returns a repository's host and path.
fn without_port(repository: &str) -> Option<(&str, &str)> {
    let (registry, path) = repository.split_once('/')?;
    Some((hostname(registry), path))
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::super::manifest::tests::manifest;
    use super::*;

    fn layer_labels(manifest: &Manifest, reference: Option<&str>) -> Vec<Labels> {
        let layers = 0..manifest.layers.len();
        let labels = layers.map(|i| {
            let labels = of_layer(manifest, i, reference);
            let keys: HashSet<_> = keys(manifest, i, reference.is_some()).collect();
            assert_eq!(keys, labels.keys().map(String::as_str).collect());
            labels
        });
        labels.collect()
    }

    #[test]
    fn a_layers_labels_list_its_digest_and_those_of_the_layers_above() {
        let manifest = manifest(3);
        let labels = layer_labels(&manifest, Some("r.example/app:1"));
        let digest = |i: usize| manifest.layers[i].blob.digest.as_str();
        assert_eq!(labels[0][IMAGE_REF], "r.example/app:1");
        assert_eq!(labels[0][MANIFEST_DIGEST], manifest.digest);
        assert_eq!(labels[1][LAYER_DIGEST], digest(1));
        assert_eq!(
            labels[1][IMAGE_LAYERS],
            format!("{},{}", digest(1), digest(2))
        );
        assert_eq!(labels[2][SNAPSHOT_REF], manifest.layers[2].chain_id);
        assert_eq!(labels[2].len(), 5);
    }

    #[test]
    fn lineage_labels_have_the_diff_id_and_the_chain_id_below() {
        let manifest = manifest(2);
        let labels: Vec<Labels> = (0..2).map(|i| lineage(&manifest, i).collect()).collect();
        let [bottom, top] = [&manifest.layers[0], &manifest.layers[1]];
        let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(labels[0], Labels::from([label(DIFF_ID, &bottom.diff_id)]));
        let of_top = [
            label(DIFF_ID, &top.diff_id),
            label(PARENT_CHAIN_ID, &bottom.chain_id),
        ];
        assert_eq!(labels[1], Labels::from(of_top));
    }

    #[test]
    fn without_a_name_only_labels_that_need_none_are_set() {
        let labels = layer_labels(&manifest(1), None);
        let keys: Vec<_> = labels[0].keys().map(String::as_str).collect();
        assert_eq!(keys, [SNAPSHOT_REF]);
    }

    #[test]
    fn the_list_of_layers_is_cut_where_containerd_cuts_it() {
        let manifest = manifest(127);
        let labels = layer_labels(&manifest, Some("r.example/app:1"));
        // A digest has 71 bytes, 72 with its comma, and the key 40: 56 digests fit, 57 do not.
        assert_eq!(labels[0][IMAGE_LAYERS].split(',').count(), 56);
        for set in &labels {
            for (key, value) in set {
                assert!(key.len() + value.len() <= MAX_LABEL);
            }
        }
        assert_eq!(labels[126][IMAGE_LAYERS], manifest.layers[126].blob.digest);
    }

    #[test]
    fn annotations_are_inherited_except_what_an_image_must_not_choose() {
        let mut manifest = manifest(1);
        let annotation = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        manifest.layers[0].blob.annotations = HashMap::from([
            annotation("containerd.io/snapshot/nydus-bootstrap", "true"),
            annotation("containerd.io/snapshot/uidmapping", "0:0:1"),
            annotation("containerd.io/snapshot/gidmapping", "0:0:1"),
            annotation(PROXY_MODE, "true"),
            annotation("containerd.io/snapshot/cri.layer-digest", "sha256:forged"),
            annotation("org.example.other", "x"),
            annotation("containerd.io/snapshot/empty", ""),
            annotation("containerd.io/snapshot/long", &"x".repeat(MAX_LABEL)),
        ]);
        for key in NEVER_INHERITED {
            let annotation = annotation(key, "forged");
            manifest.layers[0].blob.annotations.extend([annotation]);
        }
        let nameless = &layer_labels(&manifest, None)[0];
        assert_eq!(nameless.len(), 2, "{nameless:?}");
        let labels = &layer_labels(&manifest, Some("r.example/app:1"))[0];
        assert_eq!(labels["containerd.io/snapshot/nydus-bootstrap"], "true");
        assert_eq!(labels[LAYER_DIGEST], manifest.layers[0].blob.digest);
        assert_eq!(labels.len(), 6, "{labels:?}");
    }

    proptest! {
        /// containerd accepts the labels of any manifest, and no image sets labels that it must not set.
        #[test]
        fn containerd_accepts_the_labels_of_any_manifest(
            layers in 1..130_usize,
            keys in proptest::collection::vec(
                prop_oneof!["containerd\\.io/snapshot/[a-z./-]{0,20}", Just(NEVER_INHERITED[0].to_owned()),
                    Just(PROXY_MODE.to_owned()),
                    Just(IMAGE_REF.to_owned()), Just(SNAPSHOT_REF.to_owned()), ".{0,20}"],
                0..4,
            ),
            length in prop_oneof![0..50_usize, MAX_LABEL - 60..MAX_LABEL + 10],
        ) {
            let mut manifest = manifest(layers);
            let top = manifest.layers.last_mut().unwrap();
            let forged = keys.into_iter().map(|key| (key, "x".repeat(length)));
            top.blob.annotations = forged.collect();
            let labels = layer_labels(&manifest, Some("r.example/app:1"));
            prop_assert_eq!(labels.len(), layers);
            for (i, (set, layer)) in labels.iter().zip(&manifest.layers).enumerate() {
                prop_assert!(set.iter().all(|(key, value)| key.len() + value.len() <= MAX_LABEL));
                prop_assert!(!NEVER_INHERITED[..3].iter().any(|key| set.contains_key(*key)));
                prop_assert_eq!(&set[SNAPSHOT_REF], &layer.chain_id);
                prop_assert_eq!(&set[IMAGE_REF], "r.example/app:1");
                let listed: Vec<_> = set[IMAGE_LAYERS].split(',').collect();
                let following = manifest.layers[i..].iter().map(|l| l.blob.digest.as_str());
                prop_assert_eq!(&listed, &following.take(listed.len()).collect::<Vec<_>>());
                prop_assert_eq!(listed.len(), 56.min(layers - i), "as many as fit");
            }
        }
    }

    #[test]
    fn only_a_name_by_the_manifests_digest_is_from_the_pull() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = format!("r.example:5000/a/app@{digest}");
        let without_port = format!("r.example/a/app@{digest}");
        let elsewhere = format!("r.example/other@{digest}");
        for (found, wanted, expected) in [
            (Some(&*by_digest), "r.example:5000/a/app:1", true),
            (Some(&*by_digest), &*by_digest, false),
            (Some(&*without_port), "r.example:5000/a/app:1", true),
            (Some(&*without_port), "r.example:5000/a/other:1", false),
            (Some(&*elsewhere), "r.example:5000/a/app:1", false),
            (
                Some("r.example:5000/a/app:2"),
                "r.example:5000/a/app:1",
                false,
            ),
            (None, "r.example:5000/a/app:1", false),
        ] {
            let label = |name: &str| (IMAGE_REF.to_owned(), name.to_owned());
            let found: Labels = found.map(label).into_iter().collect();
            let wanted = Labels::from([label(wanted)]);
            let is_from_the_pull = is_from_the_pull(&found, &wanted, &digest);
            assert_eq!(is_from_the_pull, expected, "{found:?}, {wanted:?}");
        }
    }
}
