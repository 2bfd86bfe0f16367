//! A snapshotter that has lost its state: all images that it had are made again, also those that are not wanted ahead.

use super::*;
use crate::containerd::ErrorKind;
use crate::image::{Manifests, Platform};

#[tokio::test(start_paused = true)]
async fn a_lost_image_is_made_again_after_a_fault() {
    after_a_fault("[snapshotters.erofs]\neager = \"pinned\"\n", false).await;
}

/// By default it gets the images ahead that it mounts without their content: these need it.
#[tokio::test(start_paused = true)]
async fn a_lost_image_of_a_proxy_plugin_is_made_again_after_a_fault() {
    after_a_fault("", true).await;
}

/// The label of a loss that containerd has healed by itself, and an image whose snapshots an operator has removed.
#[tokio::test(start_paused = true)]
async fn a_mark_of_a_loss_concerns_its_own_image_until_that_is_ready() {
    let fake = Fake::default();
    let names = [
        "r.example/healed:1",
        "r.example/lost:1",
        "r.example/removed:1",
    ];
    let images = names.map(|name| image_with_own_layer(&fake, name));
    let bench = Bench::on(fake, "[snapshotters.erofs]\neager = \"pinned\"\n").await;
    for image in &images {
        bench.ask(image).await;
    }
    let manifests = Manifests::new(Platform::of_this_node());
    for image in &images[..2] {
        let manifest = manifests.read(bench.fake.as_ref(), image).await.unwrap();
        let key = "containerd.io/gc.ref.snapshot.erofs/nri-unpack-kept".to_owned();
        let mark = Labels::from([(key, "nothing".to_owned())]);
        bench.fake.label_blob(&manifest.config, mark).await.unwrap();
    }
    for image in &images[1..] {
        bench.fake.forget("erofs", &only_chain(image));
    }
    // The anchor of the lost one is there, so its mark goes with the second reconcile.
    for _ in 0..2 {
        bench.fake.hang_up();
        settle().await;
    }
    let expected = [State::Ready, State::Ready, State::Missing];
    for (image, expected) in images.iter().zip(expected) {
        let state = bench.state(image, "erofs").await;
        assert_eq!(state, expected, "{}", image.name);
    }
    let listing = bench.node.engine.list("erofs").await.unwrap();
    assert!(!listing.has_loss());
}

impl Bench {
    async fn ask(&self, image: &Image) {
        let asked = Request {
            want: Want::Image(image.name.clone()),
            snapshotter: "erofs".to_owned(),
            urgency: Urgency::Asked,
        };
        self.node.engine.ensure(asked).outcome().await.unwrap();
    }
}

async fn after_a_fault(config: &str, is_proxy: bool) {
    let faults = [
        ("none", 0),
        ("apply layer", 0),
        ("apply layer", 1),
        ("apply layer", 2),
        ("list snapshots of", 0),
        ("delete lease", 0),
        ("look up record of snapshot", 1),
        ("look up record of snapshot", 2),
        ("look up record of snapshot", 3),
        ("look up blob", 0),
        ("look up blob", 1),
    ];
    let kinds = [ErrorKind::Other, ErrorKind::Unreachable];
    let cases = faults
        .into_iter()
        .flat_map(|fault| kinds.map(|kind| (fault, kind)));
    for ((call, after), kind) in cases {
        let fake = Fake::default();
        if is_proxy {
            fake.is_lazy("erofs", &[]);
        }
        let names = [
            "r.example/pause:1",
            "r.example/a:1",
            "r.example/b:1",
            "r.example/never:1",
        ];
        let images = names.map(|name| image_with_own_layer(&fake, name));
        fake.label_image(&images[0], pinned());
        let bench = Bench::on(fake, config).await;
        for image in &images[..3] {
            bench.ask(image).await;
        }
        settle().await;
        bench.fake.lose_snapshots("erofs");
        bench.fake.fail(call, after, kind);
        tokio::time::sleep(Duration::from_secs(10 * 60)).await;
        let context = format!("{call} {after} {kind:?}");
        assert_eq!(
            bench.fake.pending_faults().is_empty(),
            call != "none",
            "{context}"
        );
        bench.fake.heal();
        let expected = [State::Ready, State::Ready, State::Ready, State::Missing];
        for (image, expected) in images.iter().zip(expected) {
            let state = bench.state(image, "erofs").await;
            assert_eq!(state, expected, "{context}: {}", image.name);
        }
    }
}
