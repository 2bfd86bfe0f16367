//! Tests of the limits of free space and of snapshots in a snapshotter.

use super::*;

#[tokio::test(start_paused = true)]
async fn with_too_little_free_space_only_requested_images_are_unpacked() {
    static FREE: AtomicU64 = AtomicU64::new(3);
    let fake = Fake::default();
    let image = fake.image(NAME, 2);
    let free = |_: &str| Ok(FREE.load(Ordering::Relaxed));
    let bench = Bench::with_free(fake, ALL, free).await;
    let later = bench.fake.image("r.example/later:1", 3);
    bench.emit_created(&later.name);
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
async fn too_little_space_for_one_snapshotter_does_not_stop_another() {
    let fake = Fake::default();
    let pause = fake.image("r.example/pause:1", 1);
    fake.label_image(&pause, pinned());
    let config = "[snapshotters.default]\neager = \"all\"\n[unpack]\nparallel_images = 1\n";
    let free = |root: &str| Ok(if root == "/erofs" { 3 } else { 50 });
    let bench = Bench::with_free(fake, config, free).await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Missing);
    assert_eq!(bench.state(&pause, "nydus").await, State::Ready);
    // The next reconcile also continues with the other snapshotter.
    bench.fake.hang_up();
    let later = bench.fake.image("r.example/later:1", 2);
    settle().await;
    assert_eq!(bench.state(&later, "nydus").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_snapshotter_at_its_limit_gets_no_images_until_some_are_removed() {
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
    let late = image_with_own_layer(&bench.fake, "r.example/later:1");
    bench.emit_created(&late.name);
    settle().await;
    assert_eq!(bench.state(&late, "erofs").await, State::Missing);
    // All its layers exist; only its anchor is missing.
    assert_eq!(bench.state(&first, "erofs").await, State::Ready);

    others[..5]
        .iter()
        .for_each(|name| bench.fake.forget("erofs", name));
    bench.emit_removed("r.example/gone:1");
    settle().await;
    assert_eq!(bench.state(&late, "erofs").await, State::Ready);
}

/// The count is an estimate since the last listing.
#[tokio::test(start_paused = true)]
async fn a_snapshotter_is_listed_again_when_its_count_reaches_the_limit() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let erofs = bench.ahead.worker("erofs").unwrap();
    erofs.count.more(MAX_SNAPSHOTS);
    assert!(!erofs.is_at_limit(), "no image was skipped yet");
    settle().await;
    assert_eq!(erofs.count.is_at_limit(), Some(false));

    erofs.count.listed(MAX_SNAPSHOTS);
    assert!(erofs.is_at_limit());
    settle().await;
    assert_eq!(erofs.count.is_at_limit(), Some(false));
}

/// The first container's snapshotter has too little free space.
#[tokio::test(start_paused = true)]
async fn too_little_space_for_one_container_does_not_delay_another() {
    let fake = Fake::default();
    let image = image_with_own_layer(&fake, NAME);
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
