//! The work ahead over the in-memory containerd, on a clock that stands still unless somebody waits.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use containerd_client::events::SnapshotRemove;
use containerd_client::services::v1::{ImageCreate, ImageDelete};
use prost::Message;

use nri::{Container, Plugin, Pod, RuntimeInfo};

use crate::config::Config;
use crate::containerd::fake::{Fake, sha256};
use crate::containerd::{Containerd, ErrorKind, Event, Image, Labels, Resource};
use crate::free_space;
use crate::hooks::Hooks;
use crate::image::IMAGE_REF;
use crate::unpack::{Action, ParentChain, Role, State};

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
        Self::with_free(fake, config, |_| Ok(100)).await
    }

    /// The same, with so much room.
    async fn with_free(fake: Fake, config: &str, free: free_space::Free) -> Self {
        let bench = Self::begun(fake, config, free);
        settle().await;
        bench
    }

    /// A session begins.
    fn begun(fake: Fake, config: &str, free: free_space::Free) -> Self {
        let fake = Arc::new(fake);
        let config = Config::from_toml(&format!("{CONFIG}{config}"), "test").unwrap();
        let node = Node::seeing(config, Role::Daemon, fake.clone(), free);
        node.refresh();
        let ahead = Ahead::begin(&node);
        Self { fake, node, ahead }
    }

    /// The hooks of a session of their own.
    async fn hooks(&self) -> Arc<Hooks> {
        let node = self.node.clone();
        let hooks = Hooks::new(Box::new(move |_| Ok(node.clone())));
        hooks.configure(RuntimeInfo::default()).await.unwrap();
        hooks
    }

    async fn state(&self, image: &Image, snapshotter: &str) -> State {
        let names = [image.name.clone()];
        let listing = self.node.engine.list(snapshotter).await.unwrap();
        let look = self.node.engine.look(image, &names, &listing).await;
        look.unwrap().state
    }

    /// Those of these images, each of one layer, that were prepared, in this order.
    fn prepared(&self, images: &[(&str, &Image)]) -> Vec<String> {
        let keys = self.fake.subjects("prepare snapshot");
        let name = |key: &String| {
            let mut images = images.iter();
            let one = images.find(|(_, image)| key.ends_with(&only_chain(image)));
            one.map(|(name, _)| (*name).to_owned())
        };
        keys.iter().filter_map(name).collect()
    }

    fn created(&self, name: &str) {
        let message = ImageCreate {
            name: name.to_owned(),
            ..ImageCreate::default()
        };
        self.emit("/images/create", &message);
    }

    fn removed(&self, name: &str) {
        let message = ImageDelete {
            name: name.to_owned(),
        };
        self.emit("/images/delete", &message);
    }

    /// containerd takes away what it was extracting the image's only layer into.
    fn unpack_failed(&self, image: &Image, snapshotter: &str, key: &str) {
        let message = SnapshotRemove {
            key: format!("{key} {}", only_chain(image)),
            snapshotter: snapshotter.to_owned(),
        };
        self.emit("/snapshot/remove", &message);
    }

    fn emit(&self, topic: &str, message: &impl Message) {
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
async fn without_room_nothing_is_unpacked_that_nobody_asked_for() {
    static FREE: AtomicU64 = AtomicU64::new(3);
    let fake = Fake::default();
    let image = fake.image(NAME, 2);
    let free = |_: &str| Ok(FREE.load(Ordering::Relaxed));
    let bench = Bench::with_free(fake, ALL, free).await;
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

/// A blob comes back without an event. Until then the image is asked for again and again: the alert counts that.
#[tokio::test(start_paused = true)]
async fn an_image_that_stays_unavailable_is_tried_again() {
    let bench = Bench::on(Fake::default(), ALL).await;
    let lost = image_of_its_own_layer(&bench.fake, "r.example/lost:1");
    let layer = sha256(only_layer(&lost.name).as_bytes());
    bench.fake.discard(&layer);
    bench.created(&lost.name);
    settle().await;
    assert_eq!(bench.state(&lost, "erofs").await, State::Unavailable);
    let tries = || bench.fake.subjects("prepare snapshot").len();
    let before = tries();
    tokio::time::sleep(Duration::from_secs(3600)).await;
    let again = tries() - before;
    assert!((5..=7).contains(&again), "tried {again} times in an hour");
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    bench
        .fake
        .document(media_type, only_layer(&lost.name).as_bytes());
    tokio::time::sleep(Duration::from_secs(660)).await;
    assert_eq!(bench.state(&lost, "erofs").await, State::Ready);
}

#[tokio::test(start_paused = true)]
async fn a_full_place_keeps_nobody_waiting() {
    let fake = Fake::default();
    let pause = fake.image("r.example/pause:1", 1);
    fake.label_image(&pause, pinned());
    let config = "[snapshotters.default]\neager = \"all\"\n[unpack]\nparallel_images = 1\n";
    let free = |root: &str| Ok(if root == "/erofs" { 3 } else { 50 });
    let bench = Bench::with_free(fake, config, free).await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Missing);
    assert_eq!(bench.state(&pause, "nydus").await, State::Ready);
    // A reconcile goes on as before.
    bench.fake.hang_up();
    let later = bench.fake.image("r.example/later:1", 2);
    settle().await;
    assert_eq!(bench.state(&later, "nydus").await, State::Ready);
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

/// The answer that was asked for by the one before comes last.
#[tokio::test(start_paused = true)]
async fn the_handlers_are_those_of_the_last_configuration() {
    let fake = Fake::default();
    fake.slow("list snapshotters", Duration::from_secs(5));
    let bench = Bench::begun(fake, "", |_| Ok(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.slow("list snapshotters", Duration::ZERO);
    let more = format!("{CONFIG}other = \"native\"\n");
    bench.node.reload(Config::from_toml(&more, "test").unwrap());
    settle().await;
    let handlers = bench.node.handlers_now().unwrap();
    assert!(handlers.iter().any(|(handler, _)| handler == "other"));
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

/// With nobody who asks again.
#[tokio::test(start_paused = true)]
async fn what_does_not_answer_is_looked_at_again() {
    for (call, times) in [
        ("list snapshotters", 9),
        ("list images", 5),
        ("list snapshots of", 9),
        ("read blob", 3),
        ("prepare snapshot", 9),
        ("create lease", 9),
    ] {
        let fake = Fake::default();
        let image = fake.image(NAME, 2);
        for _ in 0..times {
            fake.fail(call, 0, ErrorKind::Unreachable);
        }
        let bench = Bench::on(fake, ALL).await;
        tokio::time::sleep(Duration::from_secs(600)).await;
        let found = bench.state(&image, "erofs").await;
        assert_eq!(found, State::Ready, "{times} times no answer: {call}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_arrives_while_nobody_answers_is_looked_at_again() {
    for (call, times) in [
        ("get image", 1),
        ("prepare snapshot", 4),
        ("create lease", 4),
    ] {
        let bench = Bench::on(Fake::default(), ALL).await;
        // The first event ever has all images looked at; that is over.
        bench.created("r.example/none:1");
        settle().await;
        let image = bench.fake.image(NAME, 2);
        for _ in 0..times {
            bench.fake.fail(call, 0, ErrorKind::Unreachable);
        }
        bench.created(NAME);
        tokio::time::sleep(Duration::from_secs(600)).await;
        let found = bench.state(&image, "erofs").await;
        assert_eq!(found, State::Ready, "{times} times no answer: {call}");
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
async fn a_snapshotter_that_holds_many_gets_no_more_until_images_go() {
    let fake = Fake::default();
    let others: Vec<_> = (0..MAX_SNAPSHOTS)
        .map(|n| format!("sha256:{n:064}"))
        .collect();
    for name in &others {
        fake.commit_unlabelled("erofs", name, None);
    }
    let (first, pause) = (fake.image(NAME, 3), fake.image("r.example/pause:1", 4));
    fake.label_image(&pause, pinned());
    let bench = Bench::on(fake, ALL).await;
    assert_eq!(bench.state(&pause, "erofs").await, State::Ready);
    let of = image_of_its_own_layer(&bench.fake, "r.example/later:1");
    bench.created(&of.name);
    settle().await;
    assert_eq!(bench.state(&of, "erofs").await, State::Missing);
    // All of its layers are there; it lacks its anchor alone.
    assert_eq!(bench.state(&first, "erofs").await, State::Ready);

    others[..5]
        .iter()
        .for_each(|name| bench.fake.forget("erofs", name));
    bench.removed("r.example/gone:1");
    settle().await;
    assert_eq!(bench.state(&of, "erofs").await, State::Ready);
}

/// What was counted is too much, and what was listed was so then.
#[tokio::test(start_paused = true)]
async fn a_snapshotter_that_seems_full_is_listed_again() {
    let bench = Bench::on(Fake::default(), ALL).await;
    bench.ahead.snapshot_counts.more("erofs", MAX_SNAPSHOTS);
    assert!(!bench.ahead.is_full_enough("erofs"), "nothing is left yet");
    settle().await;
    assert_eq!(bench.ahead.snapshot_counts.is_full("erofs"), Some(false));

    bench.ahead.snapshot_counts.listed("erofs", MAX_SNAPSHOTS);
    assert!(bench.ahead.is_full_enough("erofs"));
    settle().await;
    assert_eq!(bench.ahead.snapshot_counts.is_full("erofs"), Some(false));
}

/// The first in a list has no room.
#[tokio::test(start_paused = true)]
async fn a_full_place_keeps_no_other_container_waiting() {
    let fake = Fake::default();
    let image = image_of_its_own_layer(&fake, NAME);
    let top = only_chain(&image);
    for snapshotter in ["nydus", "erofs"] {
        fake.commit_unlabelled(snapshotter, &top, None);
        fake.activate(snapshotter, &format!("in-{snapshotter}"), &top);
    }
    let free = |root: &str| Ok(if root == "/nydus" { 0 } else { 100 });
    let bench = Bench::with_free(fake, "", free).await;
    bench.ahead.check_existing(|_| {
        let existing = |snapshotter: &str| Existing {
            id: format!("in-{snapshotter}"),
            snapshotter: snapshotter.to_owned(),
            image: Some(NAME.to_owned()),
        };
        vec![existing("nydus"), existing("erofs")]
    });
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
    assert_eq!(bench.state(&image, "nydus").await, State::Unlabelled);
}

fn only_layer(name: &str) -> String {
    format!("the only layer of {name}")
}

/// One layer, which no other image has.
fn image_of_its_own_layer(fake: &Fake, name: &str) -> Image {
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer = fake.document(media_type, only_layer(name).as_bytes());
    fake.image_from(name, &[layer])
}

/// The chain id of such an image.
fn only_chain(image: &Image) -> String {
    let blob = sha256(only_layer(&image.name).as_bytes());
    sha256(format!("what is in {blob}").as_bytes())
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

/// An image that is being pulled has no record, and no name but its digest.
#[tokio::test(start_paused = true)]
async fn what_is_being_pulled_is_held_and_named_when_it_has_a_name() {
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
        panic!("not one lease")
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

/// While it is pulled, the port of its registry is not known: what was made so is not ready, and corrected.
#[tokio::test(start_paused = true)]
async fn the_port_comes_with_the_record() {
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
        left_alone: false,
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

/// Who comes with the record does not take over what was begun without it.
#[tokio::test(start_paused = true)]
async fn work_that_began_in_the_pull_is_named_before_it_counts() {
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

/// The work that began with the pull met a chain in use, whose lower layers are its own. When a container
/// is moved, and when the others are replaced, the image has its name.
#[tokio::test(start_paused = true)]
async fn what_is_replaced_later_is_named_as_it_is_then() {
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
    // The lower one stays.
    bench.fake.activate("nydus", "other", lower);
    let met = ensure().await.unwrap_err();
    bench.node.engine.replace_if_in_use(&met, "nydus");
    // The hook of the container comes, which is moved onto a chain that the guest pulls by the tag.
    let asked = Request {
        want: Want::Container {
            key: "c".to_owned(),
            chain: top.to_owned(),
            name: Some(NAME.to_owned()),
            left_alone: false,
        },
        snapshotter: "nydus".to_owned(),
        urgency: Urgency::Creation,
    };
    bench.node.engine.ensure(asked).outcome().await.unwrap_err();
    bench.fake.collect_container("nydus", "c");
    settle().await;
    let layers = bench.fake.all("nydus");
    let names = layers.iter().filter_map(|s| s.labels.get(IMAGE_REF));
    assert_eq!(names.collect::<Vec<_>>(), [NAME; 3], "{met}");
}

/// A call of a process that was killed ends after its successor has swept.
#[tokio::test(start_paused = true)]
async fn what_a_dead_process_leaves_late_is_taken_away() {
    let bench = Bench::begun(Fake::default(), "", |_| Ok(100));
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.lease("nri-unpack-1", Labels::new(), &[]);
    settle().await;
    assert_eq!(bench.fake.lease_ids(), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_containerd_failed_to_unpack_is_made_ready() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = image_of_its_own_layer(&bench.fake, NAME);
    for (snapshotter, key, state) in [
        ("erofs", "extract-nri-unpack-1-2-3.0", State::Missing),
        ("erofs", "a-container", State::Missing),
        ("native", "extract-12-ab", State::Missing),
        ("erofs", "extract-12-ab", State::Ready),
    ] {
        bench.unpack_failed(&image, snapshotter, key);
        settle().await;
        assert_eq!(bench.state(&image, "erofs").await, state, "{key}");
        assert_eq!(bench.state(&image, "native").await, State::Missing);
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_fails_again_adds_no_work() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = image_of_its_own_layer(&bench.fake, NAME);
    bench.fake.slow("prepare snapshot", Duration::from_secs(20));
    for _ in 0..100 {
        bench.unpack_failed(&image, "erofs", "extract-12-ab");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
    assert_eq!(bench.prepared(&[(NAME, &image)]).len(), 1);
}

/// Many images may share the layer: those that are excluded are passed over.
#[tokio::test(start_paused = true)]
async fn excluded_images_do_not_use_up_the_tries_of_a_layer() {
    let config = "[snapshotters.erofs]\nexclude = [\"*/excluded:*\"]\n";
    let bench = Bench::on(Fake::default(), config).await;
    let image = image_of_its_own_layer(&bench.fake, NAME);
    bench.fake.came(&image, 1);
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer = bench.fake.document(media_type, only_layer(NAME).as_bytes());
    for n in 0..20 {
        let name = format!("r.example/excluded:{n}");
        let excluded = bench.fake.image_from(&name, std::slice::from_ref(&layer));
        bench.fake.came(&excluded, 2 + n);
    }
    bench.unpack_failed(&image, "erofs", "extract-12-ab");
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

/// The manifests of this store keep no blob of a layer, as with `discard_unpacked_layers`.
#[tokio::test(start_paused = true)]
async fn what_arrives_for_a_pod_that_waits_and_cannot_be_unpacked_is_made_ready() {
    for (pod, config, state) in [
        ("", "", State::Missing),
        ("pod-1", "", State::Ready),
        (
            "pod-1",
            "[snapshotters.erofs]\neager = \"pinned\"\n",
            State::Missing,
        ),
    ] {
        let bench = Bench::on(Fake::default(), config).await;
        if !pod.is_empty() {
            bench.ahead.pod_waits("erofs", pod);
        }
        let image = image_of_its_own_layer(&bench.fake, NAME);
        bench.created(NAME);
        settle().await;
        assert_eq!(
            bench.state(&image, "erofs").await,
            state,
            "{pod:?} {config}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn what_containerd_can_unpack_is_left_to_it_until_a_blob_is_gone() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = image_of_its_own_layer(&bench.fake, NAME);
    let layer = sha256(only_layer(NAME).as_bytes());
    let keeps = ("containerd.io/gc.ref.content.l.0".to_owned(), layer.clone());
    let keeps = Labels::from([keeps]);
    let kept = bench.fake.label_blob(&image.target.digest, keeps).await;
    kept.unwrap();
    for _ in 0..2 {
        bench.unpack_failed(&image, "erofs", "extract-12-ab");
        settle().await;
    }
    assert_eq!(bench.prepared(&[(NAME, &image)]), [""; 0]);
    assert!(!bench.node.engine.is_stuck("erofs", &image).await.unwrap());
    bench.fake.discard(&layer);
    assert!(bench.node.engine.is_stuck("erofs", &image).await.unwrap());
    bench.unpack_failed(&image, "erofs", "extract-12-ab");
    settle().await;
    assert_eq!(bench.prepared(&[(NAME, &image)]), [NAME]);
}
