//! Tests of the limits of free space and of snapshots in a snapshotter.

use super::*;

#[tokio::test(start_paused = true)]
async fn with_too_little_free_space_only_requested_images_are_unpacked() {
    static FREE: AtomicU64 = AtomicU64::new(3);
    let fake = Fake::default();
    let image = fake.image(NAME, 2);
    let free = |_: &str| percent(FREE.load(Ordering::Relaxed));
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
    let free = |root: &str| percent(if root == "/erofs" { 3 } else { 50 });
    let bench = Bench::with_free(fake, config, free).await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Ready);
    assert_eq!(bench.state(&pause, "nydus").await, State::Ready);
    // The next reconcile also continues with the other snapshotter.
    bench.fake.hang_up();
    let later = image_with_own_layer(&bench.fake, "r.example/later:1");
    settle().await;
    assert_eq!(bench.state(&later, "erofs").await, State::Missing);
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

#[tokio::test(start_paused = true)]
async fn what_applies_no_layer_needs_no_free_space() {
    let fake = Fake::default();
    // A proxy plugin whose images the guest pulls.
    fake.is_lazy("nydus", &[]);
    let image = |name| image_with_own_layer(&fake, name);
    let (pause, plain) = (image("r.example/pause:1"), image("r.example/plain:1"));
    let unlabelled = image("r.example/labels:1");
    fake.label_image(&pause, pinned());
    fake.commit_unlabelled("erofs", &only_chain(&unlabelled), None);
    let bench = Bench::with_free(fake, ALL, |_| percent(3)).await;
    let arrives = image_with_own_layer(&bench.fake, "r.example/arrives:1");
    bench
        .fake
        .commit_unlabelled("erofs", &only_chain(&arrives), None);
    bench.emit_created(&arrives.name);
    settle().await;
    for (image, snapshotter, state) in [
        (&pause, "erofs", State::Ready),
        (&unlabelled, "erofs", State::Ready),
        (&arrives, "erofs", State::Ready),
        (&plain, "nydus", State::Ready),
        (&plain, "erofs", State::Missing),
    ] {
        let found = bench.state(image, snapshotter).await;
        assert_eq!(found, state, "{} in {snapshotter}", image.name);
    }
}

#[tokio::test(start_paused = true)]
async fn existing_containers_are_checked_without_free_space() {
    let fake = Fake::default();
    let image = image_with_own_layer(&fake, NAME);
    let top = only_chain(&image);
    fake.commit_unlabelled("erofs", &top, None);
    fake.activate("erofs", "c", &top);
    let bench = Bench::with_free(fake, "", |_| percent(0)).await;
    bench.ahead.check_existing(|_| {
        vec![Existing {
            id: "c".to_owned(),
            snapshotter: "erofs".to_owned(),
            image: Some(NAME.to_owned()),
        }]
    });
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn repairs_do_not_wait_behind_unpacks() {
    let fake = Fake::default();
    for n in 0..5 {
        let unpacked = image_with_own_layer(&fake, &format!("r.example/unpacked:{n}"));
        fake.came(&unpacked, 10 + n);
    }
    let repaired = image_with_own_layer(&fake, NAME);
    fake.came(&repaired, 1);
    fake.commit_unlabelled("erofs", &only_chain(&repaired), None);
    fake.slow("apply layer", Duration::from_secs(60));
    let bench = Bench::on(fake, ALL).await;
    assert_eq!(bench.state(&repaired, "erofs").await, State::Ready);
}

/// 21 % of the file system are free. The layer of each image is estimated to take 3 % of it.
#[tokio::test(start_paused = true)]
async fn the_size_of_an_image_is_counted() {
    static FREE: AtomicU64 = AtomicU64::new(21_000);
    let space = |_: &str| {
        Ok(Space {
            free: FREE.load(Ordering::Relaxed),
            total: 100_000,
        })
    };
    let fake = Fake::default();
    let image = |name: &str| {
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let blob = name.repeat(1000).into_bytes();
        let layer = fake.document(media_type, &blob[..1000]);
        fake.image_from(name, &[layer])
    };
    let first = image("r.example/first:1");
    let bench = Bench::with_free(fake, ALL, space).await;
    assert_eq!(bench.state(&first, "erofs").await, State::Missing);
    FREE.store(25_000, Ordering::Relaxed);
    settle().await;
    assert_eq!(bench.state(&first, "erofs").await, State::Ready);
}

/// No event follows, and no other image fails.
#[tokio::test(start_paused = true)]
async fn a_failed_image_is_tried_again_by_itself() {
    let bench = Bench::on(Fake::default(), ALL).await;
    // The first event triggers a reconcile, which ends before the image arrives.
    bench.emit_created("r.example/none:1");
    settle().await;
    let image = image_with_own_layer(&bench.fake, NAME);
    // As without space.
    bench.fake.fail("apply layer", 0, ErrorKind::Other);
    bench.fake.fail("apply layer", 0, ErrorKind::Other);
    bench.emit_created(NAME);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

#[test]
fn pods_wait_only_for_pinned_images_that_another_try_may_make_ready() {
    let (image, snapshotter) = (NAME.to_owned(), "erofs".to_owned());
    let source = crate::containerd::Error::malformed("apply layer", "sha256:0", "no space");
    let in_use = |state| Error::InUse {
        image: image.clone(),
        snapshotter: snapshotter.clone(),
        state,
        holders: 1,
    };
    for (error, expected) in [
        (in_use(State::Unlabelled), true),
        (in_use(State::Lost), false),
        (
            Error::Excluded {
                image: image.clone(),
                snapshotter: snapshotter.clone(),
            },
            true,
        ),
        (Error::Removed(image.clone()), true),
        (Error::Stopped(image.clone()), false),
        (Error::Image(image::Error::Ambiguous(image.clone())), true),
        (
            Error::Image(image::Error::NoPlatform {
                image: image.clone(),
                platform: "linux/amd64".to_owned(),
                digest: "sha256:0".to_owned(),
            }),
            true,
        ),
        (
            Error::Containerd {
                image: image.clone(),
                snapshotter: snapshotter.clone(),
                source,
            },
            false,
        ),
    ] {
        assert_eq!(is_settled(&error), expected, "{error}");
    }
}
