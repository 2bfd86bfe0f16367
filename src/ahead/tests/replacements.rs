//! Tests of chains in use that are replaced when nothing uses them any more.

use containerd_client::events::ContainerDelete;

use super::*;

/// Makes an image whose chain in nydus was unpacked on the host, with a container on it.
fn used_image(fake: &Fake, n: usize) -> Image {
    let image = image_with_own_layer(fake, &format!("r.example/used:{n}"));
    fake.commit_unlabelled("nydus", &only_chain(&image), None);
    fake.activate("nydus", &container(n), &only_chain(&image));
    image
}

fn container(n: usize) -> String {
    format!("container-{n}")
}

impl Bench {
    /// Asks for an image whose chain is in use.
    async fn ask_for_used(&self, image: &Image) {
        let asked = Request {
            want: Want::Image(image.name.clone()),
            snapshotter: "nydus".to_owned(),
            urgency: Urgency::Background,
        };
        let engine = &self.node.engine;
        let error = engine.ensure(asked).outcome().await.unwrap_err();
        assert!(matches!(*error, Error::InUse { .. }), "{error}");
        engine.replace_if_in_use(&error, "nydus");
    }

    fn emit_snapshot_removed(&self, key: &str) {
        let message = SnapshotRemove {
            key: key.to_owned(),
            snapshotter: "nydus".to_owned(),
        };
        self.emit("/snapshot/remove", &message);
    }
}

#[tokio::test(start_paused = true)]
async fn a_round_lists_once_for_all_images_in_use() {
    let bench = Bench::on(Fake::default(), "").await;
    let images: Vec<_> = (0..50).map(|n| used_image(&bench.fake, n)).collect();
    for image in &images {
        bench.ask_for_used(image).await;
    }
    bench.fake.calls();
    tokio::time::sleep(Duration::from_secs(5 * 60)).await;
    let listings = bench.fake.subjects("list snapshots of").len();
    assert!(
        (10..60).contains(&listings),
        "{listings} listings in 5 minutes"
    );
    // No container is being created.
    assert_eq!(bench.fake.subjects("prepare snapshot"), [""; 0]);
    bench.fake.calls();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let later = bench.fake.subjects("list snapshots of").len();
    assert!((10..15).contains(&later), "{later} listings in an hour");
}

#[tokio::test(start_paused = true)]
async fn a_chain_is_replaced_as_soon_as_its_user_is_removed() {
    let bench = Bench::on(Fake::default(), "").await;
    let images: Vec<_> = (0..3).map(|n| used_image(&bench.fake, n)).collect();
    for image in &images {
        bench.ask_for_used(image).await;
    }
    tokio::time::sleep(Duration::from_secs(3700)).await;
    for n in 0..3 {
        bench.fake.collect_container("nydus", &container(n));
    }
    bench.emit_snapshot_removed(&container(0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // One round finds all of them.
    for image in &images {
        assert_eq!(bench.state(image, "nydus").await, State::Ready);
    }
}

/// The snapshot of a container is removed after its record, without an event.
#[tokio::test(start_paused = true)]
async fn a_chain_is_replaced_as_soon_as_its_container_is_removed() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = used_image(&bench.fake, 0);
    bench.ask_for_used(&image).await;
    tokio::time::sleep(Duration::from_secs(3700)).await;
    let message = ContainerDelete { id: container(0) };
    bench.emit("/containers/delete", &message);
    tokio::time::sleep(Duration::from_millis(100)).await;
    bench.fake.collect_container("nydus", &container(0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.state(&image, "nydus").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn the_removal_of_other_snapshots_causes_no_listing() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = used_image(&bench.fake, 0);
    bench.ask_for_used(&image).await;
    tokio::time::sleep(Duration::from_secs(3700)).await;
    // The first event triggers a reconcile.
    bench.emit_snapshot_removed("another");
    settle().await;
    bench.fake.calls();
    for n in 1..50 {
        bench.emit_snapshot_removed(&container(n));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    assert_eq!(bench.fake.subjects("list snapshots of"), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_replacement_is_tried_again_after_another_error() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = used_image(&bench.fake, 0);
    bench.ask_for_used(&image).await;
    bench.fake.collect_container("nydus", &container(0));
    for _ in 0..3 {
        bench.fake.fail("prepare snapshot", 0, ErrorKind::Other);
    }
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.state(&image, "nydus").await, State::Ready);
}

/// A replacement has failed once, and then a container uses the chain again.
#[tokio::test(start_paused = true)]
async fn a_chain_that_is_used_again_after_a_failure_is_listed_rarely() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = used_image(&bench.fake, 0);
    bench
        .fake
        .slow("list snapshots of", Duration::from_millis(10));
    bench.ask_for_used(&image).await;
    bench.fake.forget("nydus", &container(0));
    bench.fake.fail("remove snapshot", 0, ErrorKind::Other);
    bench.emit_snapshot_removed(&container(0));
    tokio::time::sleep(Duration::from_millis(600)).await;
    assert_eq!(bench.state(&image, "nydus").await, State::Unlabelled);
    let chain = only_chain(&image);
    bench.fake.activate("nydus", &container(1), &chain);
    tokio::time::sleep(Duration::from_secs(3700)).await;
    bench.fake.calls();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let later = bench.fake.subjects("list snapshots of").len();
    assert!((10..15).contains(&later), "{later} listings in an hour");
}

#[tokio::test(start_paused = true)]
async fn an_image_that_is_removed_is_forgotten() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = used_image(&bench.fake, 0);
    bench.ask_for_used(&image).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.fake.untag(&image.name);
    bench.fake.collect_container("nydus", &container(0));
    bench.emit_snapshot_removed(&container(0));
    settle().await;
    bench.fake.calls();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    assert_eq!(bench.fake.subjects("list snapshots of"), [""; 0]);
}

/// The user of a chain is not short-lived when it is there some seconds later.
#[tokio::test(start_paused = true)]
async fn a_chain_is_held_by_a_user_that_stays() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = used_image(&bench.fake, 0);
    let error = Error::InUse {
        image: image.name.clone(),
        snapshotter: "nydus".to_owned(),
        state: State::Unlabelled,
        holders: 1,
    };
    let is_held = || bench.node.engine.is_held(&error, "nydus");
    bench.ask_for_used(&image).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!is_held());
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert!(is_held());
    bench.fake.collect_container("nydus", &container(0));
    bench.emit_snapshot_removed(&container(0));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!is_held());
}

/// A container is removed after the round has listed the snapshots, while it replaces another chain.
#[tokio::test(start_paused = true)]
async fn a_removal_during_a_long_round_is_not_lost() {
    const LONG: Duration = Duration::from_secs(60);
    let bench = Bench::on(Fake::default(), "").await;
    let images: Vec<_> = (0..2).map(|n| used_image(&bench.fake, n)).collect();
    for image in &images {
        bench.ask_for_used(image).await;
    }
    // From then on rounds run by events, and every five minutes.
    tokio::time::sleep(Duration::from_secs(3700)).await;
    bench.fake.slow("prepare snapshot", LONG);
    bench.fake.collect_container("nydus", &container(0));
    bench.emit_snapshot_removed(&container(0));
    tokio::time::sleep(LONG / 2).await;
    assert_eq!(bench.state(&images[0], "nydus").await, State::Missing);
    bench.fake.collect_container("nydus", &container(1));
    bench.emit_snapshot_removed(&container(1));
    tokio::time::sleep(LONG / 2 + Duration::from_secs(2)).await;
    assert_eq!(bench.state(&images[0], "nydus").await, State::Ready);
    tokio::time::sleep(LONG + Duration::from_secs(2)).await;
    assert_eq!(bench.state(&images[1], "nydus").await, State::Ready);
}

/// Nothing is created on it, so no private chain is made. Where it was unpacked on the host on guest-pulled layers, that
/// would be a whole unpack.
#[tokio::test(start_paused = true)]
async fn no_private_chain_is_made_for_an_existing_container() {
    let fake = Fake::default();
    let unlabelled = used_image(&fake, 0);
    let layers = ["lower", "upper"]
        .map(|it| fake.document("application/vnd.oci.image.layer.v1.tar", it.as_bytes()));
    let mixed = fake.image_from("r.example/mixed:1", &layers);
    let [lower, upper] = ["lower", "upper"]
        .map(|it| sha256(format!("what is in {}", sha256(it.as_bytes())).as_bytes()));
    let top = sha256(format!("{lower} {upper}").as_bytes());
    let proxied = Labels::from([(PROXY_MODE.to_owned(), "true".to_owned())]);
    fake.put("nydus", &lower, None, proxied);
    fake.commit_unlabelled("nydus", &top, Some(&lower));
    fake.activate("nydus", &container(1), &top);
    let bench = Bench::on(fake, "[snapshotters.nydus]\neager = \"none\"\n").await;
    assert_eq!(bench.state(&mixed, "nydus").await, State::Mixed);
    let names = [unlabelled.name.clone(), mixed.name.clone()];
    bench.ahead.check_existing(|_| {
        let existing = names.into_iter().enumerate();
        let existing = existing.map(|(n, image)| Existing {
            id: container(n),
            snapshotter: "nydus".to_owned(),
            image: Some(image),
        });
        existing.collect()
    });
    tokio::time::sleep(Duration::from_secs(60)).await;
    let all = bench.fake.all("nydus");
    let private = all
        .iter()
        .filter(|s| s.name.starts_with("nri-unpack-private-"));
    let private: Vec<_> = private.map(|s| &s.name).collect();
    assert!(private.is_empty(), "{private:?}");
    for (n, image) in [&unlabelled, &mixed].into_iter().enumerate() {
        bench.fake.collect_container("nydus", &container(n));
        bench.emit_snapshot_removed(&container(n));
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(bench.state(image, "nydus").await, State::Ready, "{n}");
    }
}
