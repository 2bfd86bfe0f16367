//! Free space, and the limit of snapshots in one snapshotter.

use super::*;

#[tokio::test(start_paused = true)]
async fn without_free_space_only_what_is_asked_for_is_unpacked() {
    static FREE: AtomicU64 = AtomicU64::new(3);
    let fake = Fake::default();
    let image = fake.image(NAME, 2);
    let free = |_: &str| Ok(FREE.load(Ordering::Relaxed));
    let bench = Bench::with_free(fake, ALL, free).await;
    let later = bench.fake.image("r.example/later:1", 3);
    bench.created(&later.name);
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
    let asked = Request {
        want: Want::Image(NAME.to_owned()),
        snapshotter: "erofs".to_owned(),
        urgency: Urgency::Asked,
    };
    bench.node.engine.ensure(asked).outcome().await.unwrap();
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
    assert_eq!(bench.state(&later, "erofs").await, State::Partial);

    FREE.store(50, Ordering::Relaxed);
    settle().await;
    assert_eq!(bench.state(&later, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_full_snapshotter_makes_no_hook_wait() {
    let fake = Fake::default();
    let pause = fake.image("r.example/pause:1", 1);
    fake.label_image(&pause, pinned());
    let config = "[snapshotters.default]\neager = \"all\"\n[unpack]\nparallel_images = 1\n";
    let free = |root: &str| Ok(if root == "/erofs" { 3 } else { 50 });
    let bench = Bench::with_free(fake, config, free).await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Missing);
    assert_eq!(bench.state(&pause, "nydus").await, State::Ready);
    // A reconcile goes on as before.
    bench.fake.hang_up();
    let later = bench.fake.image("r.example/later:1", 2);
    settle().await;
    assert_eq!(bench.state(&later, "nydus").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_snapshotter_that_holds_many_gets_no_more_until_images_go() {
    let fake = Fake::default();
    let others: Vec<_> = (0..MAX_SNAPSHOTS)
        .map(|n| format!("sha256:{n:064}"))
        .collect();
    for name in &others {
        fake.commit_unlabelled("erofs", name, None);
    }
    let (first, pause) = (fake.image(NAME, 3), fake.image("r.example/pause:1", 4));
    fake.label_image(&pause, pinned());
    let bench = Bench::on(fake, ALL).await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Ready);
    let of = image_of_its_own_layer(&bench.fake, "r.example/later:1");
    bench.created(&of.name);
    settle().await;
    assert_eq!(bench.state(&of, "erofs").await, State::Missing);
    // All of its layers are there; it lacks its anchor alone.
    assert_eq!(bench.state(&first, "erofs").await, State::Ready);

    others[..5]
        .iter()
        .for_each(|name| bench.fake.forget("erofs", name));
    bench.removed("r.example/gone:1");
    settle().await;
    assert_eq!(bench.state(&of, "erofs").await, State::Ready);
}

/// What was counted is too much, and what was listed was so then.
#[tokio::test(start_paused = true)]
async fn a_snapshotter_that_seems_full_is_listed_again() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.ahead.snapshot_counts.more("erofs", MAX_SNAPSHOTS);
    assert!(!bench.ahead.is_full_enough("erofs"), "nothing is left yet");
    settle().await;
    assert_eq!(bench.ahead.snapshot_counts.is_full("erofs"), Some(false));

    bench.ahead.snapshot_counts.listed("erofs", MAX_SNAPSHOTS);
    assert!(bench.ahead.is_full_enough("erofs"));
    settle().await;
    assert_eq!(bench.ahead.snapshot_counts.is_full("erofs"), Some(false));
}

/// The first in a list has no room.
#[tokio::test(start_paused = true)]
async fn a_full_place_keeps_no_other_container_waiting() {
    let fake = Fake::default();
    let image = image_of_its_own_layer(&fake, NAME);
    let top = only_chain(&image);
    for snapshotter in ["nydus", "erofs"] {
        fake.commit_unlabelled(snapshotter, &top, None);
        fake.activate(snapshotter, &format!("in-{snapshotter}"), &top);
    }
    let free = |root: &str| Ok(if root == "/nydus" { 0 } else { 100 });
    let bench = Bench::with_free(fake, "", free).await;
    bench.ahead.check_existing(|_| {
        let existing = |snapshotter: &str| Existing {
            id: format!("in-{snapshotter}"),
            snapshotter: snapshotter.to_owned(),
            image: Some(NAME.to_owned()),
        };
        vec![existing("nydus"), existing("erofs")]
    });
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
    assert_eq!(bench.state(&image, "nydus").await, State::Unlabelled);
}
