//! What each snapshotter gets ahead, and in which order.

use super::*;

#[tokio::test(start_paused = true)]
async fn pinned_images_are_everywhere_and_others_where_they_are_wanted() {
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

/// By default a proxy plugin gets the images that it needs no content for, but for small layers of theirs,
/// and the pinned ones.
#[tokio::test(start_paused = true)]
async fn what_has_to_be_unpacked_is_decided_for_each_image() {
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
    bench.created(&later.name);
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
    // It is not asked for the same again at once, and a new pod does not push what is not on its way.
    bench.fake.calls();
    bench.fake.hang_up();
    settle().await;
    assert_eq!(bench.fake.subjects("prepare snapshot"), [""; 0]);
    assert_eq!(bench.ahead.unready_in("erofs"), []);
    // A pod that asks gets it.
    let asked = Request {
        want: Want::Image(plain.name.clone()),
        snapshotter: "erofs".to_owned(),
        urgency: Urgency::Asked,
    };
    bench.node.engine.ensure(asked).outcome().await.unwrap();
    assert_eq!(bench.state(&plain, "erofs").await, State::Ready);
    // With `eager = "all"` everything is.
    let all = Config::from_toml(&format!("{CONFIG}{ALL}"), "test").unwrap();
    bench.node.reload(all);
    settle().await;
    assert_eq!(bench.state(&later, "erofs").await, State::Ready);
}

/// Only what is made counts towards what a snapshotter may hold.
#[tokio::test(start_paused = true)]
async fn what_has_to_be_unpacked_takes_no_place() {
    for (room, state) in [(2, State::Ready), (0, State::Missing)] {
        let fake = Fake::default();
        let media_type = "application/vnd.oci.image.layer.v1.tar+gzip";
        let lazy = fake.document(media_type, b"a layer with an index");
        fake.is_lazy("erofs", std::slice::from_ref(&lazy));
        let mounted = fake.image_from("r.example/lazy:1", &[lazy]);
        let plain = fake.image("r.example/plain:1", 2);
        fake.came(&mounted, 1);
        fake.came(&plain, 2);
        for n in 0..MAX_SNAPSHOTS - room {
            fake.put("erofs", &format!("other {n}"), None, pinned());
        }
        let bench = Bench::on(fake, "").await;
        assert_eq!(
            bench.state(&mounted, "erofs").await,
            state,
            "room for {room}"
        );
        assert_eq!(bench.state(&plain, "erofs").await, State::Missing);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_used_comes_before_what_is_new_and_after_what_is_pinned() {
    let fake = Fake::default();
    let image = |name: &str, came| {
        let image = image_of_its_own_layer(&fake, name);
        fake.came(&image, came);
        image
    };
    let (old, used) = (image("r.example/old:1", 2), image("r.example/used:1", 1));
    let (new, pause) = (image("r.example/new:1", 3), image("r.example/pause:1", 0));
    fake.label_image(&pause, pinned());
    fake.slow("prepare snapshot", Duration::from_secs(1));
    let bench = Bench::begun(fake, ALL, |_| Ok(100));
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
    // One takes a second, and then there is a rest of a second.
    for pair in times[1..].windows(2) {
        let apart = pair[1] - pair[0];
        assert!(apart >= Duration::from_millis(1900), "{apart:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn pinned_images_do_not_wait_for_a_look_at_all_others() {
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

/// Everything waits behind an image that takes long, and a pod comes.
#[tokio::test(start_paused = true)]
async fn a_pod_pushes_what_waits_in_the_reconcile() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.node.refresh();
    let names: Vec<_> = (0..20).map(|n| format!("r.example/app:{n}")).collect();
    let mut images = Vec::new();
    for (n, name) in names.iter().enumerate() {
        let image = image_of_its_own_layer(&bench.fake, name);
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
    // The first is in the air already. The newest of the others follow, in their order, at once.
    assert_eq!(order[..6], names[1..7]);
}

#[tokio::test(start_paused = true)]
async fn what_a_container_is_created_from_is_used() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.node.refresh();
    let (used, new) = ("r.example/used:1", "r.example/new:1");
    let images = [used, new].map(|name| image_of_its_own_layer(&bench.fake, name));
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
