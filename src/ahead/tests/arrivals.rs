//! Events: images that arrive, volumes, and removals.

use super::*;

#[tokio::test(start_paused = true)]
async fn what_arrives_is_made_ready_and_what_was_missed_is_found() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let first = bench.fake.image(NAME, 3);
    bench.created(NAME);
    settle().await;
    assert_eq!(bench.state(&first, "erofs").await, State::Ready);

    // No event reports this one: no subscription existed.
    bench.fake.hang_up();
    let second = bench.fake.image("r.example/second:1", 4);
    settle().await;
    assert_eq!(bench.state(&second, "erofs").await, State::Ready);
    let third = bench.fake.image("r.example/third:1", 5);
    bench.created(&third.name);
    settle().await;
    assert_eq!(bench.state(&third, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn more_than_fits_is_found_all_the_same() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let images: Vec<_> = (0..40)
        .map(|n| bench.fake.image(&format!("r.example/app:{n}"), 1))
        .collect();
    for _ in 0..20 {
        images.iter().for_each(|image| bench.created(&image.name));
    }
    settle().await;
    for image in &images {
        assert_eq!(bench.state(image, "erofs").await, State::Ready);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_on_its_way_is_known() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.fake.slow("prepare snapshot", Duration::from_secs(60));
    for name in [NAME, "r.example/second:1"] {
        bench.fake.image(name, 1);
        bench.created(name);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let wants = bench.ahead.unready_in("erofs");
    let names: Vec<_> = wants.iter().map(Want::name).collect();
    assert_eq!(names, ["r.example/second:1", NAME]);
    assert_eq!(bench.ahead.unready_in("nydus"), []);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(bench.ahead.unready_in("erofs"), []);
}

#[tokio::test(start_paused = true)]
async fn the_labels_carry_the_tag_whichever_record_arrives_first() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let image = bench.fake.image(NAME, 2);
    let by_digest = format!("r.example/app@{}", image.target.digest);
    bench.fake.tag(&by_digest, image.target.clone());
    bench.created(&by_digest);
    settle().await;
    let all = bench.fake.all("erofs");
    assert_eq!(all.len(), 2);
    for snapshot in all {
        let name = snapshot.labels.get("containerd.io/snapshot/cri.image-ref");
        assert_eq!(name.map(String::as_str), Some(NAME));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_event_shows_that_the_subscription_had_begun() {
    let fake = Fake::default();
    fake.slow("subscribe to", Duration::from_secs(5));
    let bench = Bench::begun(fake, ALL, |_| Ok(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // Looked at already, and not heard yet.
    let image = bench.fake.image(NAME, 2);
    bench.created(NAME);
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
    bench.created("r.example/none:1");
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_removal_is_heard_while_all_else_waits() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let image = bench.fake.image(NAME, 1);
    bench.created(NAME);
    settle().await;
    let all = bench.fake.all("erofs");
    let top = all
        .iter()
        .find(|s| s.parent.is_none())
        .unwrap()
        .name
        .clone();
    bench.fake.activate("erofs", "c", &top);
    let parent_chain = || async {
        let engine = &bench.node.engine;
        engine
            .parent_chain("erofs", "c", Some(NAME), false)
            .await
            .unwrap()
    };
    assert_eq!(parent_chain().await, ParentChain::Ready);
    bench.fake.slow("get image", Duration::from_secs(3600));
    for n in 0..400 {
        bench.created(&format!("r.example/app:{n}"));
    }
    bench.removed(&image.name);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(parent_chain().await, ParentChain::Unknown { chain: top });
}

/// And does not wait behind what has only arrived.
#[tokio::test(start_paused = true)]
async fn the_image_of_a_volume_is_made_ready() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = bench.fake.image(NAME, 2);
    bench.fake.slow("get image", Duration::from_secs(10));
    for n in 0..100 {
        bench.created(&format!("r.example/app:{n}"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.ahead.volume("erofs", image.target.digest.clone());
    bench.ahead.volume("erofs", image.target.digest.clone());
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn the_pause_image_arrives_unpinned() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"r.example/pause:1\"\n";
    std::fs::write(file.path(), config).unwrap();
    let fake = Arc::new(Fake::default());
    let config = CONFIG.replace("/nonexistent/config.toml", file.path().to_str().unwrap());
    let config = Config::from_toml(&config, "test").unwrap();
    let node = Node::seeing(config, Role::Daemon, fake.clone(), |_| Ok(100));
    node.refresh();
    let ahead = Ahead::begin(&node);
    settle().await;
    let bench = Bench { fake, node, ahead };
    bench.created("r.example/none:1");
    settle().await;
    let (pause, app) = (
        bench.fake.image("r.example/pause:1", 1),
        bench.fake.image(NAME, 2),
    );
    bench.created(&pause.name);
    bench.created(&app.name);
    settle().await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Ready);
    assert_eq!(bench.state(&app, "erofs").await, State::Partial);
}
