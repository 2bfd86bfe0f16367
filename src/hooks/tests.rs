//! The hooks over the in-memory containerd, on a clock that stands still unless a task waits.

mod broken;

use std::cell::RefCell;
use std::collections::BTreeMap;

use log::{Level, LevelFilter, Log, Metadata, Record};

use crate::config::Config;
use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, Image, Labels};
use crate::image::{Manifests, Platform};
use crate::policy;
use crate::unpack::{Role, State, proxied};

use super::creation::rejection;
use super::*;

const NAME: &str = "r.example/app:1";
const HANDLERS: &str = "[containerd]\nconfig = \"/nonexistent/config.toml\"\n[handlers]\nlocal = \"erofs\"\nguest = \"nydus\"\n";

/// A node with the plugin registered, and an image of three layers.
struct Bench {
    fake: Arc<Fake>,
    node: Arc<Node>,
    hooks: Arc<Hooks>,
    image: Image,
    /// Bottom first.
    chain_ids: Vec<String>,
}

impl Bench {
    async fn new(config: &str) -> Self {
        Self::on(Arc::new(Fake::default()), config).await
    }

    async fn on(fake: Arc<Fake>, config: &str) -> Self {
        capture();
        let image = fake.image(NAME, 3);
        let manifests = Manifests::new(Platform::of_this_node());
        let manifest = manifests.read(fake.as_ref(), &image).await.unwrap();
        let config = Config::from_toml(&format!("{HANDLERS}{config}"), "test").unwrap();
        let node = Node::with(config, Role::Daemon, fake.clone());
        let opened = node.clone();
        let hooks = Hooks::new(Box::new(move |_| Ok(opened.clone())));
        hooks.configure(RuntimeInfo::default()).await.unwrap();
        Self {
            fake,
            node,
            hooks,
            image,
            chain_ids: manifest.layers.iter().map(|l| l.chain_id.clone()).collect(),
        }
    }

    /// The chain, as containerd's own fallback leaves it.
    fn unpacked_without_labels(&self, snapshotter: &str) {
        let mut parent = None;
        for chain_id in &self.chain_ids {
            self.fake.commit_unlabelled(snapshotter, chain_id, parent);
            parent = Some(chain_id.as_str());
        }
    }

    /// An image of one layer, which no other has, and which is said to be of so many bytes; answers the
    /// digest of its blob.
    fn image_of(&self, name: &str, bytes: i64) -> String {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let mut layer = self.fake.document(media_type, name.as_bytes());
        layer.size = bytes;
        self.fake.image_from(name, std::slice::from_ref(&layer));
        layer.digest
    }

    /// What NRI relays of a container that is being created.
    async fn create(&self, handler: &str, snapshotter: &str, id: &str) -> HandlerResult {
        let top = self.chain_ids.last().unwrap();
        self.fake.activate(snapshotter, id, top);
        let container = Container {
            id: id.to_owned(),
            name: "main".to_owned(),
            annotations: BTreeMap::from([(IMAGE_NAME.to_owned(), NAME.to_owned())]),
            ..Container::default()
        };
        self.hooks.create_container(pod(handler), container).await
    }

    async fn run(&self, handler: &str, annotation: (&str, &str)) {
        let (key, value) = annotation;
        let mut pod = pod(handler);
        pod.annotations.insert(key.to_owned(), value.to_owned());
        self.hooks.run_pod_sandbox(pod).await.unwrap();
    }

    async fn state(&self, snapshotter: &str) -> State {
        let names = [self.image.name.clone()];
        let engine = &self.node.engine;
        let listing = engine.list(snapshotter).await.unwrap();
        let status = engine.image_status(&self.image, &names, &listing).await;
        status.unwrap().state
    }
}

fn pod(handler: &str) -> Pod {
    Pod {
        name: "p".to_owned(),
        namespace: "n".to_owned(),
        runtime_handler: handler.to_owned(),
        ..Pod::default()
    }
}

thread_local! {
    /// Each test has its thread, and its runtime stays on it.
    static LINES: RefCell<Vec<(Level, String)>> = const { RefCell::new(Vec::new()) };
}

struct Capture;

impl Log for Capture {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let line = (record.level(), record.args().to_string());
        LINES.with_borrow_mut(|lines| lines.push(line));
    }

    fn flush(&self) {}
}

fn capture() {
    // Another test of this process was first: it is the same one.
    let _ = log::set_logger(&Capture);
    log::set_max_level(LevelFilter::Trace);
}

/// The lines above debug since this was last asked.
fn said() -> Vec<(Level, String)> {
    let mut lines = LINES.take();
    lines.retain(|(level, _)| *level < Level::Debug);
    lines
}

#[test]
fn a_hook_never_waits_as_long_as_the_runtime() {
    let ms = Duration::from_millis;
    for (wait, timeout, expected) in [
        (ms(500), ms(2000), ms(500)),
        (ms(5000), ms(2000), ms(1900)),
        (ms(500), ms(500), ms(400)),
        (ms(500), ms(150), ms(75)),
    ] {
        assert_eq!(bounded_wait(wait, timeout), expected);
    }
}

#[tokio::test(start_paused = true)]
async fn a_hook_leaves_at_its_deadline_and_the_work_goes_on() {
    let bench = Bench::new("").await;
    bench.fake.slow("apply layer", Duration::from_secs(60));
    let began = Instant::now();
    bench.run("local", (policy::IMAGES, NAME)).await;
    let took = began.elapsed();
    let ms = Duration::from_millis;
    assert!(took >= ms(500) && took < ms(510), "{took:?}");
    assert_eq!(bench.state("erofs").await, State::Missing);

    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(bench.state("erofs").await, State::Ready);
    assert!(bench.fake.lease_ids().is_empty());
}

/// No node applies half a gigabyte in half a second, and none can begin to before it has looked.
#[tokio::test(start_paused = true)]
async fn a_hook_does_not_wait_for_what_cannot_be_done_in_time() {
    const BIG: &str = "r.example/big:1";
    let bench = Bench::new("").await;
    bench.image_of(BIG, 512 << 20);
    bench.fake.slow("list images", Duration::from_millis(10));
    bench.fake.slow("apply layer", Duration::from_secs(60));
    let began = Instant::now();
    bench.run("local", (policy::IMAGES, BIG)).await;
    let took = began.elapsed();
    assert!(took < Duration::from_millis(50), "{took:?}");
    tokio::time::sleep(Duration::from_secs(70)).await;
    assert_eq!(bench.fake.all("erofs").len(), 1);
    assert!(bench.fake.lease_ids().is_empty());
}

/// The remedy is in the log.
#[tokio::test(start_paused = true)]
async fn that_a_large_blob_is_gone_is_said() {
    const BIG: &str = "r.example/big:1";
    let bench = Bench::new("").await;
    let blob = bench.image_of(BIG, 512 << 20);
    bench.fake.discard(&blob);
    bench.run("local", (policy::IMAGES, BIG)).await;
    let said = said();
    let failed = (Level::Warn, "pod's image cannot be made ready".to_owned());
    assert!(said.contains(&failed), "{said:?}");
}

/// A layer of 128 MiB may be applied in time, until others have shown that it may not.
#[tokio::test(start_paused = true)]
async fn what_can_be_done_in_time_is_learned() {
    let bench = Bench::new("").await;
    let (small, large) = (16 << 20, 128 << 20);
    let took = async |name: &str, size| {
        bench.image_of(name, size);
        let began = Instant::now();
        bench.run("local", (policy::IMAGES, name)).await;
        began.elapsed()
    };
    bench.fake.slow("apply layer", Duration::from_secs(5));
    let first = took("r.example/first:1", large).await;
    assert!(first >= Duration::from_millis(500), "{first:?}");
    tokio::time::sleep(Duration::from_secs(10)).await;

    bench.fake.slow("apply layer", Duration::from_millis(400));
    for n in 0..8 {
        took(&format!("r.example/small:{n}"), small).await;
    }
    let second = took("r.example/second:1", large).await;
    assert!(second < Duration::from_millis(50), "{second:?}");
}

#[tokio::test(start_paused = true)]
async fn a_pods_images_are_made_ready_before_its_containers() {
    let bench = Bench::new("").await;
    bench
        .run("local", (policy::IMAGES, &format!("nope:1, {NAME}")))
        .await;
    assert_eq!(bench.state("erofs").await, State::Ready);
    let said = said();
    let warned = |(level, line): &(Level, String)| {
        *level == Level::Warn && line == "pod's image cannot be made ready"
    };
    assert_eq!(
        said.iter().filter(|line| warned(line)).count(),
        1,
        "{said:?}"
    );
}

/// By configuration and by profile: on a chain that is in use for good, or not yet finished.
#[tokio::test(start_paused = true)]
async fn an_unready_image_is_rejected_or_allowed() {
    for (config, handler, snapshotter, created) in [
        ("", "local", "erofs", true),
        (
            "[hooks]\non_unready = \"reject\"\n",
            "local",
            "erofs",
            false,
        ),
        ("[hooks]\nswap = false\n", "guest", "nydus", false),
        (
            "[hooks]\nswap = false\non_unready = \"allow\"\n",
            "guest",
            "nydus",
            true,
        ),
    ] {
        let bench = Bench::new(config).await;
        bench.unpacked_without_labels(snapshotter);
        bench.fake.slow("label snapshot", Duration::from_secs(60));
        let answer = bench.create(handler, snapshotter, "c").await;
        assert_eq!(
            answer.is_ok(),
            created,
            "{config} {snapshotter}: {answer:?}"
        );
        // On the chain that it was made on, with each verdict.
        let own = bench.fake.stat(snapshotter, "c").await.unwrap();
        assert_eq!(own.parent.as_ref(), bench.chain_ids.last());
    }
}

/// That containerd is slow is no reason to start a container that must not be.
#[tokio::test(start_paused = true)]
async fn where_containerd_does_not_say_in_time_the_profile_decides() {
    for (handler, snapshotter, created) in [("local", "erofs", true), ("guest", "nydus", false)] {
        let bench = Bench::new("").await;
        bench.unpacked_without_labels(snapshotter);
        bench.fake.slow("stat snapshot", Duration::from_secs(5));
        let answer = bench.create(handler, snapshotter, "c").await;
        assert_eq!(answer.is_ok(), created, "{snapshotter}: {answer:?}");
    }
}

/// A host's unpack over layers that are empty is broken.
#[tokio::test(start_paused = true)]
async fn a_mixed_chain_is_rejected_whatever_is_configured() {
    let bench = Bench::new("[hooks]\nswap = false\non_unready = \"allow\"\n").await;
    let bottom = &bench.chain_ids[0];
    bench
        .fake
        .put("nydus", bottom, None, proxied(Labels::new()));
    for two in bench.chain_ids.windows(2) {
        bench
            .fake
            .commit_unlabelled("nydus", &two[1], Some(&two[0]));
    }
    assert_eq!(bench.state("nydus").await, State::Mixed);
    let answer = bench.create("guest", "nydus", "c").await;
    assert!(answer.is_err());
}

#[tokio::test(start_paused = true)]
async fn a_poisoned_creation_is_moved_in_its_own_hook() {
    let bench = Bench::new("").await;
    bench.unpacked_without_labels("nydus");
    bench.create("guest", "nydus", "c").await.unwrap();
    let own = bench.fake.stat("nydus", "c").await.unwrap();
    let parent = own.parent.unwrap();
    assert!(!bench.chain_ids.contains(&parent), "{parent}");

    // As soon as nothing uses the old chain it is replaced, and the container keeps its own.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.state("nydus").await, State::Ready);
    let own = bench.fake.stat("nydus", "c").await.unwrap();
    assert_eq!(own.parent, Some(parent));
}

#[tokio::test(start_paused = true)]
async fn a_container_of_a_ready_image_costs_two_calls_at_once_and_no_line() {
    let bench = Bench::new("").await;
    bench.unpacked_without_labels("erofs");
    bench.create("local", "erofs", "first").await.unwrap();
    said();

    bench.fake.calls();
    bench.fake.slow("stat snapshot", Duration::from_millis(10));
    let began = Instant::now();
    bench.create("local", "erofs", "second").await.unwrap();
    assert_eq!(bench.fake.calls(), ["stat snapshot", "stat snapshot"]);
    let took = began.elapsed();
    assert!(
        took < Duration::from_millis(20),
        "one after the other: {took:?}"
    );
    assert_eq!(said(), []);
}

#[tokio::test(start_paused = true)]
async fn without_containerd_pods_are_allowed_unless_the_configuration_rejects_them() {
    for (config, created) in [("", true), ("[hooks]\non_unready = \"reject\"\n", false)] {
        let bench = Bench::new(config).await;
        bench.unpacked_without_labels("nydus");
        // The handlers are known before it goes.
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.fake.go_down();
        said();
        let answer = bench.create("guest", "nydus", "c").await;
        assert_eq!(answer.is_ok(), created, "{config}: {answer:?}");
        let said = said();
        assert!(matches!(&said[..], [(Level::Warn, _)]), "{said:?}");
    }
}

/// containerd goes between the first look and the work, or does not know the container.
#[tokio::test(start_paused = true)]
async fn what_was_not_seen_is_rejected_only_where_that_is_configured() {
    use crate::containerd::ErrorKind::{NotFound, Unreachable};
    for (call, kind) in [("list images", Unreachable), ("stat snapshot", NotFound)] {
        for (config, created) in [("", true), ("[hooks]\non_unready = \"reject\"\n", false)] {
            for (handler, snapshotter) in [("local", "erofs"), ("guest", "nydus")] {
                let bench = Bench::new(config).await;
                bench.run(handler, (policy::IMAGES, "")).await;
                bench.unpacked_without_labels(snapshotter);
                bench.fake.fail(call, 0, kind);
                let answer = bench.create(handler, snapshotter, "c").await;
                let context = format!("{config} {call} {snapshotter}: {answer:?}");
                assert_eq!(answer.is_ok(), created, "{context}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn an_unknown_handler_is_let_pass_and_that_is_said() {
    let bench = Bench::new("").await;
    bench.unpacked_without_labels("erofs");
    bench.create("nobody", "erofs", "c").await.unwrap();
    let said = said();
    let decisions = said.iter().filter(|(level, _)| *level == Level::Warn);
    let decisions: Vec<_> = decisions.map(|(_, line)| line.as_str()).collect();
    assert_eq!(decisions, ["pod's snapshotter is not known; allowed"]);
    assert_eq!(bench.state("erofs").await, State::Unlabelled);
}

#[tokio::test(start_paused = true)]
async fn handlers_are_waited_for_only_while_they_are_first_asked_for() {
    let fake = Arc::new(Fake::default());
    fake.slow("ask CRI for its status", Duration::from_millis(300));
    let bench = Bench::on(fake, "").await;
    bench.unpacked_without_labels("erofs");
    let began = Instant::now();
    bench.create("local", "erofs", "c").await.unwrap();
    assert!(began.elapsed() >= Duration::from_millis(300));
    assert_eq!(bench.state("erofs").await, State::Ready);

    let fake = Arc::new(Fake::default());
    let bench = Bench::on(fake, "").await;
    bench
        .fake
        .slow("ask CRI for its status", Duration::from_millis(300));
    bench.fake.go_down();
    // The first attempt has failed.
    tokio::time::sleep(Duration::from_millis(310)).await;
    let began = Instant::now();
    bench.create("local", "erofs", "c").await.unwrap();
    assert_eq!(began.elapsed(), Duration::ZERO);
}

/// In a new session, and while the configuration is read again.
#[tokio::test(start_paused = true)]
async fn without_an_answer_the_handlers_are_as_they_were() {
    let bench = Bench::new("").await;
    bench.unpacked_without_labels("nydus");
    bench.run("guest", (policy::IMAGES, "")).await;
    bench.fake.fail(
        "ask CRI for its status",
        0,
        crate::containerd::ErrorKind::Unreachable,
    );
    bench.node.refresh();
    bench.create("guest", "nydus", "c").await.unwrap();
    let own = bench.fake.stat("nydus", "c").await.unwrap();
    assert!(!bench.chain_ids.contains(&own.parent.unwrap()), "not moved");
}

#[tokio::test(start_paused = true)]
async fn a_pod_that_says_skip_is_left_alone() {
    let bench = Bench::new("").await;
    bench.run("local", (policy::IMAGES, "")).await;
    // What is looked at when a session begins.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.fake.calls();
    let mut pod = pod("local");
    let annotations = [(policy::MODE, "skip"), (policy::IMAGES, NAME)];
    let annotations = annotations.map(|(key, value)| (key.to_owned(), value.to_owned()));
    pod.annotations.extend(annotations);
    bench.hooks.run_pod_sandbox(pod.clone()).await.unwrap();
    let container = Container::default();
    bench.hooks.create_container(pod, container).await.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(bench.fake.calls(), Vec::<String>::new());
}

#[test]
fn a_rejection_fits_into_an_event() {
    let short = rejection("nydus", "2 of 3 layers are ready, the unpack goes on");
    assert_eq!(
        short,
        "nri-unpack: the image is not ready in snapshotter nydus: 2 of 3 layers are ready, the unpack \
         goes on; the kubelet will try again"
    );
    for why in ["é".repeat(1000), "x".repeat(2000)] {
        let long = rejection("nydus", &why);
        assert!((1020..=1024).contains(&long.len()), "{}", long.len());
        assert!(long.ends_with("…; the kubelet will try again"), "{long}");
    }
    let quoted = rejection("nydus", "media type \u{1b}[2J\n\u{202e}");
    assert!(
        quoted.contains("media type \\u{1b}[2J\\n\\u{202e};"),
        "{quoted}"
    );
}

/// NRI before 0.8 tells nothing, and is taken for the usual.
#[tokio::test]
async fn the_request_timeout_is_read_where_it_is_not_told() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("config.toml");
    let nri = "[plugins.\"io.containerd.nri.v1.nri\"]\nplugin_request_timeout = \"300ms\"\n";
    for (text, wait) in [(nri, 200), ("", 500)] {
        std::fs::write(&file, text).unwrap();
        let config = format!("[containerd]\nconfig = {file:?}\n");
        let config = Config::from_toml(&config, "test").unwrap();
        let node = Node::with(config, Role::Daemon, Arc::new(Fake::default()));
        let hooks = Hooks::new(Box::new(move |_| Ok(node.clone())));
        hooks.configure(RuntimeInfo::default()).await.unwrap();
        let session = hooks.session.get().unwrap();
        assert_eq!(session.wait(), Duration::from_millis(wait), "{text}");
    }
}

#[test]
fn a_wait_in_which_nothing_can_be_moved_is_remarked() {
    for (hooks, remarked) in [
        ("wait = \"5ms\"", true),
        ("wait = \"124ms\"", true),
        ("wait = \"125ms\"", false),
        ("wait = \"5ms\"\nswap = false", false),
        ("", false),
    ] {
        let config = Config::from_toml(&format!("[hooks]\n{hooks}\n"), "test").unwrap();
        let remark = too_short(&config);
        assert_eq!(remark.is_some(), remarked, "{hooks}: {remark:?}");
        assert!(remark.is_none_or(|remark| remark.contains("125ms")));
    }
}
