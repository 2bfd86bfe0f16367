//! Tests of the engine with an image whose blobs are gone and can be fetched from a registry.

use std::path::PathBuf;
use std::sync::Arc;

use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, ErrorKind, Labels, SnapshotKind};
use crate::image::{Manifest, Manifests, Platform};

use super::{Registries, is_older};
use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::engine::Engine;
use crate::unpack::layer::fallback::{ContentFallback, FallbackSource};
use crate::unpack::schedule::priority::Urgency;
use crate::unpack::schedule::progress::Outcome;
use crate::unpack::snapshotter::lease_owner::Role;
use crate::unpack::target::request::{Request, Want};
use crate::unpack::tests::{PARALLEL, default_policy};

const EROFS: &str = "erofs";
const NAME: &str = "r.example/app:1";

struct Bench {
    fake: Arc<Fake>,
    engine: Arc<Engine>,
    manifest: Arc<Manifest>,
    before: Labels,
}

impl Bench {
    /// Makes an image of three layers. The blobs of the second and third are gone; the registry has them.
    async fn new(version: &str, credentials: Option<&str>) -> Self {
        let fake = Arc::new(Fake::default());
        let image = fake.image(NAME, 3);
        let manifests = Manifests::new(Platform::of_this_node());
        let manifest = manifests.read(fake.as_ref(), &image).await.unwrap();
        fake.publish(version);
        for layer in &manifest.layers[1..] {
            fake.discard(&layer.blob.digest);
        }
        let config = "containerd.io/gc.ref.content.config".to_owned();
        let before = Labels::from([(config, manifest.config.clone())]);
        let labelled = fake.label_blob(&manifest.digest, before.clone());
        labelled.await.unwrap();
        let registries = Registries {
            hosts: PathBuf::from("/etc/containerd/certs.d"),
            credentials: credentials.map(PathBuf::from),
        };
        // The fallback that fails comes before the one that succeeds.
        let fallback = ContentFallback::new(
            vec![FallbackSource::Rebuild, FallbackSource::Pull],
            registries,
        );
        Self {
            engine: Engine::new(
                fake.clone(),
                Role::Daemon,
                PARALLEL,
                default_policy(),
                fallback,
            ),
            fake,
            manifest,
            before,
        }
    }

    async fn ensure(&self) -> Outcome {
        let request = Request {
            want: Want::Image(NAME.to_owned()),
            snapshotter: EROFS.to_owned(),
            urgency: Urgency::Asked,
        };
        self.engine.ensure(request).outcome().await
    }

    /// Asserts that no lease and no extraction snapshot remains, and that the manifest keeps the blobs that it
    /// kept before.
    async fn assert_nothing_left(&self) {
        assert!(self.fake.lease_ids().is_empty());
        for snapshot in self.fake.all(EROFS) {
            assert_eq!(snapshot.kind, SnapshotKind::Committed, "{}", snapshot.name);
        }
        let manifest = self.fake.blob(&self.manifest.digest).await.unwrap();
        assert_eq!(manifest.labels, self.before);
    }
}

#[tokio::test]
async fn missing_blobs_are_fetched_once_by_digest_and_released() {
    let bench = Bench::new("2.1.9", None).await;
    let done = bench.ensure().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Unpacked, 3));
    bench.assert_nothing_left().await;
    let [source] = &bench.fake.fetched()[..] else {
        panic!("{:?}", bench.fake.fetched());
    };
    let reference = format!("r.example/app@{}", bench.manifest.digest);
    assert_eq!(source.reference, reference);
    assert_eq!(source.hosts, PathBuf::from("/etc/containerd/certs.d"));
    for snapshot in bench.fake.all(EROFS) {
        assert!(!snapshot.labels.contains_key("nri-unpack/rebuilt-from"));
    }
}

#[tokio::test]
async fn the_error_says_why_each_fallback_failed() {
    let credentials = Some("/nowhere/config.json");
    for (version, credentials, words) in [
        ("1.7.24", None, "pull: containerd 1.7.24 cannot fetch"),
        ("2.1.9", credentials, "the credentials /nowhere/config.json"),
        ("2.1.9", None, "does not have the blob"),
    ] {
        let bench = Bench::new(version, credentials).await;
        bench.fake.unpublish(&bench.manifest.layers[1].blob.digest);
        let error = bench.ensure().await.unwrap_err();
        let message = error.to_string();
        assert!(
            matches!(*error, Error::Unavailable { position: 2, .. }),
            "{message}"
        );
        assert!(message.contains("rebuild: overlayfs does not have the layer either"));
        assert!(message.contains(words), "{message}");
        bench.assert_nothing_left().await;
    }
}

#[tokio::test]
async fn a_fault_in_any_step_leaves_nothing_and_the_next_ensure_finishes() {
    for call in ["ask version", "fetch", "look up blob", "label blob"] {
        for after in 0..6 {
            let bench = Bench::new("2.1.9", None).await;
            bench.fake.fail(call, after, ErrorKind::Other);
            let first = bench.ensure().await;
            bench.fake.heal();
            let context = format!("{call} {after}: {first:?}");
            assert!(bench.fake.lease_ids().is_empty(), "{context}");
            let manifest = bench.fake.blob(&bench.manifest.digest).await.unwrap();
            assert_eq!(manifest.labels, bench.before, "{context}");
            bench.ensure().await.unwrap();
            assert_eq!(bench.fake.all(EROFS).len(), 3, "{context}");
        }
    }
}

#[tokio::test]
async fn a_stop_during_the_fetch_leaves_the_manifest_unchanged() {
    let bench = Bench::new("2.1.9", None).await;
    bench
        .fake
        .slow("fetch", std::time::Duration::from_secs(3600));
    let request = Request {
        want: Want::Image(NAME.to_owned()),
        snapshotter: EROFS.to_owned(),
        urgency: Urgency::Asked,
    };
    let mut ticket = bench.engine.ensure(request);
    while ticket.progress().ready_layers < 1 {
        assert!(ticket.changed().await);
    }
    bench.engine.close().await;
    let error = ticket.outcome().await.unwrap_err();
    assert!(matches!(*error, Error::Stopped(_)), "{error}");
    bench.assert_nothing_left().await;
}

#[test]
fn versions_are_compared_as_numbers() {
    for (version, older) in [
        ("1.7.24~ds1", true),
        ("v2.0.5", true),
        ("2.1.9+unknown", false),
        ("2.10.0", false),
        ("v10.0.0", false),
        ("2", false),
        ("unknown", false),
    ] {
        assert_eq!(is_older(version), older, "{version}");
    }
}
