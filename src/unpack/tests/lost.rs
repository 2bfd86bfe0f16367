//! A snapshotter that has lost its state: what is removed, what stays, and a fault in every call.

use super::*;
use crate::containerd::{Descriptor, Labels, Snapshot};
use crate::image::{Manifests, Platform};

/// An image whose layers are the lowest two of the bench's image and one of its own.
const OTHER: &str = "r.example/other:1";

const MEDIA_TYPE: &str = "application/vnd.oci.image.layer.v1.tar+gzip";

/// Makes a bench with a second image on the same base. Both images are ready, and then lost.
async fn lost() -> Bench {
    let bench = Bench::new(3).await;
    let layers = ["layer 0", "layer 1", "the other's own layer"];
    let layers = layers.map(|content| bench.fake.document(MEDIA_TYPE, content.as_bytes()));
    let _: Image = bench.fake.image_from(OTHER, &layers as &[Descriptor]);
    bench.ensure().await.unwrap();
    ensure_other(&bench).await.unwrap();
    bench.fake.lose_snapshots(EROFS);
    bench
}

async fn ensure_other(bench: &Bench) -> Outcome {
    let request = request(Want::Image(OTHER.to_owned()));
    bench.engine.ensure(request).outcome().await
}

#[tokio::test]
async fn a_lost_chain_is_made_again_although_another_image_has_the_same_base() {
    let bench = lost().await;
    assert_eq!(bench.state().await, State::Lost);
    let done = bench.ensure().await.unwrap();
    assert_eq!((done.found, done.action), (State::Lost, Action::Replaced));
    assert_eq!((done.layers_done, bench.state().await), (3, State::Ready));
    let done = ensure_other(&bench).await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Unpacked, 1));
    bench.assert_nothing_left();
    // The marks of the loss have gone.
    let listing = bench.engine.list(EROFS).await.unwrap();
    assert!(listing.has_anchors() && !listing.has_loss());
    assert_eq!(bench.fake.all(EROFS).len(), 4);
}

/// A chain without its anchor counts as missing until `Prepare` finds the record.
#[tokio::test]
async fn a_lost_chain_without_its_anchor_is_made_again() {
    let bench = lost().await;
    let key = format!("containerd.io/gc.ref.snapshot.{EROFS}");
    let none = [(key, String::new())].into();
    let config = bench.config();
    bench.fake.label_blob(config, none).await.unwrap();
    assert_eq!(bench.state().await, State::Missing);
    let done = bench.ensure().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Replaced, 3));
    assert_eq!(bench.state().await, State::Ready);
    bench.assert_nothing_left();
}

#[tokio::test]
async fn below_a_container_the_records_stay_until_it_is_gone() {
    let bench = lost().await;
    let top = bench.chain_ids.last().unwrap();
    bench.fake.activate(EROFS, "container", top);
    bench.fake.lose_snapshots(EROFS);
    for _ in 0..2 {
        let error = bench.ensure().await.unwrap_err();
        assert!(
            matches!(
                &*error,
                Error::InUse {
                    state: State::Lost,
                    ..
                }
            ),
            "{error}"
        );
        assert_eq!(bench.state().await, State::Lost);
    }
    bench.fake.collect_container(EROFS, "container");
    bench.engine.user_removed("container");
    assert_eq!(bench.ensure().await.unwrap().action, Action::Replaced);
    ensure_other(&bench).await.unwrap();
    bench.assert_nothing_left();
}

/// An image that was never unpacked shares the lost layers of one that was: it gets no anchor.
#[tokio::test]
async fn the_repair_of_a_loss_anchors_no_other_image() {
    for is_used in [false, true] {
        let bench = Bench::new(3).await;
        let layers = ["layer 0", "layer 1", "the other's own layer"];
        let layers = layers.map(|content| bench.fake.document(MEDIA_TYPE, content.as_bytes()));
        let other = bench.fake.image_from(OTHER, &layers as &[Descriptor]);
        let manifests = Manifests::new(Platform::of_this_node());
        let manifest = manifests.read(bench.fake.as_ref(), &other).await.unwrap();
        bench.ensure().await.unwrap();
        if is_used {
            bench.fake.activate(EROFS, "container", bench.top());
        }
        bench.fake.lose_snapshots(EROFS);
        assert_eq!(bench.ensure().await.is_err(), is_used);
        let config = bench.fake.blob(&manifest.config).await.unwrap();
        assert_eq!(config.labels, Labels::new(), "{is_used}");
        let expected = if is_used { State::Lost } else { State::Ready };
        assert_eq!(bench.state().await, expected);
    }
}

/// A process that is killed while the anchors are away leaves a mark, by which the next one restores them.
#[tokio::test(start_paused = true)]
async fn after_a_kill_the_anchors_of_other_images_are_restored() {
    let mut bench = lost().await;
    let other = Containerd::image(bench.fake.as_ref(), OTHER).await.unwrap();
    let manifests = Manifests::new(Platform::of_this_node());
    let manifest = manifests.read(bench.fake.as_ref(), &other).await.unwrap();
    let top = manifest.chain_id().unwrap();
    bench.fake.activate(EROFS, "container", top);
    bench.fake.lose_snapshots(EROFS);
    let anchor = format!("containerd.io/gc.ref.snapshot.{EROFS}");
    let anchors = async |bench: &Bench| {
        let config = bench.fake.blob(&manifest.config).await.unwrap();
        config.labels.get(&anchor).cloned()
    };
    // The first engine never goes on.
    let day = Duration::from_secs(24 * 3600);
    bench.fake.slow("delete lease", day);
    let _killed = bench.ask(NAME);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(anchors(&bench).await, None);
    bench.fake.slow("delete lease", Duration::ZERO);
    bench.set_policy(default_policy());
    bench.ensure().await.unwrap_err();
    assert_eq!(anchors(&bench).await.as_deref(), Some(top));
}

#[tokio::test]
async fn after_a_fault_in_any_call_the_next_ensure_heals() {
    let calls = [
        "list images",
        "stat snapshot",
        "look up record of snapshot",
        "delete lease",
        "look up blob",
        "create lease",
        "prepare snapshot",
        "commit snapshot",
        "label blob",
    ];
    for call in calls {
        for after in 0..4 {
            for kind in [ErrorKind::Other, ErrorKind::TimedOut] {
                let bench = lost().await;
                bench.fake.fail(call, after, kind);
                let first = bench.ensure().await;
                bench.fake.heal();
                let second = bench.ensure().await;
                assert!(
                    second.is_ok(),
                    "{call} {after} {kind:?}: {first:?}, {second:?}"
                );
                ensure_other(&bench).await.unwrap();
                assert_eq!(bench.state().await, State::Ready);
                bench.engine.sweep().await.unwrap();
                bench.assert_nothing_left();
            }
        }
    }
}

/// Whatever fails while the anchors are away: a chain that stays has its anchor afterwards.
#[tokio::test]
async fn after_a_fault_a_chain_below_a_container_has_its_anchor() {
    for call in ["delete lease", "create lease", "label blob", "add to lease"] {
        for after in 0..3 {
            let bench = lost().await;
            let top = bench.chain_ids.last().unwrap();
            bench.fake.activate(EROFS, "container", top);
            bench.fake.lose_snapshots(EROFS);
            bench.fake.fail(call, after, ErrorKind::TimedOut);
            bench.ensure().await.unwrap_err();
            bench.fake.heal();
            assert_eq!(bench.state().await, State::Lost, "{call} {after}");
        }
    }
}

/// The snapshotter has lost the upper layers only, and the blobs are gone.
#[tokio::test]
async fn what_is_left_of_another_image_stays() {
    let bench = lost().await;
    for chain_id in &bench.chain_ids[..2] {
        bench.fake.find(EROFS, chain_id);
    }
    bench.ensure().await.unwrap();
    bench.fake.collect_garbage();
    let names: Vec<_> = bench.fake.all(EROFS).into_iter().map(|s| s.name).collect();
    assert!(
        bench.chain_ids.iter().all(|id| names.contains(id)),
        "{names:?}"
    );
}

/// An error leaves the layers below the lost ones of another image anchored, also if it is not known whether its records
/// are gone.
#[tokio::test]
async fn after_a_fault_the_layers_that_are_left_stay() {
    let calls = [
        "stat snapshot",
        "look up record of snapshot",
        "delete lease",
        "create lease",
        "label blob",
    ];
    for call in calls {
        for after in 0..16 {
            let bench = Bench::new(3).await;
            let layers = ["the lower", "the upper"];
            let layers = layers.map(|content| bench.fake.document(MEDIA_TYPE, content.as_bytes()));
            let _: Image = bench.fake.image_from(OTHER, &layers as &[Descriptor]);
            ensure_other(&bench).await.unwrap();
            let is_lowest = |s: &&Snapshot| s.parent.is_none();
            let all = bench.fake.all(EROFS);
            let lowest = all.iter().find(is_lowest).unwrap().name.clone();
            bench.ensure().await.unwrap();
            bench.fake.lose_snapshots(EROFS);
            bench.fake.find(EROFS, &lowest);
            bench.fake.fail(call, after, ErrorKind::TimedOut);
            drop(bench.ensure().await);
            bench.fake.heal();
            bench.engine.sweep().await.unwrap();
            bench.fake.collect_garbage();
            let names: Vec<_> = bench.fake.all(EROFS).into_iter().map(|s| s.name).collect();
            assert!(names.contains(&lowest), "{call} {after}: {names:?}");
            bench.ensure().await.unwrap();
            ensure_other(&bench).await.unwrap();
            bench.assert_nothing_left();
        }
    }
}
