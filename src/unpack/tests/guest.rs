//! Tests of a snapshotter with guest pull: every state, layers that two images share, and the swap of a container's
//! snapshot off a chain that was unpacked on the host, with a fault in every call.

use std::ops::Deref;
use std::time::Duration;

use tokio::time::Instant;

use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, ErrorKind, Image, Labels, Resource, SnapshotKind};
use crate::image::PROXY_MODE;

use super::super::chain::profile::is_proxied;
use super::super::snapshotter::guest_pull::is_private;
use super::super::{Action, Error, Move, Outcome, State, SwapDeadlines, SwapOutcome, Usage};
use super::PARALLEL;

const NYDUS: &str = "nydus";

/// Two images. The lowest layers of `UPPER` are the layers of `LOWER`.
const LOWER: &str = "r.example/lower:1";
const UPPER: &str = "r.example/upper:1";

/// The lease of another process of the plugin.
const OTHER_PROCESS: &str = "nri-unpack-another";

/// Every call of a replacement, and of the creation of a private chain for a chain in use.
const CALLS: [&str; 13] = [
    "list images",
    "list images of",
    "get image",
    "read blob",
    "look up blob",
    "stat snapshot",
    "list snapshots of",
    "list leases",
    "create lease",
    "prepare snapshot",
    "remove snapshot",
    "label blob",
    "delete lease",
];

const KINDS: [ErrorKind; 3] = [
    ErrorKind::Other,
    ErrorKind::Unreachable,
    ErrorKind::TimedOut,
];

/// A bench of the upper image, whose chain ids begin with those of the lower image.
struct Bench {
    bench: super::Bench,
    lower: Image,
}

impl Deref for Bench {
    type Target = super::Bench;

    fn deref(&self) -> &Self::Target {
        &self.bench
    }
}

impl Bench {
    async fn new() -> Self {
        let fake = Fake::default();
        let (lower, upper) = (fake.image(LOWER, 2), fake.image(UPPER, 4));
        let bench = super::Bench::on(fake, upper, NYDUS, PARALLEL).await;
        Self { bench, lower }
    }

    async fn ensure(&self, image: &str) -> Outcome {
        self.ask(image).outcome().await
    }

    /// Asks for the image of a container that is being created on this chain, which is in use. Returns the private chain
    /// that was made for it.
    async fn private_chain_for(&self, key: &str, chain: &str, image: Option<&str>) -> String {
        let mut ticket = self.create(key, chain, image);
        let error = ticket.outcome().await.unwrap_err();
        assert!(matches!(*error, Error::InUse { .. }), "{error}");
        ticket.progress().onto.expect("a private chain")
    }

    /// Commits the missing layers without labels, as containerd's own unpack does.
    async fn unpack_on_the_host(&self, count: usize) {
        let mut parent = None;
        for chain_id in &self.chain_ids[..count] {
            if self.fake.stat(NYDUS, chain_id).await.is_err() {
                self.fake.commit_unlabelled(NYDUS, chain_id, parent);
            }
            parent = Some(chain_id.as_str());
        }
    }

    /// Unpacks the chain on the host and creates a container on it. Returns its move onto
    /// the private chain.
    async fn create_on_host_chain(&self, key: &str) -> Move {
        self.unpack_on_the_host(4).await;
        let from = self.chain_ids[3].clone();
        self.fake.activate(NYDUS, key, &from);
        let onto = self.private_chain_for(key, &from, Some(UPPER)).await;
        Move {
            snapshotter: NYDUS.to_owned(),
            key: key.to_owned(),
            from,
            onto,
        }
    }

    /// Sets the anchor of the upper image's chain. An empty value removes it.
    async fn set_anchor(&self, chain_id: &str) {
        let anchor = "containerd.io/gc.ref.snapshot.nydus".to_owned();
        let label = Labels::from([(anchor, chain_id.to_owned())]);
        self.fake.label_blob(self.config(), label).await.unwrap();
    }

    /// Makes a lease that holds the upper image's chain.
    fn hold_with_lease(&self, lease: &str) {
        let top = Resource::snapshot(NYDUS, &self.chain_ids[3]);
        self.fake.lease(lease, Labels::new(), &[top]);
    }

    async fn parent_of(&self, key: &str) -> Option<String> {
        self.fake.stat(NYDUS, key).await.unwrap().parent
    }

    async fn assert_guest_pulls(&self, image: &Image) {
        assert_eq!(self.state_of(image).await, State::Ready);
        let top = if image == &self.lower { 1 } else { 3 };
        let top = self.fake.stat(NYDUS, &self.chain_ids[top]).await.unwrap();
        assert!(is_proxied(&top.labels), "{top:?}");
    }

    /// Runs a sweep and garbage collection. Asserts that no lease, extraction snapshot or probe remains.
    async fn assert_nothing_left(&self, context: &str) {
        self.engine.sweep().await.unwrap();
        self.fake.collect_garbage();
        assert_eq!(self.fake.lease_ids(), Vec::<String>::new(), "{context}");
        for snapshot in self.fake.all(NYDUS) {
            let name = &snapshot.name;
            let temporary = name.starts_with("extract-") || name.contains("probe");
            assert!(!temporary, "{context}: {name} is left");
        }
    }
}

#[tokio::test]
async fn the_guest_pulls_an_image_after_an_ensure_in_every_state() {
    for (proxied, on_host, expected, action) in [
        (0, 0, State::Missing, Action::Unpacked),
        (2, 0, State::Partial, Action::Unpacked),
        (0, 2, State::Partial, Action::Unpacked),
        (0, 4, State::Unlabelled, Action::Replaced),
        (2, 4, State::Mixed, Action::Replaced),
        (4, 0, State::Ready, Action::None),
    ] {
        let bench = Bench::new().await;
        match proxied {
            2 => drop(bench.ensure(LOWER).await.unwrap()),
            4 => drop(bench.ensure(UPPER).await.unwrap()),
            _ => {}
        }
        bench.unpack_on_the_host(on_host).await;
        assert_eq!(bench.state_of(&bench.image).await, expected);
        let done = bench.ensure(UPPER).await.unwrap();
        assert_eq!(done.action, action, "{expected}");
        bench.assert_guest_pulls(&bench.image).await;
        bench.fake.calls();
        assert_eq!(bench.ensure(UPPER).await.unwrap().action, Action::None);
        assert!(!Fake::writes(&bench.fake.calls()), "{expected}");
        bench.assert_nothing_left(&expected.to_string()).await;
        bench.assert_guest_pulls(&bench.image).await;
    }

    let bench = Bench::new().await;
    bench.ensure(UPPER).await.unwrap();
    bench.set_anchor("").await;
    assert_eq!(bench.state_of(&bench.image).await, State::Unanchored);
    assert_eq!(bench.ensure(UPPER).await.unwrap().action, Action::Anchored);

    // The labels of the lower image's layers name the upper image.
    let bench = Bench::new().await;
    bench.ensure(UPPER).await.unwrap();
    assert_eq!(bench.state_of(&bench.lower).await, State::Foreign);
    bench.ensure(LOWER).await.unwrap();
    bench.assert_guest_pulls(&bench.lower).await;
    bench.assert_guest_pulls(&bench.image).await;
}

#[tokio::test]
async fn the_guest_pulls_both_images_that_share_layers() {
    for order in [[LOWER, UPPER], [UPPER, LOWER]] {
        let bench = Bench::new().await;
        bench.unpack_on_the_host(4).await;
        for image in order {
            let _ = bench.ensure(image).await;
        }
        assert_eq!(
            bench.state_of(&bench.image).await,
            State::Ready,
            "{order:?}"
        );
        bench.assert_guest_pulls(&bench.image).await;
        // The upper image is based on the lower image's layers: they stay, and a container of the
        // lower image gets a private chain.
        let error = bench.ensure(LOWER).await.unwrap_err();
        assert!(matches!(*error, Error::InUse { .. }), "{order:?}: {error}");
        let all = bench.fake.all(NYDUS);
        assert!(!all.iter().any(|s| is_private(&s.name)), "{order:?}");
        let lower = bench.chain_ids[1].as_str();
        bench.fake.activate(NYDUS, "c", lower);
        let onto = bench.private_chain_for("c", lower, Some(LOWER)).await;
        let private = bench.fake.stat(NYDUS, &onto).await.unwrap();
        assert!(is_proxied(&private.labels), "{private:?}");
        bench.assert_nothing_left(&format!("{order:?}")).await;
    }
}

/// After garbage collection has removed a child, `Remove` fails for its parent: garbage collection has to remove it.
#[tokio::test]
async fn a_chain_that_cannot_be_removed_is_garbage_collected() {
    let bench = Bench::new().await;
    let wanted = bench.create_on_host_chain("c").await;
    let all = bench.fake.all(NYDUS);
    assert!(all.iter().any(|s| s.name == wanted.onto));
    // Without this lease, the host's chain would be collected with the container.
    bench.hold_with_lease(OTHER_PROCESS);
    bench.fake.collect_container(NYDUS, "c");
    let refused = bench.fake.remove(NYDUS, &bench.chain_ids[3]).await;
    assert_eq!(refused.unwrap_err().kind, ErrorKind::FailedPrecondition);
    // The chain is in use while the lease of another client holds it.
    let error = bench.ensure(UPPER).await.unwrap_err();
    assert!(matches!(*error, Error::InUse { .. }), "{error}");
    bench.fake.delete_lease(OTHER_PROCESS, false).await.unwrap();

    assert_eq!(bench.ensure(UPPER).await.unwrap().action, Action::Replaced);
    bench.assert_guest_pulls(&bench.image).await;
    let usage = bench.engine.usage(&bench.image, NYDUS).await.unwrap();
    assert_eq!(usage, Usage::Used, "containerd had unpacked it");
}

/// A garbage collection goes on in containerd although its answer does not come in time.
#[tokio::test]
async fn a_collection_whose_answer_is_lost_is_not_undone() {
    let bench = Bench::new().await;
    bench.create_on_host_chain("c").await;
    bench.hold_with_lease(OTHER_PROCESS);
    bench.fake.collect_container(NYDUS, "c");
    bench.fake.delete_lease(OTHER_PROCESS, false).await.unwrap();
    bench.fake.lose("delete lease", 0);
    assert_eq!(bench.ensure(UPPER).await.unwrap().action, Action::Replaced);
    bench.assert_guest_pulls(&bench.image).await;
}

/// containerd's client unpacks under a lease, and creates the container afterwards.
#[tokio::test]
async fn a_chain_that_a_lease_of_a_client_holds_is_not_replaced() {
    let bench = Bench::new().await;
    bench.unpack_on_the_host(4).await;
    bench.hold_with_lease("client");
    let error = bench.ensure(UPPER).await.unwrap_err();
    assert!(matches!(*error, Error::InUse { .. }), "{error}");
    assert_eq!(bench.state_of(&bench.image).await, State::Unlabelled);

    bench.fake.delete_lease("client", false).await.unwrap();
    assert_eq!(bench.ensure(UPPER).await.unwrap().action, Action::Replaced);
    bench.assert_guest_pulls(&bench.image).await;
}

/// If the replacement fails, the anchor is restored.
#[tokio::test]
async fn a_chain_that_was_not_collected_keeps_its_anchor() {
    for call in ["create lease", "delete lease", "stat snapshot"] {
        for after in 0..6 {
            let bench = Bench::new().await;
            bench.create_on_host_chain("c").await;
            bench.set_anchor(&bench.chain_ids[3]).await;
            bench.hold_with_lease(OTHER_PROCESS);
            bench.fake.collect_container(NYDUS, "c");
            bench.fake.fail(call, after, ErrorKind::TimedOut);
            let _ = bench.ensure(UPPER).await;
            bench.fake.heal();
            bench.fake.delete_lease(OTHER_PROCESS, false).await.unwrap();
            bench.assert_nothing_left(call).await;
            let state = bench.state_of(&bench.image).await;
            assert_eq!(state, State::Unlabelled, "{call} {after}");
        }
    }
}

#[tokio::test]
async fn a_private_chain_is_collected_with_its_image() {
    let bench = Bench::new().await;
    let wanted = bench.create_on_host_chain("c").await;
    bench.fake.collect_garbage();
    assert!(bench.fake.stat(NYDUS, &wanted.onto).await.is_ok());
    bench.fake.collect_container(NYDUS, "c");
    bench.fake.remove_image(&bench.image);
    assert_eq!(bench.fake.all(NYDUS), []);
}

#[tokio::test]
async fn a_fault_during_a_replacement_removes_nothing_that_is_in_use() {
    for in_use in [false, true] {
        for call in CALLS {
            for (after, kind) in (0..3).flat_map(|after| KINDS.map(|kind| (after, kind))) {
                let context = format!("{call} {after} {kind:?}, in use: {in_use}");
                let bench = Bench::new().await;
                bench.unpack_on_the_host(4).await;
                let top = bench.chain_ids[3].clone();
                if in_use {
                    bench.fake.activate(NYDUS, "c", &top);
                }
                bench.fake.fail(call, after, kind);
                let _ = bench.ensure(UPPER).await;
                bench.fake.heal();
                if in_use {
                    bench.assert_nothing_left(&context).await;
                    assert_eq!(bench.parent_of("c").await, Some(top), "{context}");
                    let left = bench.state_of(&bench.image).await;
                    assert_eq!(left, State::Unlabelled, "{context}");
                    bench.fake.collect_container(NYDUS, "c");
                }
                let second = bench.ensure(UPPER).await;
                assert!(second.is_ok(), "{context}: {second:?}");
                bench.assert_nothing_left(&context).await;
                bench.assert_guest_pulls(&bench.image).await;
            }
        }
    }
}

fn within(millis: u64) -> SwapDeadlines {
    let usual = Instant::now() + Duration::from_millis(millis);
    SwapDeadlines { usual, last: usual }
}

fn within_a_second() -> SwapDeadlines {
    within(1000)
}

#[tokio::test(start_paused = true)]
async fn a_container_is_moved_or_keeps_its_snapshot() {
    let bench = Bench::new().await;
    let wanted = bench.create_on_host_chain("c").await;
    // Too little time is left.
    let swapped = bench.engine.swap(wanted.clone(), within(50)).await;
    assert!(matches!(swapped, SwapOutcome::Untouched(_)), "{swapped:?}");
    assert_eq!(bench.parent_of("c").await.as_ref(), Some(&wanted.from));
    // The private chain was collected with its image.
    let gone = Move {
        onto: "nri-unpack-private-sha256:gone".to_owned(),
        ..wanted.clone()
    };
    let swapped = bench.engine.swap(gone, within_a_second()).await;
    assert!(matches!(swapped, SwapOutcome::Untouched(_)), "{swapped:?}");
    assert_eq!(bench.parent_of("c").await.as_ref(), Some(&wanted.from));
    // Enough time is left. A second swap changes nothing.
    let swapped = bench.engine.swap(wanted.clone(), within_a_second()).await;
    assert_eq!(swapped, SwapOutcome::Done);
    assert_eq!(bench.parent_of("c").await.as_ref(), Some(&wanted.onto));
    let swapped = bench.engine.swap(wanted.clone(), within_a_second()).await;
    assert!(matches!(swapped, SwapOutcome::Untouched(_)), "{swapped:?}");
    bench.assert_nothing_left("moved").await;
    assert_eq!(bench.parent_of("c").await, Some(wanted.onto));
}

#[tokio::test(start_paused = true)]
async fn after_a_fault_the_swap_is_done_or_nothing_has_changed() {
    for call in [
        "create lease",
        "stat snapshot",
        "add to lease",
        "remove snapshot",
        "prepare snapshot",
        "delete lease",
    ] {
        for kind in KINDS {
            let bench = Bench::new().await;
            let wanted = bench.create_on_host_chain("c").await;
            bench.fake.fail(call, 0, kind);
            let swapped = bench.engine.swap(wanted.clone(), within_a_second()).await;
            bench.fake.heal();
            let parent = match swapped {
                SwapOutcome::Done => wanted.onto,
                SwapOutcome::Untouched(_) => wanted.from,
                SwapOutcome::Lost => panic!("{call} {kind:?}"),
            };
            assert_eq!(bench.parent_of("c").await, Some(parent), "{call} {kind:?}");
            bench.assert_nothing_left(call).await;
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_swap_succeeds_although_an_answer_is_lost() {
    for call in ["remove snapshot", "prepare snapshot"] {
        let bench = Bench::new().await;
        let wanted = bench.create_on_host_chain("c").await;
        bench.fake.lose(call, 0);
        let swapped = bench.engine.swap(wanted.clone(), within_a_second()).await;
        assert_eq!(swapped, SwapOutcome::Done, "{call}");
        assert_eq!(bench.parent_of("c").await, Some(wanted.onto), "{call}");
    }
}

/// Between its two calls a slow swap continues as long as the runtime waits.
#[tokio::test(start_paused = true)]
async fn a_swap_that_has_begun_may_exceed_the_usual_deadline() {
    let bench = Bench::new().await;
    let wanted = bench.create_on_host_chain("c").await;
    bench.fake.slow("remove snapshot", Duration::from_secs(1));
    let usual = Instant::now() + Duration::from_millis(500);
    let until = SwapDeadlines {
        usual,
        last: usual + Duration::from_secs(2),
    };
    let swapped = bench.engine.swap(wanted.clone(), until).await;
    assert_eq!(swapped, SwapOutcome::Done);
    assert!(Instant::now() > usual);
    assert_eq!(bench.parent_of("c").await, Some(wanted.onto));
}

#[tokio::test(start_paused = true)]
async fn a_swap_whose_second_call_keeps_failing_is_lost() {
    let bench = Bench::new().await;
    let wanted = bench.create_on_host_chain("c").await;
    // More faults than there are attempts until the deadline.
    for _ in 0..1000 {
        bench.fake.fail("prepare snapshot", 0, ErrorKind::TimedOut);
    }
    let deadline = within_a_second();
    let swapped = bench.engine.swap(wanted, deadline).await;
    assert_eq!(swapped, SwapOutcome::Lost);
    assert!(Instant::now() <= deadline.last + Duration::from_millis(1));
    bench.fake.heal();
    // The running attempt ends and its lease is released in the background.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.collect_container(NYDUS, "c");
    bench.assert_nothing_left("lost").await;
    bench.ensure(UPPER).await.unwrap();
    bench.assert_guest_pulls(&bench.image).await;
}

#[tokio::test]
async fn twenty_containers_of_one_image_are_all_moved() {
    let bench = Bench::new().await;
    bench.unpack_on_the_host(4).await;
    let keys: Vec<_> = (0..20).map(|i| format!("c{i}")).collect();
    for key in &keys {
        bench.fake.activate(NYDUS, key, &bench.chain_ids[3]);
    }
    let moves = keys.iter().map(|key| async {
        let from = bench.chain_ids[3].clone();
        let onto = bench.private_chain_for(key, &from, Some(UPPER)).await;
        let wanted = Move {
            snapshotter: NYDUS.to_owned(),
            key: key.clone(),
            from,
            onto: onto.clone(),
        };
        assert_eq!(
            bench.engine.swap(wanted, within(10_000)).await,
            SwapOutcome::Done
        );
        onto
    });
    let onto = futures::future::join_all(moves).await;
    for (key, onto) in keys.iter().zip(onto) {
        assert_eq!(bench.parent_of(key).await, Some(onto));
    }
    bench.engine.close().await;
    let all = bench.fake.all(NYDUS);
    let active = all.iter().filter(|s| s.kind == SnapshotKind::Active);
    assert_eq!(active.count(), 20);
    bench.assert_nothing_left("moved").await;
}

/// No containerd has such a snapshot, but an answer may describe it.
#[tokio::test]
async fn a_snapshot_below_itself_is_followed_to_an_end() {
    let bench = Bench::new().await;
    bench.fake.commit_unlabelled(NYDUS, "a", Some("b"));
    bench.fake.commit_unlabelled(NYDUS, "b", Some("a"));
    let mut created = bench.create("c", "a", None);
    let created = tokio::time::timeout(Duration::from_secs(20), created.outcome()).await;
    let error = created.unwrap().unwrap_err();
    assert!(matches!(*error, Error::NoImage { .. }), "{error}");
    bench.fake.activate(NYDUS, "c", "a");
    let marked = Labels::from([(PROXY_MODE.to_owned(), "true".to_owned())]);
    bench.fake.put(NYDUS, "another", None, marked);
    let listing = bench.engine.list(bench.snapshotter).await.unwrap();
    assert_eq!(listing.on_guest_layers().count(), 0);
    // It ends.
    bench.engine.left_behind().await.unwrap();
}

/// A list of all snapshots takes 0.4 ms for each snapshot of nydus, and a hook waits for this flight.
#[tokio::test]
async fn a_chain_below_a_container_is_in_use_without_a_list_of_snapshots() {
    let bench = Bench::new().await;
    bench.unpack_on_the_host(4).await;
    let chain = bench.chain_ids[3].as_str();
    bench.fake.activate(NYDUS, "container", chain);
    bench.fake.calls();
    bench.private_chain_for("container", chain, None).await;
    let calls = bench.fake.calls();
    let lists = calls.iter().filter(|call| call.contains("list snapshots"));
    assert_eq!(lists.count(), 0, "{calls:#?}");
}

/// Applies to a snapshotter that commits the probe at once and to one that waits for its content, and if the lease
/// cannot be deleted.
#[tokio::test]
async fn a_probe_whose_answer_is_lost_leaves_no_snapshot() {
    for snapshotter in [NYDUS, "native"] {
        let bench = Bench::new().await;
        bench.fake.is_lazy("native", &[]);
        bench.fake.lose("prepare snapshot", 0);
        bench.fake.fail("delete lease", 0, ErrorKind::Unreachable);
        bench.engine.find_out(snapshotter).await;
        let probes = bench.fake.subjects("prepare snapshot");
        assert_eq!(probes.len(), 1, "{snapshotter}: {probes:?}");
        assert_eq!(bench.fake.lease_ids().len(), 1, "{snapshotter}");
        let left = bench.fake.all(snapshotter);
        assert!(left.is_empty(), "{snapshotter}: {left:?}");
    }
}
