//! Tests of the parallel unpack of layers: its result equals that of a sequential unpack, also after faults, races and
//! stops.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;

use crate::containerd::fake::{Change, Fake, sha256};
use crate::containerd::{Containerd, ErrorKind, Snapshot, SnapshotKind};

use super::super::{
    Action, ContentFallback, Engine, Error, FallbackSource, Parallel, Registries, Request, Role,
    State, Ticket, Urgency, Want,
};
use super::{NAME, PARALLEL, default_policy};

const OVERLAYFS: &str = "overlayfs";
const VERSION: &str = "2.2.0";
const FILES: [&str; 3] = ["a", "b", "c"];

/// Returns layers of which each adds a file and deletes one that a lower layer has added.
fn changes(layers: usize) -> Vec<Vec<Change>> {
    let layer = |i: usize| {
        let put = Change::Put(FILES[i % 3], format!("from layer {i}"));
        vec![put, Change::Delete(FILES[(i + 1) % 3])]
    };
    (0..layers).map(layer).collect()
}

/// A bench of a snapshotter that may be able to rebase.
struct Bench {
    bench: super::Bench,
}

impl Deref for Bench {
    type Target = super::Bench;

    fn deref(&self) -> &Self::Target {
        &self.bench
    }
}

impl Bench {
    /// Makes a bench with overlayfs, which can rebase.
    async fn new(layers: usize) -> Self {
        Self::with(layers, OVERLAYFS, true, PARALLEL).await
    }

    async fn with(
        layers: usize,
        snapshotter: &'static str,
        rebases: bool,
        parallel: Parallel,
    ) -> Self {
        let fake = Fake::default();
        if rebases {
            fake.can_rebase(snapshotter, VERSION);
        }
        let image = fake.image_with(NAME, &changes(layers));
        let bench = super::Bench::on(fake, image, snapshotter, parallel).await;
        Self { bench }
    }

    fn blob(&self, layer: usize) -> &str {
        &self.manifest.layers[layer].blob.digest
    }

    /// Unpacks the lowest layers, as those of another image.
    async fn unpack_base(&self, layers: usize) {
        self.fake.image_with("r.example/base:1", &changes(layers));
        let mut ticket = self.ask("r.example/base:1");
        ticket.outcome().await.unwrap();
    }

    /// Asserts that the lowest `layers` layers of the chain are committed, each on the one below, and that nothing else
    /// and no lease remains.
    fn assert_committed(&self, layers: usize, context: &str) {
        assert!(self.fake.lease_ids().is_empty(), "{context}");
        let found = self.fake.all(self.snapshotter);
        assert_eq!(found.len(), layers, "{context}: {found:?}");
        let mut below = None;
        for chain_id in self.chain_ids.iter().take(layers).cloned() {
            let layer = found.iter().find(|snapshot| snapshot.name == chain_id);
            let layer = layer.unwrap_or_else(|| panic!("{context}: no {chain_id}"));
            assert_eq!(layer.kind, SnapshotKind::Committed, "{context}");
            assert_eq!(layer.parent, below, "{context}");
            below = Some(chain_id);
        }
    }

    /// Asserts that the whole chain is ready and has the expected files.
    async fn assert_ready(&self, context: &str) {
        assert_eq!(self.state().await, State::Ready, "{context}");
        let layers = self.manifest.layers.len();
        self.assert_committed(layers, context);
        let mut files = BTreeMap::new();
        for change in changes(layers).into_iter().flatten() {
            match change {
                Change::Put(name, content) => files.insert(name.to_owned(), content),
                Change::Delete(name) => files.remove(name),
            };
        }
        let top = self.manifest.chain_id().unwrap();
        assert_eq!(self.fake.tree(self.snapshotter, top), files, "{context}");
    }
}

fn ask(engine: &Arc<Engine>, name: &str, snapshotter: &str) -> Ticket {
    engine.ensure(Request {
        want: Want::Image(name.to_owned()),
        snapshotter: snapshotter.to_owned(),
        urgency: Urgency::Asked,
    })
}

/// Removes the creation times, so that two chains can be compared.
fn without_times(snapshots: Vec<Snapshot>) -> Vec<Snapshot> {
    let without_time = |snapshot| Snapshot {
        created_at: None,
        ..snapshot
    };
    snapshots.into_iter().map(without_time).collect()
}

#[tokio::test(start_paused = true)]
async fn a_parallel_unpack_has_the_result_of_a_sequential_one() {
    for snapshotter in [OVERLAYFS, "erofs"] {
        for existing in [0, 1, 3, 5] {
            let one = Bench::with(6, snapshotter, false, PARALLEL).await;
            let all = Bench::with(6, snapshotter, true, PARALLEL).await;
            for bench in [&one, &all] {
                if existing > 0 {
                    bench.unpack_base(existing).await;
                }
            }
            let done = all.ensure().await.unwrap();
            assert_eq!(done, one.ensure().await.unwrap());
            let unlabelled = if existing > 0 { 1 } else { 0 };
            // The label of the base image's top layer names no layer above it, so it may be relabelled.
            assert!(done.layers_done - (6 - existing) <= unlabelled, "{done:?}");
            let made = without_times(all.fake.all(snapshotter));
            assert_eq!(made, without_times(one.fake.all(snapshotter)));
            for digest in all.manifest.layers.iter().map(|l| &l.blob.digest) {
                let (all, one) = (all.fake.blob(digest), one.fake.blob(digest));
                assert_eq!(all.await.unwrap(), one.await.unwrap());
            }
            let context = format!("{snapshotter}, {existing} layers exist");
            one.assert_ready(&context).await;
            all.assert_ready(&context).await;
            assert_eq!(one.fake.most_applied_at_once(), 1);
            // A single layer is prepared on its parent.
            let expected = PARALLEL.layers.min(existing.max(6 - existing));
            assert_eq!(all.fake.most_applied_at_once(), expected, "{context}");
        }
    }
}

/// Returns the calls that make the layers.
fn made(fake: &Fake) -> Vec<String> {
    let calls = fake.calls().into_iter();
    let made = ["prepare snapshot", "apply layer", "commit snapshot"];
    calls.filter(|call| made.contains(&call.as_str())).collect()
}

#[tokio::test(start_paused = true)]
async fn without_the_rebase_capability_layers_are_unpacked_sequentially() {
    let sequential = ["prepare snapshot", "apply layer", "commit snapshot"].repeat(4);
    let bench = Bench::with(4, OVERLAYFS, false, PARALLEL).await;
    bench.ensure().await.unwrap();
    assert_eq!(made(&bench.fake), sequential);
    bench.assert_ready("not listed").await;

    let bench = Bench::new(4).await;
    // A proxy plugin may leave images to a guest: nothing is unpacked while the kind of the snapshotter is not known.
    bench.fake.fail("list snapshotters", 0, ErrorKind::Other);
    bench.fake.fail("list snapshotters", 0, ErrorKind::Other);
    bench.ensure().await.unwrap_err();
    assert_eq!(made(&bench.fake), [""; 0]);
    bench.ensure().await.unwrap();

    let bench = Bench::new(4).await;
    bench.fake.can_rebase(OVERLAYFS, "2.1.9");
    bench.ensure().await.unwrap();
    assert_eq!(made(&bench.fake), sequential);

    let one = Parallel {
        images: 2,
        layers: 1,
    };
    let bench = Bench::with(4, OVERLAYFS, true, one).await;
    bench.ensure().await.unwrap();
    assert_eq!(bench.fake.most_applied_at_once(), 1);
}

#[tokio::test(start_paused = true)]
async fn capabilities_are_read_again_after_a_restart_of_containerd() {
    let bench = Bench::new(4).await;
    bench.unpack_base(3).await;
    assert_eq!(bench.fake.most_applied_at_once(), 3);
    bench.fake.image_with("r.example/other:1", &changes(7)[1..]);
    bench.fake.cannot_rebase(OVERLAYFS);
    bench.engine.forget();
    bench.ask("r.example/other:1").outcome().await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn guest_pulled_layers_are_prepared_on_their_parents() {
    let bench = Bench::with(3, "nydus", true, PARALLEL).await;
    bench.ensure().await.unwrap();
    bench.assert_committed(3, "nydus");
    assert_eq!(bench.state().await, State::Ready);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// The durations of the applies are random.
    #[test]
    fn layers_are_committed_in_their_order(
        times in proptest::collection::vec(1..1000_u64, 2..12),
        layers in 2..6_usize,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(async {
            let parallel = Parallel { images: 1, layers };
            let bench = Bench::with(times.len(), OVERLAYFS, true, parallel).await;
            for (i, time) in times.iter().enumerate() {
                bench.fake.applies_in(bench.blob(i), Duration::from_millis(*time));
            }
            let began = tokio::time::Instant::now();
            let mut ticket = bench.ask(NAME);
            let mut ready = vec![];
            while ticket.changed().await {
                ready.push(ticket.progress().ready_layers);
            }
            let done = ticket.outcome().await.unwrap();
            prop_assert_eq!((done.action, done.layers_done), (Action::Unpacked, times.len()));
            prop_assert!(ready.is_sorted(), "{:?}", ready);
            prop_assert_eq!(ready.last(), Some(&times.len()));
            prop_assert_eq!(&bench.fake.subjects("commit snapshot"), &bench.chain_ids);
            let most = bench.fake.most_applied_at_once();
            prop_assert_eq!(most, layers.min(times.len()));
            // No permit is unused while a layer waits for its apply.
            let (all, longest) = (times.iter().sum::<u64>(), *times.iter().max().unwrap());
            let bound = all / layers as u64 + longest + 1;
            prop_assert!(began.elapsed() <= Duration::from_millis(bound));
            bench.assert_ready("random times").await;
            Ok(())
        })?;
    }
}

#[tokio::test(start_paused = true)]
async fn the_limits_of_images_and_layers_apply_to_the_whole_process() {
    for (images, layers, expected) in [(3, 2, 2), (3, 3, 3), (3, 8, 8), (3, 64, 12), (1, 64, 4)] {
        let bench = Bench::with(1, OVERLAYFS, true, Parallel { images, layers }).await;
        let names = ["r.example/1:1", "r.example/2:1", "r.example/3:1"];
        for (i, name) in names.iter().enumerate() {
            // The images share no layers.
            bench.fake.image_with(name, &changes(4 * (i + 1))[4 * i..]);
        }
        let mut tickets: Vec<_> = names.map(|name| bench.ask(name)).into();
        // This snapshotter unpacks sequentially, but its image counts.
        tickets.push(ask(&bench.engine, names[0], "native"));
        for mut ticket in tickets {
            assert_eq!(ticket.outcome().await.unwrap().layers_done, 4);
        }
        let most = bench.fake.most_applied_at_once();
        // The fourth image applies one layer at a time.
        let range = expected..=layers.min(expected + 1);
        assert!(range.contains(&most), "{images} {layers}: {most}");
        assert!(bench.fake.lease_ids().is_empty());
    }
}

#[tokio::test(start_paused = true)]
async fn after_a_fault_in_any_call_nothing_is_left_and_the_next_ensure_succeeds() {
    let calls = [
        "list snapshotters",
        "ask version",
        "list images",
        "read blob",
        "stat snapshot",
        "look up blob",
        "create lease",
        "list extraction snapshots of",
        "add to lease",
        "prepare snapshot",
        "apply layer",
        "commit snapshot",
        "label blob",
    ];
    for call in calls {
        for after in 0..6 {
            for fault in [
                Some(ErrorKind::Other),
                Some(ErrorKind::NotFound),
                Some(ErrorKind::AlreadyExists),
                Some(ErrorKind::Unreachable),
                None,
            ] {
                let bench = Bench::new(5).await;
                match fault {
                    Some(kind) => bench.fake.fail(call, after, kind),
                    None => bench.fake.lose(call, after),
                }
                let first = bench.ensure().await;
                let context = format!("{call} {after} {fault:?}: {first:?}");
                let layers = bench.fake.all(OVERLAYFS).len();
                bench.assert_committed(layers, &context);
                bench.fake.heal();
                bench.ensure().await.expect(&context);
                bench.assert_ready(&context).await;
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_sweep_removes_what_a_failed_cleanup_left() {
    for (call, after) in [
        ("remove snapshot", 0),
        ("remove snapshot", 1),
        ("delete lease", 0),
    ] {
        let bench = Bench::new(5).await;
        bench.fake.fail("apply layer", 1, ErrorKind::Other);
        bench.fake.fail(call, after, ErrorKind::Unreachable);
        bench.ensure().await.unwrap_err();
        assert_eq!(bench.fake.lease_ids().len(), 1, "{call}");
        bench.engine.sweep().await.unwrap();
        bench.assert_committed(bench.fake.all(OVERLAYFS).len(), call);
        bench.ensure().await.unwrap();
        bench.assert_ready(call).await;
    }
}

#[tokio::test(start_paused = true)]
async fn close_removes_the_extraction_snapshots() {
    for stage in ["prepare snapshot", "apply layer", "commit snapshot"] {
        let bench = Bench::new(50).await;
        let mut ticket = bench.ask(NAME);
        while ticket.progress().ready_layers < 5 {
            assert!(ticket.changed().await);
        }
        bench.fake.slow(stage, Duration::from_secs(5));
        tokio::time::sleep(Duration::from_secs(3)).await;
        let close = bench.engine.close();
        tokio::time::timeout(Duration::from_secs(60), close)
            .await
            .expect(stage);
        let error = ticket.outcome().await.unwrap_err();
        assert!(matches!(*error, Error::Stopped(_)), "{error}");
        let layers = bench.fake.all(OVERLAYFS).len();
        assert!((5..50).contains(&layers));
        bench.assert_committed(layers, stage);
        assert_eq!(bench.state().await, State::Partial);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wrong_diff_id_fails_its_layer_and_those_above() {
    // The apply of the lowest layer is quick or slow.
    for time in [1, 500] {
        let mut messages = vec![];
        for rebases in [false, true] {
            let bench = Bench::with(6, OVERLAYFS, rebases, PARALLEL).await;
            let lowest = Duration::from_millis(time);
            bench.fake.applies_in(bench.blob(0), lowest);
            bench.fake.applies_as(bench.blob(2), &sha256(b"other"));
            // In a parallel unpack, this wrong digest is found first.
            bench.fake.applies_as(bench.blob(4), &sha256(b"another"));
            bench.fake.applies_in(bench.blob(2), 2 * lowest);
            let error = bench.ensure().await.unwrap_err();
            assert!(
                matches!(
                    *error,
                    Error::WrongDiffId {
                        position: 3,
                        layers: 6,
                        ..
                    }
                ),
                "{error}"
            );
            messages.push(error.to_string());
            bench.assert_committed(2, &format!("{time} {rebases}"));
        }
        assert_eq!(messages[0], messages[1]);
    }
}

#[tokio::test(start_paused = true)]
async fn a_failure_does_not_wait_for_the_layers_above() {
    let bench = Bench::new(6).await;
    bench.fake.applies_as(bench.blob(0), &sha256(b"other"));
    for i in 1..6 {
        bench
            .fake
            .applies_in(bench.blob(i), Duration::from_secs(3600));
    }
    let began = tokio::time::Instant::now();
    bench.ensure().await.unwrap_err();
    assert!(began.elapsed() < Duration::from_secs(1));
    bench.assert_committed(0, "the lowest failed");
}

/// A chain of many layers does not have all its extraction snapshots at the same time.
#[tokio::test(start_paused = true)]
async fn a_layer_is_prepared_only_when_it_can_be_applied() {
    let bench = Bench::new(20).await;
    for i in 0..20 {
        bench.fake.applies_in(bench.blob(i), Duration::from_secs(1));
    }
    let mut ticket = bench.ask(NAME);
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert_eq!(bench.fake.all(OVERLAYFS).len(), PARALLEL.layers);
    ticket.outcome().await.unwrap();
    bench.assert_ready("prepared").await;
}

#[tokio::test(start_paused = true)]
async fn two_processes_can_unpack_the_same_chain() {
    let (mut at_commit, mut at_prepare) = (false, false);
    for delay in 0..12 {
        let bench = Bench::new(6).await;
        let fallback = ContentFallback::default();
        let fake = bench.fake.clone();
        let other = Engine::new(fake, Role::Command, PARALLEL, default_policy(), fallback);
        for i in 0..6 {
            let time = Duration::from_millis([3, 1, 2, 2, 1, 3][i]);
            bench.fake.applies_in(bench.blob(i), time);
        }
        let mut one = bench.ask(NAME);
        tokio::time::sleep(Duration::from_millis(delay)).await;
        let mut two = ask(&other, NAME, OVERLAYFS);
        let (one, two) = tokio::join!(one.outcome(), two.outcome());
        let context = format!("after {delay} ms: {one:?}, {two:?}");
        assert!(one.is_ok() && two.is_ok(), "{context}");
        bench.assert_ready(&context).await;
        let prepared = bench.fake.subjects("prepare snapshot").len();
        let applied = bench.fake.subjects("apply layer").len();
        let committed = bench.fake.subjects("commit snapshot").len();
        at_prepare |= applied < prepared;
        at_commit |= committed > 6;
    }
    assert!(at_prepare && at_commit);
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_is_removed_during_the_flight_is_unpacked_again() {
    let bench = Bench::new(5).await;
    bench.unpack_base(1).await;
    bench.fake.slow("commit snapshot", Duration::from_secs(1));
    let mut ticket = bench.ask(NAME);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let lowest = &bench.chain_ids[0];
    bench.fake.remove(OVERLAYFS, lowest).await.unwrap();
    let done = ticket.outcome().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Unpacked, 5));
    bench.assert_ready("removed").await;
}

/// It is not known how `native` handles a whiteout.
#[tokio::test(start_paused = true)]
async fn a_layer_waits_for_its_parent_if_deletions_could_be_lost() {
    let bench = Bench::with(5, "native", true, PARALLEL).await;
    let done = bench.ensure().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Unpacked, 5));
    assert_eq!(bench.fake.most_applied_at_once(), 1);
    bench.assert_ready("native").await;
}

#[tokio::test(start_paused = true)]
async fn a_layer_that_the_snapshotter_already_has_is_committed_without_an_apply() {
    // In native the second and the fourth layer are prepared again, on their parents.
    for (snapshotter, rebases, prepared) in [
        (OVERLAYFS, false, 5),
        (OVERLAYFS, true, 5),
        ("native", true, 7),
    ] {
        let bench = Bench::with(5, snapshotter, rebases, PARALLEL).await;
        for i in [0, 2, 4] {
            let chain_id = &bench.manifest.layers[i].chain_id;
            bench.fake.stage(snapshotter, chain_id, bench.blob(i));
            if i > 0 {
                bench.fake.discard(bench.blob(i));
            }
        }
        let done = bench.ensure().await.unwrap();
        assert_eq!((done.action, done.layers_done), (Action::Unpacked, 5));
        let context = format!("{snapshotter} {rebases}");
        assert_eq!(bench.fake.subjects("apply layer").len(), 2, "{context}");
        let subjects = bench.fake.subjects("prepare snapshot");
        assert_eq!(subjects.len(), prepared, "{context}");
        bench.assert_ready(&context).await;
        // Without an apply there is no diff ID to verify.
        for (i, verified) in [(0, false), (1, true)] {
            let labels = bench.fake.blob(bench.blob(i)).await.unwrap().labels;
            assert_eq!(labels.contains_key("containerd.io/uncompressed"), verified);
        }
    }
}

/// Another process has committed the lower layers.
#[tokio::test(start_paused = true)]
async fn layers_that_exist_at_the_prepare_are_used() {
    let bench = Bench::new(5).await;
    let short = Duration::from_millis(250);
    bench.fake.slow("prepare snapshot", short);
    let mut ticket = bench.ask(NAME);
    tokio::time::sleep(short / 2).await;
    let chain_ids = &bench.chain_ids;
    bench.fake.commit_unlabelled(OVERLAYFS, &chain_ids[0], None);
    let below = Some(chain_ids[0].as_str());
    bench
        .fake
        .commit_unlabelled(OVERLAYFS, &chain_ids[1], below);
    let done = ticket.outcome().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Unpacked, 5));
    assert_eq!(bench.fake.subjects("prepare snapshot").len(), 5);
    assert_eq!(bench.fake.subjects("apply layer").len(), 3);
    assert_eq!(bench.state().await, State::Ready);
    bench.assert_committed(5, "by another process");
}

#[tokio::test(start_paused = true)]
async fn a_missing_blob_is_fetched_or_named_in_the_error() {
    for pulls in [true, false] {
        let mut bench = Bench::new(5).await;
        bench.fake.publish(VERSION);
        // The missing blobs are noticed long before the lowest layer is committed.
        let lowest = Duration::from_millis(100);
        bench.fake.applies_in(bench.blob(0), lowest);
        for i in [1, 2, 4] {
            bench.fake.discard(bench.blob(i));
        }
        if pulls {
            let fallback = ContentFallback::new(vec![FallbackSource::Pull], Registries::default());
            let fake = bench.fake.clone();
            bench.bench.engine =
                Engine::new(fake, Role::Daemon, PARALLEL, default_policy(), fallback);
            let done = bench.ensure().await.unwrap();
            assert_eq!((done.action, done.layers_done), (Action::Unpacked, 5));
            bench.assert_ready("pulled").await;
            assert_eq!(bench.fake.fetched().len(), 1);
            assert_eq!(bench.fake.subjects("commit snapshot"), bench.chain_ids);
        } else {
            let error = bench.ensure().await.unwrap_err();
            assert!(
                matches!(
                    *error,
                    Error::Unavailable {
                        position: 2,
                        layers: 5,
                        ..
                    }
                ),
                "{error}"
            );
            bench.assert_committed(1, "error");
        }
    }
}
