//! Tests of images that are wanted because containers have used their repository, or because a pod waits.

use containerd_client::events::SnapshotPrepare;

use super::*;
use crate::containerd::Descriptor;
use crate::unpack::Usage;

const EROFS: &str = "erofs";

/// Adds a tag of the repository, which comes after all lower ones.
fn tag(fake: &Fake, n: u64) -> Image {
    let image = image_with_own_layer(fake, &format!("r.example/app:{n}"));
    fake.came(&image, n);
    image
}

impl Bench {
    async fn ensure(&self, image: &Image) {
        let request = Request {
            want: Want::Image(image.name.clone()),
            snapshotter: EROFS.to_owned(),
            urgency: Urgency::Background,
        };
        let ensured = self.node.engine.ensure(request).outcome().await;
        ensured.unwrap();
    }

    /// Makes an image ready, as for a container that uses it.
    async fn use_in_container(&self, image: &Image) {
        self.ensure(image).await;
        self.ahead.container_uses(EROFS, &image.name);
        settle().await;
        let usage = self.node.engine.usage(image, EROFS).await.unwrap();
        assert_eq!(usage, Usage::Used);
    }

    async fn arrives(&self, image: &Image) -> State {
        self.emit_created(&image.name);
        settle().await;
        self.state(image, EROFS).await
    }
}

#[tokio::test(start_paused = true)]
async fn new_images_of_a_used_repository_are_made_ready_until_five_are_not_used() {
    let bench = Bench::on(Fake::default(), "").await;
    let tag = |n| tag(&bench.fake, n);
    let used = tag(1);
    assert_eq!(bench.arrives(&used).await, State::Missing);
    bench.use_in_container(&used).await;
    for n in 2..=6 {
        assert_eq!(bench.arrives(&tag(n)).await, State::Ready, "{n}");
    }
    let unused = tag(7);
    assert_eq!(bench.arrives(&unused).await, State::Missing);
    let other = image_with_own_layer(&bench.fake, "r.example/other:1");
    assert_eq!(bench.arrives(&other).await, State::Missing);
    bench.use_in_container(&unused).await;
    assert_eq!(bench.arrives(&tag(8)).await, State::Ready);
}

/// The memory is the store: a new process finds it there. Older images than the used one are left.
#[tokio::test(start_paused = true)]
async fn a_reconcile_makes_newer_images_of_a_used_repository_ready() {
    for (usage, state) in [(Usage::Used, State::Ready), (Usage::Unused, State::Missing)] {
        let fake = Fake::default();
        let [old, middle, new] = [1, 2, 3].map(|n| tag(&fake, n));
        let bench = Bench::on(fake, "").await;
        match usage {
            Usage::Used => bench.use_in_container(&middle).await,
            _ => bench.ensure(&middle).await,
        }
        bench.fake.hang_up();
        settle().await;
        assert_eq!(bench.state(&new, EROFS).await, state, "{usage:?}");
        assert_eq!(bench.state(&old, EROFS).await, State::Missing, "{usage:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn demand_counts_only_where_eager_is_auto() {
    for (eager, state) in [
        ("auto", State::Ready),
        ("pinned", State::Missing),
        ("none", State::Missing),
    ] {
        let config = format!("[snapshotters.erofs]\neager = {eager:?}\n");
        let bench = Bench::on(Fake::default(), &config).await;
        bench.use_in_container(&tag(&bench.fake, 1)).await;
        let new = tag(&bench.fake, 2);
        assert_eq!(bench.arrives(&new).await, state, "{eager}");
        bench.ahead.pod_waits(EROFS, "pod-1");
        let other = image_with_own_layer(&bench.fake, "r.example/other:1");
        assert_eq!(bench.arrives(&other).await, state, "{eager}");
    }
}

/// A pull, of which the event of the first layer has come.
struct Pull<'a> {
    bench: &'a Bench,
    image: Image,
}

/// On a node of any size.
const DURING_PULL: &str = "[unpack]\nduring_pull = \"on\"\n";

const PULL: &str = "a-pull";

const LAYERS: usize = 3;

fn blob(fake: &Fake, n: usize) -> Descriptor {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    fake.document(media_type, format!("layer {n}").as_bytes())
}

impl<'a> Pull<'a> {
    /// Begins the pull of an image of which no layer has landed.
    async fn begin(bench: &'a Bench) -> Self {
        let fake = &bench.fake;
        let blobs: Vec<_> = (0..LAYERS).map(|n| blob(fake, n)).collect();
        let image = fake.image_from(NAME, &blobs);
        let chain = bench.node.engine.chain(&image).await.unwrap();
        fake.untag(NAME);
        blobs.iter().for_each(|blob| fake.discard(&blob.digest));
        let source = "containerd.io/distribution.source.r.example";
        let source = Labels::from([(source.to_owned(), "app".to_owned())]);
        let manifest = &image.target.digest;
        fake.label_blob(manifest, source).await.unwrap();
        fake.lease(PULL, Labels::new(), &[Resource::blob(manifest)]);
        let prepared = SnapshotPrepare {
            key: format!("extract-1-ab {}", chain[0]),
            parent: String::new(),
            snapshotter: "overlayfs".to_owned(),
        };
        bench.emit("/snapshot/prepare", &prepared);
        Self { bench, image }
    }

    fn lands(&self, n: usize) {
        blob(&self.bench.fake, n);
    }

    async fn ends(&self) {
        let ended = self.bench.fake.delete_lease(PULL, false).await;
        ended.unwrap();
    }
}

#[tokio::test(start_paused = true)]
async fn layers_are_unpacked_as_their_blobs_arrive() {
    let bench = Bench::on(Fake::default(), DURING_PULL).await;
    bench.ahead.pod_waits(EROFS, "pod-1");
    let pull = Pull::begin(&bench).await;
    for n in 0..LAYERS {
        settle().await;
        assert_eq!(bench.fake.all(EROFS).len(), n);
        pull.lands(n);
    }
    settle().await;
    bench.fake.tag(NAME, pull.image.target.clone());
    pull.ends().await;
    assert_eq!(bench.arrives(&pull.image).await, State::Ready);
    assert_eq!(bench.fake.subjects("apply layer").len(), LAYERS);
    // The pull took longer than the time in which an image counts as the pod's.
    let all = bench.fake.all(EROFS);
    assert!(
        all.iter().all(|layer| layer.labels[IMAGE_REF] == NAME),
        "{all:?}"
    );
    assert_eq!(bench.fake.lease_ids(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn after_a_pull_that_failed_nothing_is_left() {
    let bench = Bench::on(Fake::default(), DURING_PULL).await;
    bench.ahead.pod_waits(EROFS, "pod-1");
    let pull = Pull::begin(&bench).await;
    pull.lands(0);
    settle().await;
    assert_eq!(bench.fake.all(EROFS).len(), 1);
    pull.ends().await;
    settle().await;
    assert_eq!(bench.fake.lease_ids(), [""; 0]);
    assert_eq!(bench.fake.all(EROFS), []);
}

/// A slow pull holds no place: another image is unpacked meanwhile.
#[tokio::test(start_paused = true)]
async fn a_slow_pull_delays_no_other_image() {
    let config = format!("{DURING_PULL}parallel_images = 1\n");
    let bench = Bench::on(Fake::default(), &config).await;
    bench.ahead.pod_waits(EROFS, "pod-1");
    let _pull = Pull::begin(&bench).await;
    settle().await;
    assert_eq!(bench.fake.lease_ids().len(), 2, "the flight has begun");
    let other = image_with_own_layer(&bench.fake, "r.example/another:1");
    let began = tokio::time::Instant::now();
    bench.ensure(&other).await;
    assert!(began.elapsed() < Duration::from_secs(1));
}

/// The hook sees how far the flight is, so that it need not wait for its whole time.
#[tokio::test(start_paused = true)]
async fn a_creation_joins_the_flight_that_began_in_the_pull() {
    let bench = Bench::on(Fake::default(), DURING_PULL).await;
    bench.ahead.pod_waits(EROFS, "pod-1");
    let pull = Pull::begin(&bench).await;
    (0..LAYERS).for_each(|n| pull.lands(n));
    bench.fake.slow("apply layer", Duration::from_secs(60));
    settle().await;
    bench.fake.tag(NAME, pull.image.target.clone());
    pull.ends().await;
    let ticket = bench.node.engine.ensure(Request {
        want: Want::Image(NAME.to_owned()),
        snapshotter: EROFS.to_owned(),
        urgency: Urgency::Creation,
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(ticket.progress().found, Some(State::Missing));
}

#[tokio::test(start_paused = true)]
async fn few_images_of_a_repository_are_made_ready_at_once() {
    let fake = Fake::default();
    let images: Vec<_> = (1..=20).map(|n| tag(&fake, n)).collect();
    let bench = Bench::on(fake, "").await;
    bench.use_in_container(&images[5]).await;
    bench.fake.hang_up();
    settle().await;
    let mut ready = vec![];
    for (n, image) in images.iter().enumerate() {
        if bench.state(image, EROFS).await == State::Ready {
            ready.push(n);
        }
    }
    assert_eq!(ready, [5, 15, 16, 17, 18, 19]);
    // The record of an old one is updated.
    assert_eq!(bench.arrives(&images[2]).await, State::Missing);
}
