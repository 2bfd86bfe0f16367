//! Property tests over random nodes, images and faults: `ensure` makes an image ready or returns the correct error,
//! removes nothing that is in use, leaves nothing behind, and succeeds when it is repeated after a fault.

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
use super::super::snapshotter::guest_pull::is_private;
use super::super::{Action, Error, Repair, State};
use fault::{Fault, KNOWN_CALLS, faults, known_calls, nth_of};
use node::{Node, OTHER_CLIENT, OVERLAYFS, Snapshots};
use world::{World, worlds};

/// Runs a test on a paused clock, which advances when all tasks wait.
fn run(test: impl Future<Output = ()>) {
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_time().start_paused(true).build().unwrap();
    runtime.block_on(test);
}

fn is_temporary(name: &str) -> bool {
    name.starts_with("extract-") || name.starts_with("nri-unpack-view") || name.contains("probe")
}

impl Node {
    /// Asserts that no lease of the plugin, temporary snapshot or unfinished blob remains.
    fn assert_nothing_left(&self) {
        assert_eq!(self.fake.lease_ids(), [OTHER_CLIENT]);
        assert_eq!(self.fake.ingests(), Vec::<String>::new());
        for snapshotter in [self.snapshotter, OVERLAYFS] {
            for snapshot in self.fake.all(snapshotter) {
                assert!(!is_temporary(&snapshot.name), "{snapshot:?}");
            }
        }
    }

    /// Asserts that only garbage remains: temporary snapshots that the sweep does not find have no parent, so they keep
    /// no other layer.
    fn assert_only_garbage_left(&self, fault: Fault, call: &str) {
        assert_eq!(self.fake.lease_ids(), [OTHER_CLIENT], "{call}");
        // An unfinished blob is removed only with its lease.
        let prevented = fault.prevents_cleanup(call);
        assert!(prevented || self.fake.ingests().is_empty(), "{call}");
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

    /// Asserts that an `ensure` of one image has changed only that image's chain, and removed no layer that another
    /// snapshot or another image needs.
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
                    assert!(is_mine, "{was:?} was removed");
                    // Garbage collection follows labels, not images.
                    let collected = world.collected.is_some();
                    assert!(collected || !self.ends_another(image, name), "{was:?}");
                    assert!(collected || !is_proxied(&was.labels), "{was:?}");
                    let users = before.values().filter(|s| s.parent.as_ref() == Some(name));
                    for user in users {
                        let stays = after.get(&user.name);
                        let stays = stays.is_some_and(|stays| stays.created_at == user.created_at);
                        assert!(!stays, "{was:?} was removed below {user:?}");
                    }
                }
            }
        }
        for snapshot in after.values() {
            let parent = snapshot.parent.as_ref();
            assert!(
                parent.is_none_or(|parent| after.contains_key(parent)),
                "the parent of {snapshot:?} does not exist"
            );
            let active = snapshot.kind != SnapshotKind::Committed;
            assert!(!active || before.contains_key(&snapshot.name));
        }
    }

    /// Whether a snapshot, a lease or another image holds the top layer of an image's chain.
    async fn is_top_held(&self, image: usize, before: &Snapshots) -> bool {
        let Some(top) = self.images[image].1.chain_id() else {
            return false;
        };
        let has_children = before.values().any(|s| s.parent.as_deref() == Some(top));
        // Another client's lease keeps the chain from garbage collection.
        let leased = self.fake.lease_resources(OTHER_CLIENT).await.unwrap();
        has_children || self.ends_another(image, top) || leased.iter().any(|held| held.id == top)
    }

    /// Whether the layer is the top layer of another image.
    fn ends_another(&self, image: usize, chain_id: &str) -> bool {
        let others = self.images.iter().enumerate();
        let mut others = others.filter(|(other, _)| *other != image);
        others.any(|(_, (_, other))| other.chain_id() == Some(chain_id))
    }

    /// Asserts that the error describes the node correctly.
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
                state: reported, ..
            } => {
                assert_eq!(*reported, state, "{error}");
                assert!(is_replaced && self.is_top_held(image, before).await);
                let now = self.snapshots();
                for layer in &manifest.layers {
                    assert_eq!(now.get(&layer.chain_id), before.get(&layer.chain_id));
                }
                // No container is being created.
                assert!(!now.keys().any(|name| is_private(name)), "{error}");
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

    /// Asserts that the layer has to be unpacked, and that no configured fallback has its content.
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
            assert!(is_replaced, "the layer existed");
            let now = self.snapshots();
            for layer in &manifest.layers {
                assert_eq!(now.get(&layer.chain_id), before.get(&layer.chain_id));
            }
            return;
        }
        let in_overlayfs = self.fake.all(OVERLAYFS);
        let is_in_overlayfs = in_overlayfs.iter().any(|layer| layer.name == *chain_id);
        assert!(!(world.can_pull() || world.can_rebuild() && is_in_overlayfs));
    }

    /// Runs `ensure` and asserts everything that has to hold after it.
    async fn ensure_and_check(&self, world: &World, image: usize) {
        if world.collected.is_some() {
            // A replacement may run garbage collection, so existing garbage is collected before.
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
    /// Runs `ensure` for one image after another on the same node.
    #[test]
    fn ensure_makes_an_image_ready_or_returns_a_correct_error(world in worlds()) {
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

    /// Runs `ensure` for all images at the same time. Each kind of call has another duration.
    #[test]
    fn images_that_share_layers_can_be_made_ready_at_the_same_time(
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

    /// After a fault in any call nothing is left, and the next `ensure` has the outcome of one without a fault.
    #[test]
    fn an_ensure_after_a_fault_has_the_outcome_of_one_without_a_fault(
        world in worlds(),
        image in any::<Index>(),
        in_a_write in any::<bool>(),
        nth in any::<Index>(),
        fault in faults(),
    ) {
        let image = image.index(world.images.len());
        run(async {
            let without_fault = world.build().await;
            let expected = without_fault.ensure(image).await;
            let calls = without_fault.fake.calls();
            let nth = nth_of(&calls, in_a_write, nth);
            let call = &calls[nth];

            let node = world.build().await;
            let before = node.snapshots();
            fault.inject(&node.fake, &calls[..nth], call);
            let broken = node.ensure(image).await;
            node.fake.heal();
            if fault.prevents_cleanup(call) {
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
            if !fault.prevents_cleanup(call) {
                node.assert_nothing_left();
            }
            if second.is_ok() {
                assert_eq!(node.state(image).await, State::Ready, "after a garbage collection");
            }
        });
    }
}
