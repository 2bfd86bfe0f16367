//! Reads images from the in-memory containerd: which manifest of an index is chosen, and the error for a bad
//! document.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::document::Described;
use super::super::json;
use super::*;
use crate::containerd::fake::Fake;

const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

fn platform(text: &str) -> Platform {
    let mut words = text.split('/');
    let mut next = || words.next().unwrap_or_default();
    Platform::new(next(), next(), next())
}

fn on(here: &str) -> Manifests {
    Manifests::new(platform(here))
}

async fn read(fake: &Fake, target: Descriptor) -> Result<Arc<Manifest>, String> {
    let image = fake.tag("a:1", target);
    let read = on("linux/amd64").read(fake, &image).await;
    read.map_err(|e| e.to_string())
}

/// Puts a document into the store and returns its descriptor as JSON, for other documents.
fn put(fake: &Fake, media_type: &str, document: &Value) -> Value {
    let blob = fake.document(media_type, document.to_string().as_bytes());
    json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.size})
}

fn descriptor(described: &Value) -> Descriptor {
    let described: Described = json::read(described.to_string().as_bytes()).unwrap();
    described.descriptor().unwrap()
}

/// Returns the digest of the entry that is chosen from an index of `manifests`.
fn chosen(manifests: &Value, here: &str) -> Option<String> {
    let index = json!({"manifests": manifests}).to_string();
    let chosen = Index::parse(index.as_bytes(), &platform(here)).unwrap();
    chosen.map(|entry| entry.descriptor().unwrap().digest)
}

/// Returns a platform as JSON: `{"os": "linux", "architecture": "arm", "variant": "v6"}`.
fn platform_json(text: &str) -> Value {
    let words: Vec<_> = text.split('/').collect();
    let mut platform = json!({"os": words[0], "architecture": words[1]});
    if let Some(variant) = words.get(2) {
        platform["variant"] = json!(variant);
    }
    platform
}

/// Makes an image of one layer whose config has this platform.
fn image(fake: &Fake, platform: &str) -> Value {
    let mut config = platform_json(platform);
    config["rootfs"] = json!({"type": "layers", "diff_ids": ["sha256:00"]});
    let config = put(fake, CONFIG, &config);
    let layers = json!([{"mediaType": LAYER, "digest": "sha256:01", "size": 1}]);
    let document = json!({"schemaVersion": 2, "config": config, "layers": layers});
    put(fake, MANIFEST, &document)
}

/// Makes an artifact: a manifest whose config and blobs are not those of an image.
fn artifact(fake: &Fake, config: Value) -> Value {
    let config = put(fake, "application/vnd.oci.empty.v1+json", &config);
    let blob =
        json!({"mediaType": "application/vnd.in-toto+json", "digest": "sha256:02", "size": 1});
    let document = json!({"schemaVersion": 2, "config": config, "layers": [blob]});
    put(fake, MANIFEST, &document)
}

/// Makes an index of these entries, each with its platform; an empty one gives none.
fn index(fake: &Fake, entries: &[(&str, &Value)]) -> Value {
    let entry = |(platform, target): &(&str, &Value)| {
        let mut entry = (*target).clone();
        if !platform.is_empty() {
            entry["platform"] = platform_json(platform);
        }
        entry
    };
    let manifests: Vec<_> = entries.iter().map(entry).collect();
    put(
        fake,
        INDEX,
        &json!({"schemaVersion": 2, "manifests": manifests}),
    )
}

#[tokio::test]
async fn the_manifest_of_this_platform_is_chosen_from_an_index() {
    let fake = Fake::default();
    let [amd64, x86, arm64, arm6, arm7] =
        ["amd64", "386", "arm64", "arm/v6", "arm/v7"].map(|p| image(&fake, &format!("linux/{p}")));
    let attestation = artifact(&fake, platform_json("unknown/unknown"));
    let signature = artifact(&fake, json!({}));
    let blob = put(&fake, "application/vnd.cncf.helm.config", &json!({}));
    let inner = index(&fake, &[("linux/arm64", &arm64), ("linux/amd64", &amd64)]);
    let silent = index(&fake, &[("", &amd64)]);
    let foreign = index(&fake, &[("linux/arm64", &arm64)]);
    let none = Err("no manifest for linux/");
    let (intel, pi) = ("linux/amd64", "linux/arm64");
    for (here, entries, expected) in [
        (
            intel,
            vec![("linux/arm64", &arm64), (intel, &amd64)],
            Ok(&amd64),
        ),
        // An image for 386 runs on amd64, if there is no better one.
        (
            intel,
            vec![("linux/386", &x86), (intel, &amd64)],
            Ok(&amd64),
        ),
        (
            intel,
            vec![("linux/386", &x86), ("linux/arm64", &arm64)],
            Ok(&x86),
        ),
        // The first of equals is chosen. A higher level of amd64 does not run.
        (intel, vec![(intel, &x86), (intel, &amd64)], Ok(&x86)),
        (
            intel,
            vec![("linux/amd64/v2", &x86), ("linux/amd64/v1", &amd64)],
            Ok(&amd64),
        ),
        (intel, vec![("linux/amd64/v3", &amd64)], none),
        (intel, vec![("windows/amd64", &amd64)], none),
        (intel, vec![], none),
        // 64-bit arm runs images for 32-bit arm, and the highest version is chosen.
        (
            pi,
            vec![("linux/arm/v6", &arm6), ("linux/arm/v7", &arm7)],
            Ok(&arm7),
        ),
        (
            pi,
            vec![("linux/arm", &arm7), ("linux/arm64/v8", &arm64)],
            Ok(&arm64),
        ),
        (
            "linux/arm/v6",
            vec![("linux/arm/v7", &arm7), ("linux/arm/v5", &arm6)],
            Ok(&arm6),
        ),
        // An attestation's platform is `unknown`. An artifact has no platform, nor has its config.
        (
            intel,
            vec![("unknown/unknown", &attestation), (intel, &amd64)],
            Ok(&amd64),
        ),
        (intel, vec![("unknown/unknown", &attestation)], none),
        (intel, vec![("", &attestation)], none),
        (intel, vec![("", &signature)], none),
        (intel, vec![("", &signature), (intel, &amd64)], Ok(&amd64)),
        // An entry without a platform is chosen last, and its config's platform decides.
        (intel, vec![("", &x86), (intel, &amd64)], Ok(&amd64)),
        (intel, vec![("", &amd64)], Ok(&amd64)),
        (intel, vec![("", &arm64)], none),
        // Nested indexes.
        (intel, vec![("", &inner)], Ok(&amd64)),
        (intel, vec![(intel, &inner), (intel, &x86)], Ok(&amd64)),
        (pi, vec![("linux/arm64", &inner)], Ok(&arm64)),
        (intel, vec![(intel, &silent)], Ok(&amd64)),
        (pi, vec![(pi, &silent)], none),
        (intel, vec![("", &foreign)], none),
        // The chosen entry must be an image.
        (
            intel,
            vec![(intel, &blob), (intel, &amd64)],
            Err("application/vnd.cncf.helm.config"),
        ),
    ] {
        let target = descriptor(&index(&fake, &entries));
        let read = on(here).read(&fake, &fake.tag("index:1", target)).await;
        match expected {
            Ok(chosen) => assert_eq!(read.unwrap().digest, chosen["digest"], "{entries:?}"),
            Err(words) => {
                let message = read.unwrap_err().to_string();
                assert!(message.contains(words), "{entries:?}: {message}");
            }
        }
    }
}

#[tokio::test]
async fn the_platform_of_an_image_without_an_index_is_not_checked() {
    let fake = Fake::default();
    let target = descriptor(&image(&fake, "linux/s390x"));
    assert_eq!(read(&fake, target).await.unwrap().layers.len(), 1);
}

#[test]
fn entries_that_require_features_are_chosen_last() {
    let fake = Fake::default();
    let (erofs, plain) = (image(&fake, "linux/arm64"), image(&fake, "linux/386"));
    let entry = |target: &Value, architecture: &str, features: Value| {
        let mut entry = target.clone();
        entry["platform"] =
            json!({"os": "linux", "architecture": architecture, "os.features": features});
        entry
    };
    let erofs = entry(&erofs, "amd64", json!(["erofs"]));
    let plain = entry(&plain, "386", Value::Null);
    for (manifests, expected) in [
        (json!([erofs, plain]), &plain),
        (json!([plain, erofs]), &plain),
        (json!([erofs]), &erofs),
    ] {
        let chosen = chosen(&manifests, "linux/amd64").unwrap();
        assert_eq!(chosen, expected["digest"]);
    }
}

proptest! {
    /// containerd's rule, written another way: for each platform that runs here, best first, take the first
    /// entry of that platform.
    #[test]
    fn the_entry_of_any_index_is_the_one_that_containerd_chooses(
        entries in proptest::collection::vec(
            prop_oneof![
                Just(""), Just("linux/amd64"), Just("linux/386"), Just("linux/arm64"),
                Just("linux/arm/v5"), Just("linux/arm/v6"), Just("linux/arm/v7"),
                Just("linux/arm/v8"), Just("unknown/unknown"), Just("windows/amd64"),
            ],
            0..8,
        ),
        (here, runs) in prop_oneof![
            Just(("linux/amd64", "linux/amd64 linux/386")),
            Just(("linux/arm64", "linux/arm64 linux/arm/v8 linux/arm/v7 linux/arm/v6 linux/arm/v5")),
            Just(("linux/arm/v6", "linux/arm/v6 linux/arm/v5")),
        ],
    ) {
        let position = |wanted: &str| entries.iter().position(|platform| *platform == wanted);
        let expected = runs.split(' ').find_map(position).or_else(|| position(""));

        let entry = |(n, platform): (usize, &&str)| {
            let mut entry = json!({"digest": format!("sha256:{n}")});
            if !platform.is_empty() {
                entry["platform"] = platform_json(platform);
            }
            entry
        };
        let manifests: Vec<_> = entries.iter().enumerate().map(entry).collect();
        let chosen = chosen(&json!(manifests), here);
        prop_assert_eq!(chosen, expected.map(|n| format!("sha256:{n}")));
    }
}

#[tokio::test]
async fn indexes_are_followed_to_a_limited_depth() {
    let fake = Fake::default();
    let mut target = image(&fake, "linux/amd64");
    for _ in 1..MAX_DOCUMENTS {
        target = index(&fake, &[("", &target)]);
    }
    assert!(read(&fake, descriptor(&target)).await.is_ok());
    target = index(&fake, &[("", &target)]);
    let message = read(&fake, descriptor(&target)).await.unwrap_err();
    assert!(message.contains("nested too deeply"), "{message}");
}

#[tokio::test]
async fn a_manifest_is_read_once() {
    let fake = Fake::default();
    let (image, manifests) = (fake.image("a:1", 3), on("linux/amd64"));
    let first = manifests.read(&fake, &image).await.unwrap();
    assert_eq!(first.layers.len(), 3);
    assert_eq!(fake.calls(), ["read blob", "read blob"]);
    assert_eq!(manifests.read(&fake, &image).await.unwrap(), first);
    assert!(fake.calls().is_empty());
}

#[tokio::test]
async fn a_manifest_is_forgotten_with_its_record() {
    let fake = Fake::default();
    let [kept, removed] = ["a:1", "b:1"].map(|name| fake.image(name, 3));
    let manifests = on("linux/amd64");
    for image in [&kept, &removed] {
        let read = manifests.read(&fake, image).await.unwrap();
        assert_eq!(manifests.ends(&fake, image).await.unwrap(), Ends::of(&read));
    }
    fake.calls();
    manifests.keep(&HashSet::from([kept.target.digest.as_str()]));
    manifests.read(&fake, &kept).await.unwrap();
    assert!(fake.calls().is_empty());
    manifests.ends(&fake, &removed).await.unwrap();
    assert_eq!(fake.calls(), ["read blob", "read blob"]);
    manifests.forget();
    manifests.read(&fake, &kept).await.unwrap();
    assert_eq!(fake.calls(), ["read blob", "read blob"]);
}

#[tokio::test]
async fn blobs_that_are_not_layers_are_skipped() {
    let fake = Fake::default();
    let config = json!({"rootfs": {"diff_ids": ["sha256:00", "sha256:01"]}});
    let config = put(&fake, CONFIG, &config);
    let blob = |n: usize, media_type: &str| json!({"mediaType": media_type, "digest": format!("sha256:b{n}"), "size": 1});
    let layers = [
        blob(
            0,
            "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
        ),
        blob(1, "application/vnd.in-toto+json"),
        blob(2, "application/vnd.oci.image.layer.v1.tar+zstd"),
    ];
    let target = put(
        &fake,
        MANIFEST,
        &json!({"config": config, "layers": layers}),
    );
    let layers = &read(&fake, descriptor(&target)).await.unwrap().layers;
    let digests: Vec<_> = layers.iter().map(|l| l.blob.digest.as_str()).collect();
    assert_eq!(digests, ["sha256:b0", "sha256:b2"]);
}

#[tokio::test]
async fn an_image_may_have_no_layers() {
    let fake = Fake::default();
    for layers in [json!([]), Value::Null] {
        let config = json!({"rootfs": {"type": "layers", "diff_ids": layers}});
        let config = put(&fake, CONFIG, &config);
        let target = put(
            &fake,
            MANIFEST,
            &json!({"config": config, "layers": layers}),
        );
        let manifest = read(&fake, descriptor(&target)).await.unwrap();
        assert_eq!(manifest.chain_id(), None);
    }
}

#[tokio::test]
async fn the_error_for_a_bad_document_names_its_digest() {
    let fake = Fake::default();
    let truncated = fake.document(MANIFEST, br#"{"schemaVersion": 2, "config"#);
    let other = fake.document("application/vnd.cncf.helm.config", b"{}");
    let mut changed = fake.image("changed:1", 1).target;
    fake.corrupt(&changed.digest, b"{}");
    // The descriptor's size is not covered by the digest.
    changed.size = 7;
    let gone = fake.document(MANIFEST, b"{}");
    fake.discard(&gone.digest);
    let schema1 = "application/vnd.docker.distribution.manifest.v1+prettyjws";
    let schema1 = fake.document(schema1, br#"{"fsLayers": []}"#);
    let disguised = fake.document(MANIFEST, br#"{"fsLayers": [], "history": []}"#);
    let list = fake.document(MANIFEST, br#"{"manifests": []}"#);
    for (target, words) in [
        (truncated, "EOF"),
        (other, "media type application/vnd.cncf.helm.config"),
        (changed, "its 2 bytes do not match this digest"),
        (gone, "read blob"),
        (schema1, "is of docker's schema 1"),
        (disguised, "is of docker's schema 1"),
        (list, "it is an index: the image is broken"),
    ] {
        let digest = target.digest.clone();
        let message = read(&fake, target).await.unwrap_err();
        assert!(message.starts_with("image a:1: "), "{message}");
        assert!(
            message.contains(&digest) && message.contains(words),
            "{message}"
        );
    }
}

#[tokio::test]
async fn the_numbers_of_layers_and_diff_ids_must_match() {
    let fake = Fake::default();
    let config = put(
        &fake,
        CONFIG,
        &json!({"rootfs": {"diff_ids": ["sha256:00", "sha256:01"]}}),
    );
    let layers = json!([{"mediaType": LAYER, "digest": "sha256:02"}]);
    let target = put(
        &fake,
        MANIFEST,
        &json!({"config": config, "layers": layers}),
    );
    let message = read(&fake, descriptor(&target)).await.unwrap_err();
    let words = format!(
        "1 layers, but its config {} lists 2",
        config["digest"].as_str().unwrap()
    );
    assert!(message.contains(&words), "{message}");
}
