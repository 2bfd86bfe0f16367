//! A snapshotter that has lost its state: all images that it had are made again, also those that are not wanted ahead.

use super::*;
use crate::containerd::ErrorKind;

#[tokio::test(start_paused = true)]
async fn a_lost_image_is_made_again_after_a_fault() {
    after_a_fault("[snapshotters.erofs]\neager = \"pinned\"\n", false).await;
}

/// By default it gets the images ahead that it mounts without their content: these need it.
#[tokio::test(start_paused = true)]
async fn a_lost_image_of_a_proxy_plugin_is_made_again_after_a_fault() {
    after_a_fault("", true).await;
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
            let asked = Request {
                want: Want::Image(image.name.clone()),
                snapshotter: "erofs".to_owned(),
                urgency: Urgency::Asked,
            };
            bench.node.engine.ensure(asked).outcome().await.unwrap();
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
