//! Tests of images that are still being pulled, and of the image names in their labels.

use super::*;

/// An image that is being pulled has no record, so its labels name it by its digest.
#[tokio::test(start_paused = true)]
async fn an_image_that_is_being_pulled_is_held_and_gets_its_name_afterwards() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = bench.fake.image(NAME, 2);
    let documents = bench.fake.documents_of(&image);
    bench.fake.untag(NAME);
    let arriving = Image {
        name: format!("r.example/app@{}", image.target.digest),
        ..image.clone()
    };
    bench.fake.slow("prepare snapshot", Duration::from_secs(5));
    let ticket = bench.node.engine.ensure(Request {
        want: Want::Arriving(arriving.clone()),
        snapshotter: "erofs".to_owned(),
        urgency: Urgency::Arrived,
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    let [lease] = &bench.fake.lease_ids()[..] else {
        panic!("expected one lease")
    };
    let held = bench.fake.lease_resources(lease).await.unwrap();
    for digest in documents {
        assert!(held.contains(&Resource::blob(&digest)), "{held:?}");
    }
    ticket.clone().outcome().await.unwrap();

    bench.fake.tag(NAME, image.target.clone());
    let name = || {
        let all = bench.fake.all("erofs");
        let names = all.iter().map(|s| s.labels.get(IMAGE_REF).cloned());
        names.map(Option::unwrap_or_default).collect::<Vec<_>>()
    };
    assert_eq!(name(), [arriving.name.as_str(); 2]);
    let engine = &bench.node.engine;
    assert_eq!(engine.name_layers(NAME, "erofs").await.unwrap(), 2);
    assert_eq!(name(), [NAME; 2]);
    assert_eq!(engine.name_layers(NAME, "erofs").await.unwrap(), 0);
}

/// During the pull the port of the registry is not known. Labels without it do not count as ready, and are corrected.
#[tokio::test(start_paused = true)]
async fn labels_get_the_port_of_the_registry_from_the_record() {
    let bench = Bench::on(Fake::default(), "").await;
    let name = "r.example:5000/app:1";
    let image = bench.fake.image(name, 2);
    bench.fake.untag(name);
    let arriving = Image {
        name: format!("r.example/app@{}", image.target.digest),
        ..image.clone()
    };
    let ensure = |want| async {
        let request = Request {
            want,
            snapshotter: "nydus".to_owned(),
            urgency: Urgency::Arrived,
        };
        bench.node.engine.ensure(request).outcome().await.unwrap()
    };
    ensure(Want::Arriving(arriving.clone())).await;
    bench.fake.tag(name, image.target.clone());
    let layers = bench.fake.all("nydus");
    assert!(layers.iter().all(|s| s.labels[IMAGE_REF] == arriving.name));
    assert_eq!(bench.state(&image, "nydus").await, State::Foreign);

    let top = layers.iter().find(|s| s.parent.is_some()).unwrap();
    bench.fake.activate("nydus", "c", &top.name);
    let engine = &bench.node.engine;
    let parent_chain = engine
        .parent_chain("nydus", "c", Some(name), false)
        .await
        .unwrap();
    let chain = top.name.clone();
    assert_eq!(
        parent_chain,
        ParentChain::Unknown {
            chain: chain.clone()
        }
    );
    let done = ensure(Want::Container {
        key: "c".to_owned(),
        chain,
        name: Some(name.to_owned()),
        left_to_containerd: false,
    });
    assert_eq!(done.await.action, Action::Relabelled);
    let all = bench.fake.all("nydus");
    let layers = all.iter().filter(|s| s.name != "c");
    assert!(
        layers.clone().all(|s| s.labels[IMAGE_REF] == name),
        "{all:?}"
    );
    assert_eq!(bench.state(&image, "nydus").await, State::Ready);
}

/// A request for the record's name does not join the flight that began before the record existed.
#[tokio::test(start_paused = true)]
async fn layers_of_a_pull_are_relabelled_for_a_request_by_name() {
    let bench = Bench::on(Fake::default(), "").await;
    let name = "r.example:5000/app:1";
    let image = bench.fake.image(name, 2);
    bench.fake.untag(name);
    let arriving = Image {
        name: format!("r.example/app@{}", image.target.digest),
        ..image.clone()
    };
    let ensure = |want| async {
        let request = Request {
            want,
            snapshotter: "nydus".to_owned(),
            urgency: Urgency::Arrived,
        };
        bench.node.engine.ensure(request).outcome().await.unwrap()
    };
    bench.fake.slow("prepare snapshot", Duration::from_secs(1));
    let with_the_record = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        bench.fake.tag(name, image.target.clone());
        let done = ensure(Want::Image(name.to_owned())).await;
        (done.action, bench.fake.all("nydus"))
    };
    let in_the_pull = ensure(Want::Arriving(arriving));
    let (_, (action, layers)) = futures::join!(in_the_pull, with_the_record);
    assert_eq!(action, Action::Relabelled);
    assert!(layers.iter().all(|s| s.labels[IMAGE_REF] == name));
}

/// The flight that began during the pull found a chain in use, with lower layers from the pull. The image has its name
/// when a container is moved, and when the chain is replaced.
#[tokio::test(start_paused = true)]
async fn a_later_replacement_uses_the_current_name_of_the_image() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = bench.fake.image(NAME, 2);
    let by_digest = format!("r.example/app@{}", image.target.digest);
    bench.fake.tag(&by_digest, image.target.clone());
    let ensure = || async {
        let asked = Request {
            want: Want::Image(by_digest.clone()),
            snapshotter: "nydus".to_owned(),
            urgency: Urgency::Arrived,
        };
        bench.node.engine.ensure(asked).outcome().await
    };
    ensure().await.unwrap();
    let layers = bench.fake.all("nydus");
    let lower = layers.iter().find(|s| s.parent.is_none()).unwrap();
    let top = layers.iter().find(|s| s.parent.is_some()).unwrap();
    bench.fake.forget("nydus", &top.name);
    let (lower, top) = (lower.name.as_str(), top.name.as_str());
    bench.fake.commit_unlabelled("nydus", top, Some(lower));
    bench.fake.activate("nydus", "c", top);
    // A container keeps the lower layer.
    bench.fake.activate("nydus", "other", lower);
    let error = ensure().await.unwrap_err();
    bench.node.engine.replace_if_in_use(&error, "nydus");
    // The request of the container's hook makes a private chain whose labels have the tag.
    let asked = Request {
        want: Want::Container {
            key: "c".to_owned(),
            chain: top.to_owned(),
            name: Some(NAME.to_owned()),
            left_to_containerd: false,
        },
        snapshotter: "nydus".to_owned(),
        urgency: Urgency::Creation,
    };
    bench.node.engine.ensure(asked).outcome().await.unwrap_err();
    bench.fake.collect_container("nydus", "c");
    settle().await;
    let layers = bench.fake.all("nydus");
    let names = layers.iter().filter_map(|s| s.labels.get(IMAGE_REF));
    assert_eq!(names.collect::<Vec<_>>(), [NAME; 3], "{error}");
}
