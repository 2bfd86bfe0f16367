//! A labelled `Prepare` that waits for a registry that does not answer.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, ErrorKind, Image, SnapshotKind};
use crate::image::{Manifest, Manifests, Platform};

use super::super::{ContentFallback, Engine, Request, Role, State, Ticket, Urgency, Want};
use super::{NAME, PARALLEL, default_policy};

/// A proxy plugin that asks registries.
const LAZY: &str = "native";

/// Longer than a hook waits.
const LONG: Duration = Duration::from_secs(50);

/// As long as a hook waits by default.
const HOOK: Duration = Duration::from_millis(500);

/// Another image of the same registry, with other layers.
const SECOND: &str = "r.example/second:1";

struct Bench {
    fake: Arc<Fake>,
    engine: Arc<Engine>,
    image: Image,
    manifest: Arc<Manifest>,
}

impl Bench {
    async fn new() -> Self {
        let fake = Arc::new(Fake::default());
        fake.is_lazy(LAZY, &[]);
        let image = fake.image(NAME, 3);
        let layer = fake.document("application/vnd.oci.image.layer.v1.tar", b"second");
        fake.image_from(SECOND, &[layer]);
        let manifests = Manifests::new(Platform::of_this_node());
        let manifest = manifests.read(fake.as_ref(), &image).await.unwrap();
        let bench = Self {
            engine: Engine::new(
                fake.clone(),
                Role::Daemon,
                PARALLEL,
                default_policy(),
                ContentFallback::default(),
            ),
            fake,
            image,
            manifest,
        };
        bench.engine.find_out(LAZY).await;
        bench.fake.calls();
        bench
    }

    fn ask(&self, image: &str) -> Ticket {
        self.engine.ensure(Request {
            want: Want::Image(image.to_owned()),
            snapshotter: LAZY.to_owned(),
            urgency: Urgency::Creation,
        })
    }

    /// containerd unpacks the image itself.
    fn unpack_by_containerd(&self) {
        let mut parent = None;
        for layer in &self.manifest.layers {
            self.fake.commit_unlabelled(LAZY, &layer.chain_id, parent);
            parent = Some(layer.chain_id.as_str());
        }
    }

    async fn state(&self) -> State {
        let names = [self.image.name.clone()];
        let listing = self.engine.list(LAZY).await.unwrap();
        let status = self
            .engine
            .image_status(&self.image, &names, &listing)
            .await;
        status.unwrap().state
    }

    /// From now on `Prepare` answers at once, as containerd does for layers that exist.
    fn answer(&self) {
        self.fake.slow("prepare snapshot", Duration::ZERO);
    }

    fn temporary(&self) -> usize {
        let all = self.fake.all(LAZY);
        all.iter()
            .filter(|s| s.kind == SnapshotKind::Active)
            .count()
    }
}

/// The layers that containerd has committed meanwhile get their labels at once, and are not waited for.
#[tokio::test(start_paused = true)]
async fn a_flight_notices_that_containerd_has_unpacked_the_chain() {
    for after in [Duration::from_millis(100), Duration::from_secs(20)] {
        let bench = Bench::new().await;
        bench.fake.slow("prepare snapshot", LONG);
        let mut ticket = bench.ask(NAME);
        tokio::time::sleep(after).await;
        bench.unpack_by_containerd();
        bench.answer();
        let began = Instant::now();
        let done = ticket.outcome().await.unwrap();
        assert_eq!(done.found, State::Missing);
        assert!(began.elapsed() < HOOK, "{:?}", began.elapsed());
        assert_eq!(bench.state().await, State::Ready);
        assert_eq!((bench.temporary(), bench.fake.lease_ids().len()), (0, 0));
    }
}

/// The snapshotter goes on although nothing waits for its answer.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_made_after_its_prepare_was_left_is_removed() {
    let bench = Bench::new().await;
    bench.fake.slow("prepare snapshot", LONG);
    let mut ticket = bench.ask(NAME);
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.unpack_by_containerd();
    bench.answer();
    bench.fake.slow("label snapshot", Duration::from_secs(1));
    tokio::time::sleep(Duration::from_millis(500)).await;
    let left = bench.fake.subjects("remove snapshot");
    let [key] = &left[..] else {
        panic!("{left:?}");
    };
    assert!(key.starts_with("extract-nri-unpack-"), "{key}");
    let parent = &bench.manifest.layers[0].chain_id;
    bench
        .fake
        .extract(LAZY, key, Some(parent), std::time::SystemTime::now());
    ticket.outcome().await.unwrap();
    assert_eq!((bench.temporary(), bench.fake.lease_ids().len()), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn no_hook_waits_again_at_once_for_a_registry_that_was_silent() {
    let bench = Bench::new().await;
    bench.fake.slow("prepare snapshot", LONG);
    let mut first = bench.ask(NAME);
    let began = Instant::now();
    assert!(first.outcome_by(began + HOOK).await.is_none());
    assert_eq!(began.elapsed(), HOOK);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    let mut second = bench.ask(SECOND);
    assert!(second.outcome_by(began + HOOK).await.is_none());
    assert!(began.elapsed() < HOOK / 5, "{:?}", began.elapsed());

    // The work goes on, and after a minute the registry is waited for again.
    bench.answer();
    first.outcome().await.unwrap();
    second.outcome().await.unwrap();
    tokio::time::sleep(Duration::from_secs(60)).await;
    for layer in bench.manifest.layers.iter().rev() {
        bench.fake.remove(LAZY, &layer.chain_id).await.unwrap();
    }
    bench
        .fake
        .slow("prepare snapshot", Duration::from_millis(100));
    let began = Instant::now();
    let ready = bench.ask(NAME).outcome_by(began + HOOK).await;
    assert!(ready.is_some_and(|outcome| outcome.is_ok()));
}

/// A container stands on the chain that containerd has unpacked: the flight lacks only labels, and will notice it.
#[tokio::test(start_paused = true)]
async fn a_creation_waits_for_the_labels_although_the_registry_is_silent() {
    let bench = Bench::new().await;
    bench.fake.slow("prepare snapshot", LONG);
    let _first = bench.ask(NAME);
    let mut second = bench.ask(SECOND);
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.unpack_by_containerd();
    bench
        .fake
        .activate(LAZY, "c", bench.manifest.chain_id().unwrap());
    let mut creation = bench.engine.ensure(Request {
        want: Want::Container {
            key: "c".to_owned(),
            chain: bench.manifest.chain_id().unwrap().to_owned(),
            name: Some(NAME.to_owned()),
            left_to_containerd: false,
        },
        snapshotter: LAZY.to_owned(),
        urgency: Urgency::Creation,
    });
    bench.answer();
    let deadline = Instant::now() + HOOK;
    let ready = creation.outcome_by(deadline).await;
    assert!(ready.is_some_and(|outcome| outcome.is_ok()));
    assert!(second.outcome_by(deadline).await.is_none());
}

/// Its looks are not answered either, or late: that says nothing of a registry.
#[tokio::test(start_paused = true)]
async fn a_registry_is_not_blamed_for_a_snapshotter_that_hangs() {
    const HANGS: Duration = Duration::from_secs(8);
    for is_answered in [false, true] {
        let bench = Bench::new().await;
        bench.fake.slow("prepare snapshot", LONG);
        let mut first = bench.ask(NAME);
        tokio::time::sleep(Duration::from_millis(100)).await;
        if is_answered {
            bench.fake.slow("stat snapshot", HANGS);
        } else {
            for _ in 0..100 {
                bench.fake.fail("stat snapshot", 0, ErrorKind::TimedOut);
            }
        }
        tokio::time::sleep(HANGS + Duration::from_millis(350)).await;
        bench.fake.heal();
        bench.fake.slow("stat snapshot", Duration::ZERO);
        // Its looks are answered again, and its `Prepare` is not yet.
        tokio::time::sleep(Duration::from_millis(500)).await;
        let began = Instant::now();
        let mut second = bench.ask(SECOND);
        assert!(second.outcome_by(began + HOOK).await.is_none());
        assert_eq!(began.elapsed(), HOOK, "{is_answered}");
        bench.answer();
        first.outcome().await.unwrap();
        second.outcome().await.unwrap();
    }
}
