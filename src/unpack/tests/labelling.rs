//! Tests of the labels on layers, of encrypted layers, and of excluded images.

use super::*;
use crate::config::Config;

/// containerd decrypts the layer. A layer that is committed already needs no key.
#[tokio::test]
async fn the_error_names_an_encrypted_layer_that_cannot_be_unpacked() {
    for (committed, fault, words) in [
        (0, Some(ErrorKind::Other), Some("layer 1 of 2 (sha256:")),
        (0, Some(ErrorKind::Unreachable), Some("apply layer sha256:")),
        (0, None, None),
        (2, Some(ErrorKind::Other), None),
    ] {
        let bench = Bench::of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", 2).await;
        bench.commit_without_labels(committed);
        if let Some(kind) = fault {
            bench.fake.fail("apply layer", 0, kind);
        }
        match (bench.ensure().await, words) {
            (Ok(_), None) => assert_eq!(bench.state().await, State::Ready),
            (Err(e), Some(words)) => {
                let encrypted = fault == Some(ErrorKind::Other);
                assert_eq!(matches!(*e, Error::Encrypted { .. }), encrypted, "{e}");
                assert!(e.to_string().contains(words), "{e}");
            }
            (outcome, words) => panic!("{outcome:?}, not {words:?}"),
        }
        bench.assert_nothing_left();
    }
}

/// If a stream processor fails, containerd may treat the end of its output as the end of the layer.
#[tokio::test]
async fn an_encrypted_layer_without_content_was_not_decrypted() {
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    for (media_type, applied, is_encrypted) in [
        (format!("{gzip}+encrypted"), sha256(b""), true),
        (format!("{gzip}+encrypted"), sha256(b"something"), false),
        (gzip.to_owned(), sha256(b""), false),
    ] {
        let bench = Bench::of(&media_type, 2).await;
        bench.fake.applies_as(&sha256(b"layer 1"), &applied);
        let error = bench.ensure().await.unwrap_err();
        let second = match &*error {
            Error::Encrypted { position: 2, .. } => is_encrypted,
            Error::WrongDiffId { position: 2, .. } => !is_encrypted,
            _ => false,
        };
        assert!(second, "{media_type}: {error}");
        bench.assert_nothing_left();
    }
}

/// A chain that another version of containerd has labelled is ready as well.
#[tokio::test]
async fn layers_get_lineage_labels_if_this_containerd_sets_them() {
    const DIFF_ID: &str = "containerd.io/snapshot/diff-id";
    const PARENT: &str = "containerd.io/snapshot/parent-chain-id";
    for (version, expected) in [
        ("1.7.24", false),
        ("2.1.9", false),
        ("2.2.7", false),
        ("2.3.0-beta.0", false),
        ("2.3.0-rc.1", true),
        ("2.4.0-beta.0", true),
    ] {
        for cri in [true, false] {
            let mut bench = Bench::new(2).await;
            bench.set_policy(fixed_policy(cri, true, ExtraLabels::default()));
            bench.fake.is_version(version);
            bench.ensure().await.unwrap();
            let layer = |chain: &str| {
                let all = bench.fake.all(EROFS).into_iter();
                all.map(|s| (s.name, s.labels))
                    .find(|(name, _)| name == chain)
                    .unwrap()
                    .1
            };
            let [bottom, top] = [&bench.chain_ids[0], &bench.chain_ids[1]];
            let found = [layer(bottom), layer(top)];
            // A bottom layer's chain id is its diff id.
            let of_bottom = expected.then_some(bottom);
            assert_eq!(found[0].get(DIFF_ID), of_bottom, "{version}");
            assert_eq!(found[0].get(PARENT), None, "{version}");
            assert_eq!(found[1].contains_key(DIFF_ID), expected, "{version}");
            assert_eq!(found[1].get(PARENT), of_bottom, "{version}");

            // containerd is upgraded or downgraded.
            bench
                .fake
                .is_version(if expected { "2.1.9" } else { "2.3.0" });
            bench.engine.forget();
            assert_eq!(bench.state().await, State::Ready, "{version}");
            assert_eq!(bench.ensure().await.unwrap().action, Action::None);
        }
    }
}

#[tokio::test]
async fn a_chain_without_a_required_extra_label_is_unlabelled() {
    let extra = |text: &str| {
        let text = format!("[snapshotters.erofs]\nextra_labels = {text}\n");
        let config = Config::from_toml(&text, "test").unwrap();
        config.snapshotter(EROFS).extra_labels.clone()
    };
    for cri in [true, false] {
        let mut bench = Bench::new(2).await;
        let policy = |required, extra| fixed_policy(cri, required, extra);
        bench.set_policy(policy(true, ExtraLabels::default()));
        bench.ensure().await.unwrap();

        let label = extra("{ team = \"{image-ref}\" }");
        bench.set_policy(policy(false, label.clone()));
        assert_eq!(bench.ensure().await.unwrap().action, Action::None);
        bench.set_policy(policy(true, label));
        assert_eq!(bench.state().await, State::Unlabelled);
        assert_eq!(bench.ensure().await.unwrap().action, Action::Relabelled);
        for snapshot in bench.fake.all(EROFS) {
            assert_eq!(snapshot.labels["team"], NAME);
            assert_eq!(snapshot.labels.contains_key(IMAGE_REF), cri);
        }
        // Another value of the label does not change the state.
        bench.set_policy(policy(true, extra("{ team = \"storage\" }")));
        assert_eq!(bench.state().await, State::Ready);
    }
}

#[tokio::test]
async fn an_excluded_image_is_not_changed() {
    let mut bench = Bench::new(2).await;
    bench.commit_without_labels(2);
    bench.set_policy(Box::new(FixedPolicy(None, ExtraLabels::default())));
    let wants = [
        Want::Image(NAME.to_owned()),
        Want::Container {
            key: "c".to_owned(),
            chain: bench.chain_ids[1].clone(),
            name: None,
            left_to_containerd: false,
        },
    ];
    for want in wants {
        bench.fake.calls();
        let outcome = bench.engine.ensure(request(want)).outcome().await;
        assert!(outcome.unwrap_err().is_left_to_containerd());
        let calls = bench.fake.calls();
        let reads = ["get image", "list images", "read blob", "list snapshotters"];
        assert!(
            calls.iter().all(|call| reads.contains(&call.as_str())),
            "{calls:?}"
        );
    }
    let names = [NAME.to_owned()];
    let listing = bench.engine.list(EROFS).await.unwrap();
    let status = bench
        .engine
        .image_status(&bench.image, &names, &listing)
        .await;
    let status = status.unwrap();
    assert_eq!(
        (status.is_excluded, status.state),
        (true, State::Unanchored)
    );
}

/// A policy that replaces chains without labels.
struct ReplacePolicy;

impl LabelPolicy for ReplacePolicy {
    fn labelling(&self, snapshotter: &str, names: &[String]) -> Option<Labelling> {
        default_policy().labelling(snapshotter, names)
    }

    fn extra_labels(&self, _: &str) -> ExtraLabels {
        ExtraLabels::default()
    }

    fn profile(&self, snapshotter: &str) -> Option<Profile> {
        Profile::of(snapshotter)
    }

    fn repair(&self, _: &str) -> Option<Repair> {
        Some(Repair::Replace)
    }

    fn ctr(&self) -> Ctr {
        other_ctr()
    }
}

#[tokio::test]
async fn a_chain_whose_blobs_are_gone_is_not_removed() {
    for has_blobs in [true, false] {
        let mut bench = Bench::new(3).await;
        bench.commit_without_labels(3);
        let (fake, fallback) = (bench.fake.clone(), ContentFallback::default());
        let policy = Box::new(ReplacePolicy);
        bench.engine = Engine::new(fake, Role::Daemon, PARALLEL, policy, fallback);
        if has_blobs {
            assert_eq!(bench.ensure().await.unwrap().action, Action::Replaced);
            assert_eq!(bench.state().await, State::Ready);
        } else {
            bench.fake.discard(&sha256(b"layer 1"));
            let error = bench.ensure().await.unwrap_err();
            let second = matches!(*error, Error::Unavailable { position: 2, .. });
            assert!(second, "{error}");
            assert_eq!(bench.state().await, State::Unlabelled);
        }
        bench.assert_nothing_left();
    }
}
