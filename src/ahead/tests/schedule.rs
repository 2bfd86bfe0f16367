//! Tests of when a reconcile runs: sessions, reloads, intervals, and retries.

use super::*;

/// A blob can come back without an event. Until then the retries keep the alert active.
#[tokio::test(start_paused = true)]
async fn an_unavailable_image_is_tried_again_with_growing_pauses() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let lost = image_with_own_layer(&bench.fake, "r.example/lost:1");
    let layer = sha256(only_layer(&lost.name).as_bytes());
    bench.fake.discard(&layer);
    bench.emit_created(&lost.name);
    settle().await;
    assert_eq!(bench.state(&lost, "erofs").await, State::Unavailable);
    let tries = || bench.fake.subjects("prepare snapshot").len();
    let before = tries();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let again = tries() - before;
    assert!((8..=12).contains(&again), "tried {again} times in an hour");
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    bench
        .fake
        .document(media_type, only_layer(&lost.name).as_bytes());
    tokio::time::sleep(Duration::from_secs(660)).await;
    assert_eq!(bench.state(&lost, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn the_next_session_ends_the_work_of_the_one_before() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.node.refresh();
    settle().await;
    let image = bench.fake.image(NAME, 1);
    bench.emit_created(NAME);
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
}

#[tokio::test(start_paused = true)]
async fn a_handler_that_gains_a_snapshotter_is_reconciled() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = bench.fake.image(NAME, 2);
    let more = format!("{CONFIG}other = \"native\"\n[snapshotters.native]\neager = \"all\"\n");
    let config = Config::from_toml(&more, "test").unwrap();
    assert_eq!(bench.node.reload(config), [""; 0]);
    settle().await;
    assert_eq!(bench.state(&image, "native").await, State::Ready);
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
}

/// The answer to the request of the earlier configuration arrives last.
#[tokio::test(start_paused = true)]
async fn the_handlers_are_those_of_the_last_configuration() {
    let fake = Fake::default();
    fake.slow("list snapshotters", Duration::from_secs(5));
    let bench = Bench::begun(fake, "", |_| percent(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.slow("list snapshotters", Duration::ZERO);
    let more = format!("{CONFIG}other = \"native\"\n");
    bench.node.reload(Config::from_toml(&more, "test").unwrap());
    settle().await;
    let handlers = bench.node.handlers_now().unwrap();
    assert!(handlers.iter().any(|(handler, _)| handler == "other"));
}

#[tokio::test(start_paused = true)]
async fn a_reconcile_runs_at_the_configured_interval() {
    for (every, state) in [
        ("reconcile_every = \"2m\"\n", State::Ready),
        ("", State::Missing),
    ] {
        let config = format!("[unpack]\n{every}{ALL}");
        let bench = Bench::on(Fake::default(), &config).await;
        let image = bench.fake.image(NAME, 2);
        settle().await;
        assert_eq!(bench.state(&image, "erofs").await, State::Missing);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(bench.state(&image, "erofs").await, state);
    }
}

/// The retry needs no other request.
#[tokio::test(start_paused = true)]
async fn a_reconcile_without_an_answer_is_repeated() {
    for (call, times) in [
        ("list snapshotters", 9),
        ("list images", 5),
        ("list snapshots of", 9),
        ("read blob", 3),
        ("prepare snapshot", 9),
        ("create lease", 9),
    ] {
        let fake = Fake::default();
        let image = fake.image(NAME, 2);
        for _ in 0..times {
            fake.fail(call, 0, ErrorKind::Unreachable);
        }
        let bench = Bench::on(fake, ALL).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let found = bench.state(&image, "erofs").await;
        assert_eq!(found, State::Ready, "{times} times no answer: {call}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_new_image_is_tried_again_after_containerd_did_not_answer() {
    for (call, times) in [
        ("get image", 1),
        ("prepare snapshot", 4),
        ("create lease", 4),
    ] {
        let bench = Bench::on(Fake::default(), ALL).await;
        // The first event triggers a reconcile, which ends before the image arrives.
        bench.emit_created("r.example/none:1");
        settle().await;
        let image = bench.fake.image(NAME, 2);
        for _ in 0..times {
            bench.fake.fail(call, 0, ErrorKind::Unreachable);
        }
        bench.emit_created(NAME);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let found = bench.state(&image, "erofs").await;
        assert_eq!(found, State::Ready, "{times} times no answer: {call}");
    }
}

/// A call of a killed process can end after the next process has swept.
#[tokio::test(start_paused = true)]
async fn a_late_lease_of_a_killed_process_is_removed() {
    let bench = Bench::begun(Fake::default(), "", |_| percent(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.lease("nri-unpack-1", Labels::new(), &[]);
    settle().await;
    assert_eq!(bench.fake.lease_ids(), [""; 0]);
}

/// A container that is being created may be based on layers that only the lease of a killed process keeps.
#[tokio::test(start_paused = true)]
async fn leftovers_are_removed_some_seconds_after_the_start() {
    let fake = Fake::default();
    fake.create_lease("nri-unpack-1-2-3", Labels::new())
        .await
        .unwrap();
    let bench = Bench::begun(fake, "", |_| percent(100));
    let is_left = || async {
        let leases = bench.fake.leases().await.unwrap();
        leases.iter().any(|lease| lease.id == "nri-unpack-1-2-3")
    };
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert!(is_left().await);
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!is_left().await);
}
