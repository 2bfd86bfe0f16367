//! The work ahead over the in-memory containerd, on a clock that stands still unless somebody waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::services::v1::ImageCreate;
use prost::Message;

use crate::config::Config;
use crate::containerd::fake::Fake;
use crate::containerd::{ErrorKind, Event, Image, Labels};
use crate::room;
use crate::unpack::{Role, State};

use super::*;

const CONFIG: &str = "[containerd]\nconfig = \"/nonexistent/config.toml\"\n\
                      [handlers]\nlocal = \"erofs\"\nguest = \"nydus\"\n";
const NAME: &str = "r.example/app:1";

struct Bench {
    fake: Arc<Fake>,
    node: Arc<Node>,
    ahead: Arc<Ahead>,
}

impl Bench {
    /// A session has begun on this containerd, and all images were looked at.
    async fn on(fake: Fake, config: &str) -> Self {
        let bench = Self::begun(fake, config, |_| Ok(100));
        settle().await;
        bench
    }

    /// A session has begun, on a file system of which so much is free.
    fn begun(fake: Fake, config: &str, free: room::Free) -> Self {
        let fake = Arc::new(fake);
        let config = Config::from_toml(&format!("{CONFIG}{config}"), "test").unwrap();
        let node = Node::seeing(config, Role::Daemon, fake.clone(), free);
        node.refresh();
        let ahead = Ahead::begin(&node);
        Self { fake, node, ahead }
    }

    async fn state(&self, image: &Image, snapshotter: &str) -> State {
        let names = [image.name.clone()];
        let listing = self.node.engine.list(snapshotter).await.unwrap();
        let look = self.node.engine.look(image, &names, &listing).await;
        look.unwrap().state
    }

    fn created(&self, name: &str) {
        self.tell("/images/create", name);
    }

    fn removed(&self, name: &str) {
        self.tell("/images/delete", name);
    }

    /// An event about this image.
    fn tell(&self, topic: &str, name: &str) {
        let message = ImageCreate {
            name: name.to_owned(),
            ..ImageCreate::default()
        };
        self.fake.emit(&Event {
            topic: topic.to_owned(),
            payload: prost_types::Any {
                type_url: String::new(),
                value: message.encode_to_vec(),
            },
        });
    }
}

/// Longer than all pauses.
async fn settle() {
    tokio::time::sleep(Duration::from_secs(30)).await;
}

fn pinned() -> Labels {
    Labels::from([("io.cri-containerd.pinned".to_owned(), "pinned".to_owned())])
}

const ALL: &str = "[snapshotters.erofs]\neager = \"all\"\n";

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

#[tokio::test(start_paused = true)]
async fn what_arrives_is_made_ready_and_what_was_missed_is_found() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let first = bench.fake.image(NAME, 3);
    bench.created(NAME);
    settle().await;
    assert_eq!(bench.state(&first, "erofs").await, State::Ready);

    // No event tells of this one: there was nobody to hear it.
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

/// What waits for its turn in the look at all images is known, too: a pod pushes it.
#[tokio::test(start_paused = true)]
async fn what_waits_for_its_turn_is_known() {
    let fake = Fake::default();
    for n in 0..6 {
        fake.image(&format!("r.example/app:{n}"), 1 + n);
    }
    fake.slow("prepare snapshot", Duration::from_secs(60));
    let bench = Bench::begun(fake, ALL, |_| Ok(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.ahead.unready_in("erofs").len(), 6);
}

/// Nobody else asks for it, and no event tells that it may succeed now.
#[tokio::test(start_paused = true)]
async fn what_does_not_answer_is_tried_again() {
    for call in ["list snapshots of", "prepare snapshot", "look up blob"] {
        let fake = Fake::default();
        let there = fake.image(NAME, 2);
        fake.fail(call, 0, ErrorKind::Unreachable);
        let bench = Bench::on(fake, ALL).await;
        assert_eq!(bench.state(&there, "erofs").await, State::Ready, "{call}");

        let arrives = bench.fake.image("r.example/arrives:1", 3);
        bench
            .fake
            .fail("prepare snapshot", 0, ErrorKind::Unreachable);
        bench.created(&arrives.name);
        settle().await;
        assert_eq!(bench.state(&arrives, "erofs").await, State::Ready, "{call}");
    }
}

/// Neither what is there nor what arrives; pinned images always, and what is removed makes way.
#[tokio::test(start_paused = true)]
async fn a_snapshotter_that_holds_many_is_left_alone() {
    let fake = Fake::default();
    for n in 0..MAX_SNAPSHOTS {
        fake.commit_unlabelled("erofs", &format!("sha256:{n}"), None);
    }
    let there = fake.image(NAME, 2);
    let bench = Bench::on(fake, ALL).await;
    let (arrives, pause) = (
        bench.fake.image("r.example/arrives:1", 3),
        bench.fake.image("r.example/pause:1", 4),
    );
    bench.fake.label_image(&pause, pinned());
    for image in [&arrives, &pause] {
        bench.created(&image.name);
    }
    settle().await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Ready);
    // Those below it are theirs as well.
    for image in [&there, &arrives] {
        let state = bench.state(image, "erofs").await;
        assert_ne!(state, State::Missing, "{}", image.name);
    }
    let lone = bench.fake.image_with("r.example/lone:1", &[vec![]]);
    bench.created(&lone.name);
    settle().await;
    assert_eq!(bench.state(&lone, "erofs").await, State::Missing);

    for n in 0..100 {
        bench.fake.forget("erofs", &format!("sha256:{n}"));
    }
    bench.removed("r.example/other:1");
    settle().await;
    assert_eq!(bench.state(&lone, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn without_room_nothing_is_unpacked_that_nobody_asked_for() {
    static FREE: AtomicU64 = AtomicU64::new(3);
    let fake = Fake::default();
    let image = fake.image(NAME, 2);
    let bench = Bench::begun(fake, ALL, |_| Ok(FREE.load(Ordering::Relaxed)));
    settle().await;
    let later = bench.fake.image("r.example/later:1", 3);
    bench.created(&later.name);
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
    let asked = Request {
        want: Want::Image(NAME.to_owned()),
        snapshotter: "erofs".to_owned(),
        urgency: Urgency::Asked,
    };
    bench.node.engine.ensure(asked).outcome().await.unwrap();
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
    assert_eq!(bench.state(&later, "erofs").await, State::Partial);

    FREE.store(50, Ordering::Relaxed);
    settle().await;
    assert_eq!(bench.state(&later, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn the_next_session_ends_the_work() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.node.refresh();
    settle().await;
    let image = bench.fake.image(NAME, 1);
    bench.created(NAME);
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
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
async fn a_handler_that_gains_a_snapshotter_is_reconciled() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = bench.fake.image(NAME, 2);
    let more = format!("{CONFIG}other = \"native\"\n[snapshotters.native]\neager = \"all\"\n");
    let config = Config::from_toml(&more, "test").unwrap();
    assert_eq!(bench.node.reload(config), [""; 0]);
    settle().await;
    assert_eq!(bench.state(&image, "native").await, State::Ready);
    assert_eq!(bench.state(&image, "erofs").await, State::Missing);
}

#[tokio::test(start_paused = true)]
async fn all_images_are_looked_at_every_so_often() {
    for (every, state) in [
        ("reconcile_every = \"2m\"\n", State::Ready),
        ("", State::Missing),
    ] {
        let config = format!("[unpack]\n{every}{ALL}");
        let bench = Bench::on(Fake::default(), &config).await;
        let image = bench.fake.image(NAME, 2);
        settle().await;
        assert_eq!(bench.state(&image, "erofs").await, State::Missing);
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert_eq!(bench.state(&image, "erofs").await, state);
    }
}
