//! A snapshotter that has lost its state: all images that it had are made again, also those that are not wanted ahead.

use super::*;
use crate::containerd::ErrorKind;

const PINNED: &str = "[snapshotters.erofs]\neager = \"pinned\"\n";

#[tokio::test(start_paused = true)]
async fn a_lost_image_is_made_again_after_a_fault() {
    let faults = [
        ("none", 0),
        ("apply layer", 0),
        ("apply layer", 1),
        ("list snapshots of", 0),
        ("delete lease", 0),
        ("read blob", 0),
    ];
    for ((call, after), kind) in faults
        .into_iter()
        .flat_map(|fault| [ErrorKind::Other, ErrorKind::Unreachable].map(|kind| (fault, kind)))
    {
        let fake = Fake::default();
        let names = ["r.example/a:1", "r.example/b:1", "r.example/never:1"];
        let images = names.map(|name| image_with_own_layer(&fake, name));
        let bench = Bench::on(fake, PINNED).await;
        for image in &images[..2] {
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
        bench.fake.heal();
        let expected = [State::Ready, State::Ready, State::Missing];
        for (image, expected) in images.iter().zip(expected) {
            let state = bench.state(image, "erofs").await;
            assert_eq!(state, expected, "{call} {after} {kind:?}: {}", image.name);
        }
    }
}
