//! Tests of the engine with the in-memory containerd: every state, a fault in every call, and what a fault leaves
//! behind.

mod bench;
mod faults;
mod flights;
mod guest;
mod guest_mode;
mod labelling;
mod lost;
mod other_client;
mod parallel;
mod priorities;
mod properties;
mod purge;
mod replacements;
mod silent;

use std::time::Duration;

use crate::config::ExtraLabels;
use crate::containerd::fake::{Fake, sha256};
use crate::containerd::{Containerd, ErrorKind, Image, Resource};
use crate::ctr::Ctr;
use bench::Bench;

use super::{
    Action, ContentFallback, Engine, Error, LabelPolicy, Labelling, Outcome, Parallel, ParentChain,
    Profile, Repair, Request, Role, State, Urgency, Want,
};

const EROFS: &str = "erofs";
const NAME: &str = "r.example/app:1";
const IMAGE_REF: &str = "containerd.io/snapshot/cri.image-ref";

/// The limits of the default configuration.
pub(super) const PARALLEL: Parallel = Parallel {
    images: 2,
    layers: 3,
};

/// A policy that is the same for all images.
pub(super) struct FixedPolicy(Option<Labelling>, ExtraLabels);

impl LabelPolicy for FixedPolicy {
    fn labelling(&self, _: &str, _: &[String]) -> Option<Labelling> {
        self.0
    }

    fn extra_labels(&self, _: &str) -> ExtraLabels {
        self.1.clone()
    }

    fn profile(&self, _: &str) -> Option<Profile> {
        None
    }

    fn repair(&self, _: &str) -> Option<Repair> {
        None
    }

    fn ctr(&self) -> Ctr {
        other_ctr()
    }
}

/// Returns a namespace and a hosts directory that are not the defaults.
pub(super) fn other_ctr() -> Ctr {
    Ctr {
        namespace: "moby".to_owned(),
        hosts: "/srv/hosts".into(),
    }
}

fn fixed_policy(cri: bool, required: bool, extra: ExtraLabels) -> Box<FixedPolicy> {
    Box::new(FixedPolicy(Some(Labelling { cri, required }), extra))
}

/// Returns the default policy: all labels are required.
pub(super) fn default_policy() -> Box<FixedPolicy> {
    fixed_policy(true, true, ExtraLabels::default())
}

fn request(want: Want) -> Request {
    Request {
        want,
        snapshotter: EROFS.to_owned(),
        urgency: Urgency::Asked,
    }
}

/// The number of calls does not depend on the number of layers, as soon as the manifest is cached.
#[tokio::test]
async fn the_status_of_an_image_takes_two_listings() {
    let bench = Bench::new(40).await;
    for state in [State::Missing, State::Ready] {
        assert_eq!(bench.state().await, state);
        bench.fake.calls();
        assert_eq!(bench.state().await, state);
        let calls = bench.fake.calls();
        assert_eq!(calls, ["list snapshots of", "list"]);
        bench.ensure().await.unwrap();
    }
    bench.fake.discard(&sha256(b"layer 3"));
    assert_eq!(bench.state().await, State::Ready);
}

#[tokio::test]
async fn an_image_whose_missing_layer_has_no_blob_is_unavailable() {
    let bench = Bench::new(3).await;
    bench.fake.discard(&sha256(b"layer 1"));
    assert_eq!(bench.state().await, State::Unavailable);
    bench.commit_without_labels(1);
    assert_eq!(bench.state().await, State::Unavailable);
    bench.commit_without_labels(2);
    assert_eq!(bench.state().await, State::Partial);
}

#[tokio::test]
async fn every_state_becomes_ready() {
    for (unlabelled, expected, action, layers_done) in [
        (0, State::Missing, Action::Unpacked, 3),
        (2, State::Partial, Action::Unpacked, 3),
        (3, State::Unlabelled, Action::Relabelled, 3),
    ] {
        let bench = Bench::new(3).await;
        bench.commit_without_labels(unlabelled);
        assert_eq!(bench.state().await, expected);

        let done = bench.ensure().await.unwrap();
        assert_eq!(
            (done.action, done.layers_done, done.layers),
            (action, layers_done, 3)
        );
        assert_eq!(bench.state().await, State::Ready);
        bench.assert_nothing_left();
        for snapshot in bench.fake.all(EROFS) {
            assert_eq!(snapshot.labels[IMAGE_REF], NAME);
        }

        let again = bench.ensure().await.unwrap();
        assert_eq!((again.action, again.layers_done), (Action::None, 0));
    }
}

#[tokio::test]
async fn a_ready_chain_survives_garbage_collection() {
    let bench = Bench::new(3).await;
    bench.ensure().await.unwrap();
    bench.fake.collect_garbage();
    assert_eq!(bench.state().await, State::Ready);

    let unanchored = Bench::new(2).await;
    unanchored.commit_without_labels(2);
    unanchored.fake.collect_garbage();
    assert_eq!(unanchored.state().await, State::Missing);
}

#[tokio::test]
async fn an_unanchored_chain_is_anchored() {
    let bench = Bench::new(2).await;
    bench.ensure().await.unwrap();
    let config = bench.config();
    let label = [(
        "containerd.io/gc.ref.snapshot.erofs".to_owned(),
        "other".to_owned(),
    )];
    bench.fake.label_blob(config, label.into()).await.unwrap();
    assert_eq!(bench.state().await, State::Unanchored);
    let done = bench.ensure().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Anchored, 0));
    assert_eq!(bench.state().await, State::Ready);
}

#[tokio::test]
async fn a_container_of_a_ready_image_takes_one_round_trip() {
    let bench = Bench::new(3).await;
    let top = bench.chain_ids.last().unwrap();
    bench.commit_without_labels(3);
    bench.fake.activate(EROFS, "c1", top);

    let parent_chain = bench
        .engine
        .parent_chain(EROFS, "c1", Some(NAME), false)
        .await
        .unwrap();
    let ParentChain::Unknown { chain } = parent_chain else {
        panic!("{parent_chain:?}");
    };
    let want = Want::Container {
        key: "c1".to_owned(),
        chain,
        name: Some(NAME.to_owned()),
        left_to_containerd: false,
    };
    let done = bench.engine.ensure(request(want)).outcome().await.unwrap();
    assert_eq!(done.action, Action::Relabelled);

    bench.fake.activate(EROFS, "c2", top);
    bench.fake.calls();
    let parent_chain = bench
        .engine
        .parent_chain(EROFS, "c2", Some(NAME), false)
        .await
        .unwrap();
    assert_eq!(parent_chain, ParentChain::Ready);
    // Two calls, sent at the same time.
    assert_eq!(bench.fake.calls(), ["stat snapshot", "stat snapshot"]);

    // Another client removes the chain and makes it again: it no longer counts as ready.
    for chain_id in bench.chain_ids.iter().rev() {
        for key in ["c1", "c2"] {
            let _ = bench.fake.remove(EROFS, key).await;
        }
        bench.fake.remove(EROFS, chain_id).await.unwrap();
    }
    bench.commit_without_labels(3);
    bench.fake.activate(EROFS, "c3", top);
    let parent_chain = bench
        .engine
        .parent_chain(EROFS, "c3", Some(NAME), false)
        .await
        .unwrap();
    assert!(
        matches!(parent_chain, ParentChain::Unknown { .. }),
        "{parent_chain:?}"
    );
}

/// On a node with many images, the list takes most of the time of such a request.
#[tokio::test]
async fn a_container_of_an_image_with_a_name_lists_no_images() {
    let bench = Bench::new(3).await;
    bench.commit_without_labels(3);
    for key in ["c1", "c2"] {
        let want = Want::Container {
            key: key.to_owned(),
            chain: bench.chain_ids[2].clone(),
            name: Some(NAME.to_owned()),
            left_to_containerd: false,
        };
        bench.engine.ensure(request(want)).outcome().await.unwrap();
        assert!(bench.fake.subjects("list images").is_empty());
        bench.fake.calls();
    }
}

#[tokio::test]
async fn the_chain_identifies_the_image_if_the_name_is_wrong() {
    let bench = Bench::new(2).await;
    bench.fake.image("r.example/other:1", 1);
    bench.commit_without_labels(2);
    let chain = bench.chain_ids[1].clone();
    for name in [Some("r.example/other:1"), Some("nope:1"), None] {
        let want = Want::Container {
            key: "c".to_owned(),
            chain: chain.clone(),
            name: name.map(str::to_owned),
            left_to_containerd: false,
        };
        bench.engine.ensure(request(want)).outcome().await.unwrap();
        let top = bench.fake.stat(EROFS, &chain).await.unwrap();
        assert_eq!(top.labels[IMAGE_REF], NAME);
    }

    let want = Want::Container {
        key: "c".to_owned(),
        chain: "sha256:unknown".to_owned(),
        name: Some(NAME.to_owned()),
        left_to_containerd: false,
    };
    let error = bench
        .engine
        .ensure(request(want))
        .outcome()
        .await
        .unwrap_err();
    assert!(matches!(*error, Error::NoImage { .. }), "{error}");
}

#[tokio::test]
async fn an_image_without_a_reference_gets_no_cri_label() {
    let bench = Bench::new(1).await;
    let id = sha256(b"an image id");
    let image = bench.fake.image(&id, 1);
    let want = || request(Want::Image(image.name.clone()));
    let error = bench.engine.ensure(want()).outcome().await.unwrap_err();
    assert!(matches!(*error, Error::NoName { .. }), "{error}");
    let remedy = format!("`ctr -n moby images tag {id} NAME`");
    assert!(error.to_string().contains(&remedy), "{error}");
    bench.assert_nothing_left();

    let engine = Engine::new(
        bench.fake.clone(),
        Role::Command,
        PARALLEL,
        fixed_policy(false, true, ExtraLabels::default()),
        ContentFallback::default(),
    );
    engine.ensure(want()).outcome().await.unwrap();
    let labels = bench.fake.all(EROFS).remove(0).labels;
    let keys: Vec<_> = labels.keys().map(String::as_str).collect();
    assert_eq!(keys, ["containerd.io/snapshot.ref"]);
}

#[tokio::test]
async fn an_encrypted_layer_gets_a_payload_if_the_keys_belong_to_the_node() {
    let gzip = "application/vnd.oci.image.layer.v1.tar+gzip";
    let encrypted = format!("{gzip}+encrypted");
    let both = ["tar", "tar.gzip"].map(|kind| format!("io.containerd.ocicrypt.decoder.v1.{kind}"));
    for (media_type, hands_over, expected) in [
        (encrypted.as_str(), true, &both[..]),
        (&encrypted, false, &[]),
        (gzip, true, &[]),
    ] {
        let bench = Bench::of(media_type, 1).await;
        bench.engine.hand_keys_over(hands_over);
        bench.ensure().await.unwrap();
        assert_eq!(bench.fake.payloads(), [expected], "{media_type}");
    }
}
