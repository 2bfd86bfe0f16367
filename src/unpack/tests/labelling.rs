//! What labels are wanted, and layers that only some can unpack.

use super::*;
use crate::config::Config;

/// containerd decrypts; where it cannot, the error says so. No key is needed for the
/// layer that is there.
#[tokio::test]
async fn an_encrypted_layer_is_named_where_it_cannot_be_unpacked() {
    for (there, fault, words) in [
        (0, Some(ErrorKind::Other), Some("layer 1 of 2 (sha256:")),
        (0, Some(ErrorKind::Unreachable), Some("apply layer sha256:")),
        (0, None, None),
        (2, Some(ErrorKind::Other), None),
    ] {
        let bench = Bench::of("application/vnd.oci.image.layer.v1.tar+gzip+encrypted", 2).await;
        bench.unpacked_without_labels(there);
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

/// containerd may take the end of a stream processor that has failed for the end of the layer.
#[tokio::test]
async fn an_encrypted_layer_that_comes_out_empty_was_not_decrypted() {
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    for (media_type, comes_out, is_encrypted) in [
        (format!("{gzip}+encrypted"), sha256(b""), true),
        (format!("{gzip}+encrypted"), sha256(b"something"), false),
        (gzip.to_owned(), sha256(b""), false),
    ] {
        let bench = Bench::of(&media_type, 2).await;
        bench.fake.applies_as(&sha256(b"layer 1"), &comes_out);
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

/// As the containerd at hand leaves them; a chain that another version has left is labelled as well.
#[tokio::test]
async fn lineage_is_labelled_as_the_version_does() {
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
            bench.want(fixed(cri, true, ExtraLabels::default()));
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

            // containerd was upgraded, or taken back.
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
async fn extra_labels_are_part_of_labelled() {
    let extra = |text: &str| {
        let text = format!("[snapshotters.erofs]\nextra_labels = {text}\n");
        let config = Config::from_toml(&text, "test").unwrap();
        config.snapshotter(EROFS).extra_labels.clone()
    };
    for cri in [true, false] {
        let mut bench = Bench::new(2).await;
        let wanted = |required, extra| fixed(cri, required, extra);
        bench.want(wanted(true, ExtraLabels::default()));
        bench.ensure().await.unwrap();

        let label = extra("{ team = \"{image-ref}\" }");
        bench.want(wanted(false, label.clone()));
        assert_eq!(bench.ensure().await.unwrap().action, Action::None);
        bench.want(wanted(true, label));
        assert_eq!(bench.state().await, State::Unlabelled);
        assert_eq!(bench.ensure().await.unwrap().action, Action::Relabelled);
        for snapshot in bench.fake.all(EROFS) {
            assert_eq!(snapshot.labels["team"], NAME);
            assert_eq!(snapshot.labels.contains_key(IMAGE_REF), cri);
        }
        // Another value for the key is not another state.
        bench.want(wanted(true, extra("{ team = \"storage\" }")));
        assert_eq!(bench.state().await, State::Ready);
    }
}

#[tokio::test]
async fn what_is_left_out_is_not_touched() {
    let mut bench = Bench::new(2).await;
    bench.unpacked_without_labels(2);
    bench.want(Box::new(Fixed(None, ExtraLabels::default())));
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

/// Chains without labels are to be taken away and unpacked again.
struct Replaces;

impl LabelPolicy for Replaces {
    fn labelling(&self, snapshotter: &str, names: &[String]) -> Option<Labelling> {
        usual().labelling(snapshotter, names)
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
        elsewhere()
    }
}

#[tokio::test]
async fn a_chain_that_cannot_be_unpacked_again_is_not_taken_away() {
    for whole in [true, false] {
        let mut bench = Bench::new(3).await;
        bench.unpacked_without_labels(3);
        let (fake, fallback) = (bench.fake.clone(), ContentFallback::default());
        let policy = Box::new(Replaces);
        bench.engine = Engine::new(fake, Role::Daemon, PARALLEL, policy, fallback);
        if whole {
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
