//! Tests of which images are unpacked ahead in each snapshotter, and in which order.

use super::*;

#[tokio::test(start_paused = true)]
async fn pinned_images_are_ready_in_all_snapshotters_and_others_where_configured() {
    let fake = Fake::default();
    let app = fake.image(NAME, 3);
    let pause = fake.image("r.example/pause:1", 1);
    fake.label_image(&pause, pinned());
    let bench = Bench::on(fake, ALL).await;
    for (image, snapshotter, state) in [
        (&pause, "erofs", State::Ready),
        (&pause, "nydus", State::Ready),
        (&pause, "native", State::Missing),
        (&app, "erofs", State::Ready),
        (&app, "nydus", State::Partial),
    ] {
        let found = bench.state(image, snapshotter).await;
        assert_eq!(found, state, "{} in {snapshotter}", image.name);
    }
}

/// By default, a proxy plugin gets pinned images and images of which it mounts all but small layers without their
/// content.
#[tokio::test(start_paused = true)]
async fn a_proxy_plugin_gets_images_that_it_mounts_without_their_content() {
    let fake = Fake::default();
    let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
    let blob = |text: &str| fake.document(media_type, text.as_bytes());
    let (lazy, small) = (blob("a large layer with an index"), blob("small"));
    fake.is_lazy("erofs", std::slice::from_ref(&lazy));
    let mounted = fake.image_from("r.example/lazy:1", &[small.clone(), lazy.clone()]);
    let plain = fake.image_from(
        "r.example/plain:1",
        &[lazy, blob("a larger layer without an index")],
    );
    let pause = fake.image_from("r.example/pause:1", &[blob("pause")]);
    fake.label_image(&pause, pinned());
    let bench = Bench::on(fake, "").await;
    let later = bench.fake.image("r.example/later:1", 2);
    bench.emit_created(&later.name);
    settle().await;
    for (image, state) in [
        (&mounted, State::Ready),
        (&plain, State::Missing),
        (&pause, State::Ready),
        (&later, State::Missing),
    ] {
        assert_eq!(bench.state(image, "erofs").await, state, "{}", image.name);
    }
    assert_eq!(bench.fake.subjects("apply layer").len(), 2);
    assert_eq!(bench.fake.lease_ids(), [""; 0]);
    // The next reconcile does not probe the same images again, and they are not pending.
    bench.fake.calls();
    bench.fake.hang_up();
    settle().await;
    assert_eq!(bench.fake.subjects("prepare snapshot"), [""; 0]);
    let erofs = bench.ahead.worker("erofs").unwrap();
    assert_eq!(erofs.unready.raise_newest(), []);
    // A request of a pod unpacks the image.
    let asked = Request {
        want: Want::Image(plain.name.clone()),
        snapshotter: "erofs".to_owned(),
        urgency: Urgency::Asked,
    };
    bench.node.engine.ensure(asked).outcome().await.unwrap();
    assert_eq!(bench.state(&plain, "erofs").await, State::Ready);
    // With `eager = "all"`, all images are unpacked.
    let all = Config::from_toml(&format!("{CONFIG}{ALL}"), "test").unwrap();
    bench.node.reload(all);
    settle().await;
    assert_eq!(bench.state(&later, "erofs").await, State::Ready);
}

/// Images that are not unpacked ahead do not count towards the limit of snapshots.
#[tokio::test(start_paused = true)]
async fn an_image_that_needs_content_does_not_count_towards_the_limit() {
    for (free, state) in [(2, State::Ready), (0, State::Missing)] {
        let fake = Fake::default();
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let lazy = fake.document(media_type, b"a layer with an index");
        fake.is_lazy("erofs", std::slice::from_ref(&lazy));
        let mounted = fake.image_from("r.example/lazy:1", &[lazy]);
        let plain = fake.image("r.example/plain:1", 2);
        fake.came(&mounted, 1);
        fake.came(&plain, 2);
        for n in 0..MAX_SNAPSHOTS - free {
            fake.put("erofs", &format!("other {n}"), None, pinned());
        }
        let bench = Bench::on(fake, "").await;
        assert_eq!(
            bench.state(&mounted, "erofs").await,
            state,
            "{free} below the limit"
        );
        assert_eq!(bench.state(&plain, "erofs").await, State::Missing);
    }
}

#[tokio::test(start_paused = true)]
async fn used_images_come_after_pinned_ones_and_before_new_ones() {
    let fake = Fake::default();
    let image = |name: &str, came| {
        let image = image_with_own_layer(&fake, name);
        fake.came(&image, came);
        image
    };
    let (old, used) = (image("r.example/old:1", 2), image("r.example/used:1", 1));
    let (new, pause) = (image("r.example/new:1", 3), image("r.example/pause:1", 0));
    fake.label_image(&pause, pinned());
    fake.slow("prepare snapshot", Duration::from_secs(1));
    let bench = Bench::begun(fake, ALL, |_| percent(100));
    bench.ahead.is_used("r.example/used:1");
    let began = tokio::time::Instant::now();
    let names = [
        ("old", &old),
        ("used", &used),
        ("new", &new),
        ("pause", &pause),
    ];
    let mut times = Vec::new();
    while times.len() < names.len() {
        tokio::time::sleep(Duration::from_millis(10)).await;
        let made = bench.fake.all("erofs");
        let made = made
            .iter()
            .filter(|s| s.name.starts_with("sha256:"))
            .count();
        if made > times.len() {
            times.push(began.elapsed());
        }
    }
    let order = bench.prepared(&names);
    let order: Vec<_> = order.iter().map(String::as_str).collect();
    let in_erofs: Vec<_> = order.into_iter().filter(|name| *name != "pause").collect();
    assert_eq!(in_erofs, ["used", "new", "old"]);
    // An unpack takes a second, and a pause of a second follows.
    for pair in times[1..].windows(2) {
        let apart = pair[1] - pair[0];
        assert!(apart >= Duration::from_millis(1900), "{apart:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pinned_images_do_not_wait_for_the_check_of_all_others() {
    let fake = Fake::default();
    fake.image(NAME, 3);
    let pause = fake.image("r.example/pause:1", 1);
    fake.label_image(&pause, pinned());
    fake.slow("list snapshots of", Duration::from_secs(300));
    let bench = Bench::on(fake, ALL).await;
    let top = bench.fake.all("nydus");
    assert!(
        top.iter()
            .any(|s| s.labels.contains_key("containerd.io/snapshot.ref")),
        "{top:?}"
    );
}

/// All images wait behind a slow one when the pod starts.
#[tokio::test(start_paused = true)]
async fn a_pod_raises_the_priority_of_images_that_wait_in_the_reconcile() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.node.refresh();
    let names: Vec<_> = (0..20).map(|n| format!("r.example/app:{n}")).collect();
    let mut images = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let image = image_with_own_layer(&bench.fake, name);
        bench.fake.came(&image, 100 - n as u64);
        images.push(image);
    }
    bench.fake.slow("apply layer", Duration::from_secs(60));
    let hooks = bench.hooks().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.calls();
    let pod = Pod {
        runtime_handler: "local".to_owned(),
        ..Pod::default()
    };
    hooks.run_pod_sandbox(pod).await.unwrap();
    tokio::time::sleep(Duration::from_secs(600)).await;
    let named: Vec<_> = names.iter().map(String::as_str).zip(&images).collect();
    let order = bench.prepared(&named);
    // The first image is being unpacked already. The newest of the others follow in order, without pauses.
    assert_eq!(order[..6], names[1..7]);
}

/// The hook waits only for the images that the pod names.
#[tokio::test(start_paused = true)]
async fn a_pod_does_not_wait_for_images_that_are_on_their_way() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.node.refresh();
    for n in 0..20 {
        image_with_own_layer(&bench.fake, &format!("r.example/app:{n}"));
    }
    bench.fake.slow("apply layer", Duration::from_secs(60));
    let hooks = bench.hooks().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let pod = |annotations: &[(&str, &str)]| Pod {
        runtime_handler: "local".to_owned(),
        annotations: annotations
            .iter()
            .map(|(key, value)| ((*key).to_owned(), (*value).to_owned()))
            .collect(),
        ..Pod::default()
    };
    for (annotations, expected) in [
        (&[][..], Duration::ZERO),
        (
            &[(crate::policy::IMAGES, "r.example/app:7")],
            Duration::from_millis(500),
        ),
    ] {
        let began = tokio::time::Instant::now();
        hooks.run_pod_sandbox(pod(annotations)).await.unwrap();
        let took = began.elapsed();
        let late = took.saturating_sub(expected);
        assert!(
            took >= expected && late < Duration::from_millis(10),
            "{took:?}, {annotations:?}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn the_image_of_a_new_container_counts_as_used() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.node.refresh();
    let (used, new) = ("r.example/used:1", "r.example/new:1");
    let images = [used, new].map(|name| image_with_own_layer(&bench.fake, name));
    bench.fake.came(&images[0], 1);
    bench.fake.came(&images[1], 2);
    let hooks = bench.hooks().await;
    let container = Container {
        annotations: [("io.kubernetes.cri.image-name".to_owned(), used.to_owned())].into(),
        ..Container::default()
    };
    hooks
        .create_container(Pod::default(), container)
        .await
        .unwrap();
    settle().await;
    let named = [("used", &images[0]), ("new", &images[1])];
    assert_eq!(bench.prepared(&named), ["used", "new"]);
}

/// A probe may wait for a registry that does not answer.
#[tokio::test(start_paused = true)]
async fn probes_that_hang_do_not_delay_an_image_without_a_probe() {
    let fake = Fake::default();
    fake.is_lazy("erofs", &[]);
    let bench = Bench::on(fake, "").await;
    bench
        .fake
        .prepares_in("erofs", Duration::from_secs(60 * 60));
    for n in 0..16 {
        let image = image_with_own_layer(&bench.fake, &format!("r.example/hangs:{n}"));
        bench.emit_created(&image.name);
    }
    settle().await;
    let unpacked = image_with_own_layer(&bench.fake, "r.example/unpacked:1");
    let chain = only_chain(&unpacked);
    bench.fake.commit_unlabelled("erofs", &chain, None);
    bench.emit_created(&unpacked.name);
    settle().await;
    assert_eq!(bench.state(&unpacked, "erofs").await, State::Ready);
}
