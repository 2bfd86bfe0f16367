//! Tests of the hooks with the in-memory containerd and a paused clock.

mod broken;
mod panics;

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
    /// The chain ids of the image, bottom first.
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

    /// Commits the chain without labels, as containerd's own unpack does.
    fn commit_without_labels(&self, snapshotter: &str) {
        let mut parent = None;
        for chain_id in &self.chain_ids {
            self.fake.commit_unlabelled(snapshotter, chain_id, parent);
            parent = Some(chain_id.as_str());
        }
    }

    /// Adds an image with one layer, which no other image has. Its descriptor states this size. Returns the digest of
    /// its blob.
    fn image_of_size(&self, name: &str, bytes: i64) -> String {
        let media_type = "application/vnd.oci.image.layer.v1.tar";
        let mut layer = self.fake.document(media_type, name.as_bytes());
        layer.size = bytes;
        self.fake.image_from(name, std::slice::from_ref(&layer));
        layer.digest
    }

    /// Calls the hook for a container that is being created.
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
    /// Each test runs on one thread, with a runtime of its own.
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
    // Fails if another test of this process has set the same logger before.
    let _ = log::set_logger(&Capture);
    log::set_max_level(LevelFilter::Trace);
}

/// Returns the log lines above debug since the last call.
fn logged() -> Vec<(Level, String)> {
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
async fn a_hook_returns_at_its_deadline_and_the_work_continues() {
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

/// An apply of 512 MiB takes longer than half a second on every node.
#[tokio::test(start_paused = true)]
async fn a_hook_does_not_wait_for_an_unpack_that_cannot_end_in_time() {
    const BIG: &str = "r.example/big:1";
    let bench = Bench::new("").await;
    bench.image_of_size(BIG, 512 << 20);
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

/// The log has the remedy.
#[tokio::test(start_paused = true)]
async fn a_missing_large_blob_is_logged() {
    const BIG: &str = "r.example/big:1";
    let bench = Bench::new("").await;
    let blob = bench.image_of_size(BIG, 512 << 20);
    bench.fake.discard(&blob);
    bench.run("local", (policy::IMAGES, BIG)).await;
    let lines = logged();
    let failed = (Level::Warn, "pod's image cannot be made ready".to_owned());
    assert!(lines.contains(&failed), "{lines:?}");
}

/// A hook waits for a layer of 128 MiB until other applies have shown that the node is too slow.
#[tokio::test(start_paused = true)]
async fn the_estimate_of_an_unpack_uses_the_measured_throughput() {
    let bench = Bench::new("").await;
    let (small, large) = (16 << 20, 128 << 20);
    let took = async |name: &str, size| {
        bench.image_of_size(name, size);
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
    let lines = logged();
    let warned = |(level, line): &(Level, String)| {
        *level == Level::Warn && line == "pod's image cannot be made ready"
    };
    assert_eq!(
        lines.iter().filter(|line| warned(line)).count(),
        1,
        "{lines:?}"
    );
}

/// The chain stays in use, or its repair is not finished in time.
#[tokio::test(start_paused = true)]
async fn the_configuration_or_the_profile_rejects_or_allows_an_unready_image() {
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
        bench.commit_without_labels(snapshotter);
        bench.fake.slow("label snapshot", Duration::from_secs(60));
        let answer = bench.create(handler, snapshotter, "c").await;
        assert_eq!(
            answer.is_ok(),
            created,
            "{config} {snapshotter}: {answer:?}"
        );
        // With each verdict, the container keeps its chain.
        let own = bench.fake.stat(snapshotter, "c").await.unwrap();
        assert_eq!(own.parent.as_ref(), bench.chain_ids.last());
    }
}

/// A slow containerd must not lead to a container without its layers.
#[tokio::test(start_paused = true)]
async fn the_profile_decides_if_containerd_does_not_answer_in_time() {
    for (handler, snapshotter, created) in [("local", "erofs", true), ("guest", "nydus", false)] {
        let bench = Bench::new("").await;
        bench.commit_without_labels(snapshotter);
        bench.fake.slow("stat snapshot", Duration::from_secs(5));
        let answer = bench.create(handler, snapshotter, "c").await;
        assert_eq!(answer.is_ok(), created, "{snapshotter}: {answer:?}");
    }
}

/// Layers that the host has unpacked lie on empty guest-pulled layers.
#[tokio::test(start_paused = true)]
async fn a_mixed_chain_is_rejected_under_every_configuration() {
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
async fn a_container_on_a_host_chain_is_moved_in_its_own_hook() {
    let bench = Bench::new("").await;
    bench.commit_without_labels("nydus");
    bench.create("guest", "nydus", "c").await.unwrap();
    let own = bench.fake.stat("nydus", "c").await.unwrap();
    let parent = own.parent.unwrap();
    assert!(!bench.chain_ids.contains(&parent), "{parent}");

    // The old chain is replaced when nothing uses it, and the container keeps its private chain.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(bench.state("nydus").await, State::Ready);
    let own = bench.fake.stat("nydus", "c").await.unwrap();
    assert_eq!(own.parent, Some(parent));
}

#[tokio::test(start_paused = true)]
async fn a_container_of_a_ready_image_takes_two_parallel_calls_and_no_log_line() {
    let bench = Bench::new("").await;
    bench.commit_without_labels("erofs");
    bench.create("local", "erofs", "first").await.unwrap();
    logged();

    bench.fake.calls();
    bench.fake.slow("stat snapshot", Duration::from_millis(10));
    let began = Instant::now();
    bench.create("local", "erofs", "second").await.unwrap();
    assert_eq!(bench.fake.calls(), ["stat snapshot", "stat snapshot"]);
    let took = began.elapsed();
    assert!(
        took < Duration::from_millis(20),
        "the calls were sequential: {took:?}"
    );
    assert_eq!(logged(), []);
}

#[tokio::test(start_paused = true)]
async fn without_containerd_pods_are_allowed_unless_the_configuration_rejects_them() {
    for (config, created) in [("", true), ("[hooks]\non_unready = \"reject\"\n", false)] {
        let bench = Bench::new(config).await;
        bench.commit_without_labels("nydus");
        // The handlers are known before containerd stops.
        bench.run("guest", (policy::IMAGES, "")).await;
        bench.fake.go_down();
        logged();
        let answer = bench.create("guest", "nydus", "c").await;
        assert_eq!(answer.is_ok(), created, "{config}: {answer:?}");
        let lines = logged();
        assert!(matches!(&lines[..], [(Level::Warn, _)]), "{lines:?}");
    }
}

/// containerd stops answering after the first call, or does not know the container.
#[tokio::test(start_paused = true)]
async fn a_container_whose_chain_cannot_be_read_is_rejected_only_if_configured() {
    use crate::containerd::ErrorKind::{NotFound, Unreachable};
    for (call, kind) in [("list images of", Unreachable), ("stat snapshot", NotFound)] {
        for (config, created) in [("", true), ("[hooks]\non_unready = \"reject\"\n", false)] {
            for (handler, snapshotter) in [("local", "erofs"), ("guest", "nydus")] {
                let bench = Bench::new(config).await;
                bench.run(handler, (policy::IMAGES, "")).await;
                bench.commit_without_labels(snapshotter);
                bench.fake.fail(call, 0, kind);
                let answer = bench.create(handler, snapshotter, "c").await;
                let context = format!("{config} {call} {snapshotter}: {answer:?}");
                assert_eq!(answer.is_ok(), created, "{context}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_pod_with_an_unknown_handler_is_allowed_with_a_warning() {
    let bench = Bench::new("").await;
    bench.commit_without_labels("erofs");
    bench.create("unknown", "erofs", "c").await.unwrap();
    let lines = logged();
    let decisions = lines.iter().filter(|(level, _)| *level == Level::Warn);
    let decisions: Vec<_> = decisions.map(|(_, line)| line.as_str()).collect();
    assert_eq!(decisions, ["pod's snapshotter is not known; allowed"]);
    assert_eq!(bench.state("erofs").await, State::Unlabelled);
}

#[tokio::test(start_paused = true)]
async fn a_hook_waits_for_the_handlers_only_during_the_first_request() {
    let fake = Arc::new(Fake::default());
    fake.slow("ask CRI for its status", Duration::from_millis(300));
    let bench = Bench::on(fake, "").await;
    bench.commit_without_labels("erofs");
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

/// This happens in a new session, and while the configuration is read again.
#[tokio::test(start_paused = true)]
async fn without_an_answer_the_earlier_handlers_apply() {
    let bench = Bench::new("").await;
    bench.commit_without_labels("nydus");
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
async fn a_pod_with_mode_skip_is_left_to_containerd() {
    let bench = Bench::new("").await;
    bench.run("local", (policy::IMAGES, "")).await;
    // The calls at the beginning of a session have ended.
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
fn a_rejection_fits_into_a_kubernetes_event() {
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

/// NRI before 0.8 does not send the timeout. Without one in the file, the default applies.
#[tokio::test]
async fn the_request_timeout_is_read_from_the_file_if_nri_does_not_send_it() {
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
fn a_wait_that_is_too_short_for_a_swap_gets_a_warning() {
    for (hooks, is_warned) in [
        ("wait = \"5ms\"", true),
        ("wait = \"124ms\"", true),
        ("wait = \"125ms\"", false),
        ("wait = \"5ms\"\nswap = false", false),
        ("", false),
    ] {
        let config = Config::from_toml(&format!("[hooks]\n{hooks}\n"), "test").unwrap();
        let warning = too_short(&config);
        assert_eq!(warning.is_some(), is_warned, "{hooks}: {warning:?}");
        assert!(warning.is_none_or(|warning| warning.contains("125ms")));
    }
}
