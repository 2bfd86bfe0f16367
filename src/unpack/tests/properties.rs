//! What holds for every node, image and fault: `ensure` ends `ready` or says rightly why not, takes
//! nothing away that is in use, leaves nothing behind, and goes on from wherever it was broken off.

mod fault;
mod node;
mod planned;
mod world;

use std::time::Duration;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;

use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, SnapshotKind};
use crate::image::Manifest;

use super::super::chain::profile::is_proxied;
use super::super::{Action, Error, Repair, State};
use fault::{Fault, KNOWN_CALLS, faults, known_calls, nth_of};
use node::{Node, OVERLAYFS, SOMEBODY, Snapshots};
use world::{World, worlds};

/// On a clock that runs ahead where nothing is to be done.
fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

fn is_temporary(name: &str) -> bool {
    name.starts_with("extract-") || name.starts_with("nri-unpack-view") || name.contains("probe")
}

impl Node {
    /// No lease, no temporary snapshot, no unfinished blob.
    fn assert_nothing_left(&self) {
        assert_eq!(self.fake.lease_ids(), [SOMEBODY]);
        assert_eq!(self.fake.ingests(), Vec::<String>::new());
        for snapshotter in [self.snapshotter, OVERLAYFS] {
            for snapshot in self.fake.all(snapshotter) {
                assert!(!is_temporary(&snapshot.name), "{snapshot:?}");
            }
        }
    }

    /// What the sweep does not see either is without a parent, which it cannot harm, and garbage.
    fn assert_only_garbage_left(&self, fault: Fault, call: &str) {
        assert_eq!(self.fake.lease_ids(), [SOMEBODY], "{call}");
        // What is not finished has no other way than to go with its lease.
        let hindered = fault.hinders_tidying(call);
        assert!(hindered || self.fake.ingests().is_empty(), "{call}");
        for snapshotter in [self.snapshotter, OVERLAYFS] {
            for snapshot in self.fake.all(snapshotter) {
                let temporary = is_temporary(&snapshot.name);
                assert!(
                    !temporary || snapshot.parent.is_none(),
                    "{call}: {snapshot:?}"
                );
            }
        }
    }

    /// What an `ensure` of one image may change: only that image's chain, of which nothing may be
    /// taken away that something else stands on, or that another image needs.
    fn assert_only_touched(&self, world: &World, image: usize, before: &Snapshots) {
        let after = self.snapshots();
        let (_, manifest) = &self.images[image];
        for (name, was) in before {
            let is_mine = manifest.layers.iter().any(|layer| layer.chain_id == *name);
            let is = after.get(name);
            let is = is.filter(|is| is.created_at == was.created_at);
            match is {
                Some(is) if is_mine => {
                    let kept = was.labels.keys().all(|key| is.labels.contains_key(key));
                    assert!(kept, "{was:?} has become {is:?}");
                    assert_eq!(is.parent, was.parent);
                }
                Some(is) => assert_eq!(is, was),
                None => {
                    assert!(is_mine, "{was:?} was taken away");
                    // Garbage collection asks for labels, not for images.
                    let collected = world.collected.is_some();
                    assert!(collected || !self.ends_another(image, name), "{was:?}");
                    assert!(collected || !is_proxied(&was.labels), "{was:?}");
                    let users = before.values().filter(|s| s.parent.as_ref() == Some(name));
                    for user in users {
                        let stays = after.get(&user.name);
                        let stays = stays.is_some_and(|stays| stays.created_at == user.created_at);
                        assert!(!stays, "{was:?} was taken away below {user:?}");
                    }
                }
            }
        }
        for snapshot in after.values() {
            let parent = snapshot.parent.as_ref();
            assert!(
                parent.is_none_or(|parent| after.contains_key(parent)),
                "{snapshot:?} stands on nothing"
            );
            let active = snapshot.kind != SnapshotKind::Committed;
            assert!(!active || before.contains_key(&snapshot.name));
        }
    }

    /// Whether something else than the image itself holds the top of its chain.
    async fn is_top_held(&self, image: usize, before: &Snapshots) -> bool {
        let Some(top) = self.images[image].1.chain_id() else {
            return false;
        };
        let stands = before.values().any(|s| s.parent.as_deref() == Some(top));
        // Where the chain has to be collected to go.
        let leased = self.fake.lease_resources(SOMEBODY).await.unwrap();
        stands || self.ends_another(image, top) || leased.iter().any(|held| held.id == top)
    }

    /// Whether another image than this ends at the layer.
    fn ends_another(&self, image: usize, chain_id: &str) -> bool {
        let others = self.images.iter().enumerate();
        let mut others = others.filter(|(other, _)| *other != image);
        others.any(|(_, (_, other))| other.chain_id() == Some(chain_id))
    }

    /// Whether the world is as the error says.
    async fn assert_justified(
        &self,
        world: &World,
        image: usize,
        before: &Snapshots,
        error: &Error,
    ) {
        let (_, manifest) = &self.images[image];
        let state = self.state(image).await;
        assert_ne!(state, State::Ready, "{error}");
        let is_replaced = world.nydus || world.repair == Some(Repair::Replace);
        match error {
            Error::InUse {
                state: said, onto, ..
            } => {
                assert_eq!(*said, state, "{error}");
                assert!(is_replaced && self.is_top_held(image, before).await);
                let now = self.snapshots();
                for layer in &manifest.layers {
                    assert_eq!(now.get(&layer.chain_id), before.get(&layer.chain_id));
                }
                assert_eq!(onto.is_some(), world.nydus, "{error}");
                let anchors = self.labels_of(&manifest.config).await;
                if let Some(onto) = onto {
                    assert!(is_proxied(&now[onto].labels), "{onto}");
                    assert!(anchors.values().any(|anchored| anchored == onto));
                }
            }
            Error::Unavailable {
                digest, position, ..
            } => {
                assert!(!world.nydus, "{error}");
                assert!(self.fake.blob(digest).await.is_err(), "{error}");
                assert_eq!(*digest, manifest.layers[position - 1].blob.digest);
                self.assert_unavailable(manifest, position - 1, before, world, is_replaced);
            }
            other => panic!("{other}"),
        }
    }

    /// That the layer has to be unpacked, and no means is there for it.
    fn assert_unavailable(
        &self,
        manifest: &Manifest,
        i: usize,
        before: &Snapshots,
        world: &World,
        is_replaced: bool,
    ) {
        let chain_id = &manifest.layers[i].chain_id;
        if before.contains_key(chain_id) {
            assert!(is_replaced, "it was there");
            let now = self.snapshots();
            for layer in &manifest.layers {
                assert_eq!(now.get(&layer.chain_id), before.get(&layer.chain_id));
            }
            return;
        }
        let elsewhere = self.fake.all(OVERLAYFS);
        let is_elsewhere = elsewhere.iter().any(|layer| layer.name == *chain_id);
        assert!(!(world.can_pull() || world.can_rebuild() && is_elsewhere));
    }

    /// `ensure`, and all that has to hold after it.
    async fn ensure_and_check(&self, world: &World, image: usize) {
        if world.collected.is_some() {
            // To replace a chain may take a garbage collection: what is garbage now is not its affair.
            self.fake.collect_garbage();
        }
        let (before, ready) = (self.snapshots(), self.ready().await);
        let manifest = &self.images[image].1.digest;
        let kept = self.labels_of(manifest).await;
        let outcome = self.ensure(image).await;
        self.assert_nothing_left();
        self.assert_only_touched(world, image, &before);
        assert_eq!(self.labels_of(manifest).await, kept);
        match outcome {
            Ok(done) => {
                assert_eq!(ready.contains(&image), done.action == Action::None);
                assert_eq!(self.state(image).await, State::Ready);
                self.fake.calls();
                let again = self.ensure(image).await.unwrap();
                assert_eq!((again.action, again.layers_done), (Action::None, 0));
                let calls = self.fake.calls();
                assert!(!Fake::writes(&calls), "{calls:?}");
            }
            Err(e) => self.assert_justified(world, image, &before, &e).await,
        }
        let now = self.ready().await;
        assert!(
            ready.iter().all(|i| now.contains(i)),
            "{ready:?} were ready, {now:?} are"
        );
    }
}

proptest! {
    /// One image after the other, on the same node.
    #[test]
    fn ensure_makes_ready_what_can_be(world in worlds()) {
        run(async {
            let node = world.build().await;
            for image in 0..node.images.len() {
                node.ensure_and_check(&world, image).await;
            }
            let ready = node.ready().await;
            node.fake.collect_garbage();
            assert_eq!(node.ready().await, ready, "after a garbage collection");
        });
    }

    /// All images at the same time, on a node where every kind of call takes another time.
    #[test]
    fn those_who_share_layers_do_not_get_into_each_others_way(
        world in worlds(),
        times in vec(0..9_u64, KNOWN_CALLS),
    ) {
        run(async {
            let node = world.build().await;
            for (call, time) in known_calls().zip(times) {
                node.fake.slow(call, Duration::from_millis(time));
            }
            let all = (0..node.images.len()).map(|image| node.ensure(image));
            for outcome in futures::future::join_all(all).await {
                let justified = |e| matches!(e, &Error::InUse { .. } | &Error::Unavailable { .. });
                assert!(outcome.as_ref().err().is_none_or(|e| justified(e)), "{outcome:?}");
            }
            node.assert_nothing_left();
            for image in 0..node.images.len() {
                node.ensure_and_check(&world, image).await;
            }
        });
    }

    /// A fault in any call leaves nothing, and the next `ensure` ends as the first would have.
    #[test]
    fn whatever_fails_the_next_ensure_finishes(
        world in worlds(),
        image in any::<Index>(),
        in_a_write in any::<bool>(),
        nth in any::<Index>(),
        fault in faults(),
    ) {
        let image = image.index(world.images.len());
        run(async {
            let unharmed = world.build().await;
            let expected = unharmed.ensure(image).await;
            let calls = unharmed.fake.calls();
            let nth = nth_of(&calls, in_a_write, nth);
            let call = &calls[nth];

            let node = world.build().await;
            let before = node.snapshots();
            fault.at(&node.fake, &calls[..nth], call);
            let broken = node.ensure(image).await;
            node.fake.heal();
            if fault.hinders_tidying(call) {
                node.engine.sweep().await.unwrap();
            }
            node.assert_only_garbage_left(fault, call);
            node.assert_only_touched(&world, image, &before);
            let state = node.state(image).await;
            assert!(broken.is_err() || state == State::Ready, "{call} {nth}: {state}");

            let second = node.ensure(image).await;
            match (&expected, &second) {
                (Ok(_), Ok(_)) => assert_eq!(node.state(image).await, State::Ready),
                (Err(expected), Err(second)) => assert_eq!(
                    std::mem::discriminant(&**expected),
                    std::mem::discriminant(&**second),
                    "{call} {nth}: {expected}, {second}"
                ),
                _ => panic!("{call} {nth}: {expected:?}; {broken:?}; {second:?}"),
            }
            node.fake.collect_garbage();
            if !fault.hinders_tidying(call) {
                node.assert_nothing_left();
            }
            if second.is_ok() {
                assert_eq!(node.state(image).await, State::Ready, "after a garbage collection");
            }
        });
    }
}
