//! A labelled `Prepare` that waits for a registry that does not answer.

use std::time::Duration;

use tokio::time::Instant;

use super::super::{State, Ticket, Urgency, Want};
use super::bench::Bench;
use super::{NAME, PARALLEL};
use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, ErrorKind};

/// A proxy plugin that asks registries.
const LAZY: &str = "native";

/// Longer than a hook waits.
const LONG: Duration = Duration::from_secs(50);

/// As long as a hook waits by default.
const HOOK: Duration = Duration::from_millis(500);

/// Another image of the same registry, with other layers.
const SECOND: &str = "r.example/second:1";

/// Makes a bench with both images, in a snapshotter that is known.
async fn bench() -> Bench {
    let fake = Fake::default();
    fake.is_lazy(LAZY, &[]);
    let image = fake.image(NAME, 3);
    let layer = fake.document("application/vnd.oci.image.layer.v1.tar", b"second");
    fake.image_from(SECOND, &[layer]);
    let bench = Bench::on(fake, image, LAZY, PARALLEL).await;
    bench.engine.find_out(LAZY).await;
    bench.fake.calls();
    bench
}

fn ask(bench: &Bench, image: &str) -> Ticket {
    bench.request(Want::Image(image.to_owned()), Urgency::Creation)
}

/// From now on `Prepare` answers at once, as containerd does for layers that exist.
fn answer(bench: &Bench) {
    bench.fake.slow("prepare snapshot", Duration::ZERO);
}

/// The layers that containerd has committed meanwhile get their labels at once, and are not waited for.
#[tokio::test(start_paused = true)]
async fn a_flight_notices_that_containerd_has_unpacked_the_chain() {
    for after in [Duration::from_millis(100), Duration::from_secs(20)] {
        let bench = bench().await;
        bench.fake.slow("prepare snapshot", LONG);
        let mut ticket = ask(&bench, NAME);
        tokio::time::sleep(after).await;
        bench.commit_without_labels(3);
        answer(&bench);
        let began = Instant::now();
        let done = ticket.outcome().await.unwrap();
        assert_eq!(done.found, State::Missing);
        assert!(began.elapsed() < HOOK, "{:?}", began.elapsed());
        assert_eq!(bench.state().await, State::Ready);
        bench.assert_nothing_left();
    }
}

/// The snapshotter goes on although nothing waits for its answer.
#[tokio::test(start_paused = true)]
async fn a_snapshot_that_is_made_after_its_prepare_was_left_is_removed() {
    let bench = bench().await;
    bench.fake.slow("prepare snapshot", LONG);
    let mut ticket = ask(&bench, NAME);
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.commit_without_labels(3);
    answer(&bench);
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
    bench.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn no_hook_waits_again_at_once_for_a_registry_that_was_silent() {
    let bench = bench().await;
    bench.fake.slow("prepare snapshot", LONG);
    let mut first = ask(&bench, NAME);
    let began = Instant::now();
    assert!(first.outcome_by(began + HOOK).await.is_none());
    assert_eq!(began.elapsed(), HOOK);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let began = Instant::now();
    let mut second = ask(&bench, SECOND);
    assert!(second.outcome_by(began + HOOK).await.is_none());
    assert!(began.elapsed() < HOOK / 5, "{:?}", began.elapsed());

    // The work goes on, and after a minute the registry is waited for again.
    answer(&bench);
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
    let ready = ask(&bench, NAME).outcome_by(began + HOOK).await;
    assert!(ready.is_some_and(|outcome| outcome.is_ok()));
}

/// A container stands on the chain that containerd has unpacked: the flight lacks only labels, and will notice it.
#[tokio::test(start_paused = true)]
async fn a_creation_waits_for_the_labels_although_the_registry_is_silent() {
    let bench = bench().await;
    bench.fake.slow("prepare snapshot", LONG);
    let _first = ask(&bench, NAME);
    let mut second = ask(&bench, SECOND);
    tokio::time::sleep(Duration::from_secs(3)).await;
    bench.commit_without_labels(3);
    bench.fake.activate(LAZY, "c", bench.top());
    let mut creation = bench.create("c", bench.top(), Some(NAME));
    answer(&bench);
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
        let bench = bench().await;
        bench.fake.slow("prepare snapshot", LONG);
        let mut first = ask(&bench, NAME);
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
        let mut second = ask(&bench, SECOND);
        assert!(second.outcome_by(began + HOOK).await.is_none());
        assert_eq!(began.elapsed(), HOOK, "{is_answered}");
        answer(&bench);
        first.outcome().await.unwrap();
        second.outcome().await.unwrap();
    }
}
