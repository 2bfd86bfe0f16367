//! Tests of events: new images, volumes, and removed images.

use super::*;
use crate::containerd::ErrorKind;
use crate::unpack::ParentChain;

#[tokio::test(start_paused = true)]
async fn images_of_events_and_of_missed_events_are_made_ready() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let first = bench.fake.image(NAME, 3);
    bench.emit_created(NAME);
    settle().await;
    assert_eq!(bench.state(&first, "erofs").await, State::Ready);

    // There is no event for this image, because the subscription had ended.
    bench.fake.hang_up();
    let second = bench.fake.image("r.example/second:1", 4);
    settle().await;
    assert_eq!(bench.state(&second, "erofs").await, State::Ready);
    let third = bench.fake.image("r.example/third:1", 5);
    bench.emit_created(&third.name);
    settle().await;
    assert_eq!(bench.state(&third, "erofs").await, State::Ready);
}

/// While the plugin heard nothing, the image was removed and pulled again: below a container its chain stays, without the
/// anchor.
#[tokio::test(start_paused = true)]
async fn after_a_gap_in_the_events_no_chain_counts_as_known() {
    for hears in [true, false] {
        let bench = Bench::on(Fake::default(), ALL).await;
        let image = image_with_own_layer(&bench.fake, NAME);
        bench.emit_created(NAME);
        settle().await;
        bench
            .fake
            .activate("erofs", "container", &only_chain(&image));
        if !hears {
            bench.fake.slow("get image", Duration::from_secs(3600));
            bench.fake.slow("list images of", Duration::from_secs(3600));
            bench.fake.hang_up();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
        let parent = bench
            .node
            .engine
            .parent_chain("erofs", "container", None, false);
        assert_eq!(parent.await.unwrap() == ParentChain::Ready, hears);
    }
}

/// A look at an image that fails is repeated, and no event is needed.
#[tokio::test(start_paused = true)]
async fn an_image_that_could_not_be_looked_at_is_tried_again() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.emit_created("r.example/none:1");
    settle().await;
    let image = image_with_own_layer(&bench.fake, NAME);
    bench.fake.fail("read blob", 0, ErrorKind::Other);
    bench.fake.hang_up();
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert_eq!(bench.fake.pending_faults(), [""; 0]);
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn images_whose_events_were_dropped_are_made_ready() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let images: Vec<_> = (0..40)
        .map(|n| bench.fake.image(&format!("r.example/app:{n}"), 1))
        .collect();
    for _ in 0..20 {
        images
            .iter()
            .for_each(|image| bench.emit_created(&image.name));
    }
    settle().await;
    for image in &images {
        assert_eq!(bench.state(image, "erofs").await, State::Ready);
    }
}

#[tokio::test(start_paused = true)]
async fn the_labels_have_the_tag_although_the_digest_record_arrives_first() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let image = bench.fake.image(NAME, 2);
    let by_digest = format!("r.example/app@{}", image.target.digest);
    bench.fake.tag(&by_digest, image.target.clone());
    bench.emit_created(&by_digest);
    settle().await;
    let all = bench.fake.all("erofs");
    assert_eq!(all.len(), 2);
    for snapshot in all {
        let name = snapshot.labels.get("containerd.io/snapshot/cri.image-ref");
        assert_eq!(name.map(String::as_str), Some(NAME));
    }
}

#[tokio::test(start_paused = true)]
async fn the_first_event_triggers_a_reconcile() {
    let fake = Fake::default();
    fake.slow("subscribe to", Duration::from_secs(5));
    let bench = Bench::begun(fake, ALL, |_| percent(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    // The first reconcile has ended, and the subscription has not begun yet.
    let image = bench.fake.image(NAME, 2);
    bench.emit_created(NAME);
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
    bench.emit_created("r.example/none:1");
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_removal_is_handled_while_other_events_wait() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let image = bench.fake.image(NAME, 1);
    bench.emit_created(NAME);
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
        bench.emit_created(&format!("r.example/app:{n}"));
    }
    bench.emit_removed(&image.name);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(parent_chain().await, ParentChain::Unknown { chain: top });
}

/// The image does not wait behind the events of new images.
#[tokio::test(start_paused = true)]
async fn the_image_of_a_volume_is_made_ready() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = bench.fake.image(NAME, 2);
    bench.fake.slow("get image", Duration::from_secs(10));
    for n in 0..100 {
        bench.emit_created(&format!("r.example/app:{n}"));
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.ahead.volume("erofs", image.target.digest.clone());
    bench.ahead.volume("erofs", image.target.digest.clone());
    tokio::time::sleep(Duration::from_secs(25)).await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_pause_image_without_the_pinned_label_is_made_ready() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let config = "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = \"r.example/pause:1\"\n";
    std::fs::write(file.path(), config).unwrap();
    let fake = Arc::new(Fake::default());
    let config = CONFIG.replace("/nonexistent/config.toml", file.path().to_str().unwrap());
    let config = Config::from_toml(&config, "test").unwrap();
    let node = Node::seeing(config, Role::Daemon, fake.clone(), |_| percent(100));
    node.refresh();
    let ahead = Ahead::begin(&node);
    settle().await;
    let bench = Bench { fake, node, ahead };
    bench.emit_created("r.example/none:1");
    settle().await;
    let (pause, app) = (
        bench.fake.image("r.example/pause:1", 1),
        bench.fake.image(NAME, 2),
    );
    bench.emit_created(&pause.name);
    bench.emit_created(&app.name);
    settle().await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Ready);
    assert_eq!(bench.state(&app, "erofs").await, State::Partial);
}
