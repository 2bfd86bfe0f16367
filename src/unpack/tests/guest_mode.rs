//! Whether the guest pulls: found out of what the snapshotter does, again after it was restarted in another mode, and
//! not of its name or of a label that an image brings.

use std::ops::Deref;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use tempfile::TempDir;

use crate::config::ExtraLabels;
use crate::containerd::fake::Fake;
use crate::containerd::{ErrorKind, Labels};
use crate::ctr::Ctr;
use crate::image::{Base, LayerLabels, PROXY_MODE};

use super::super::chain::profile::is_proxied;
use super::super::{Action, Error, LabelPolicy, Labelling, ParentChain, Profile, Repair, State};
use super::{NAME, PARALLEL, default_policy, other_ctr};

const NYDUS: &str = "nydus";

/// A snapshotter whose name says nothing.
const OTHER: &str = "native";

/// A bench of a snapshotter that can be restarted.
struct Bench {
    bench: super::Bench,
    directory: TempDir,
}

impl Deref for Bench {
    type Target = super::Bench;

    fn deref(&self) -> &Self::Target {
        &self.bench
    }
}

/// The configuration of `profile` for all snapshotters.
struct Configured(Profile);

impl LabelPolicy for Configured {
    fn labelling(&self, _: &str, _: &[String]) -> Option<Labelling> {
        Some(Labelling {
            cri: true,
            required: true,
        })
    }

    fn extra_labels(&self, _: &str) -> ExtraLabels {
        ExtraLabels::default()
    }

    fn profile(&self, _: &str) -> Option<Profile> {
        Some(self.0)
    }

    fn repair(&self, _: &str) -> Option<Repair> {
        None
    }

    fn ctr(&self) -> Ctr {
        other_ctr()
    }
}

impl Bench {
    async fn new(snapshotter: &'static str) -> Self {
        let fake = Fake::default();
        let image = fake.image(NAME, 3);
        Self {
            bench: super::Bench::on(fake, image, snapshotter, PARALLEL).await,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    fn socket(&self) -> PathBuf {
        self.directory.path().join("s.sock")
    }

    fn restart(&self, guest_pulls: bool) {
        self.fake
            .restart(self.snapshotter, &self.socket(), guest_pulls);
    }

    /// Makes a container on the image's chain, after the last restart.
    fn activate_now(&self, key: &str) {
        self.fake.activate(NYDUS, key, self.top());
        self.fake.set_created(NYDUS, key, SystemTime::now());
    }

    async fn parent_of(&self, key: &str) -> ParentChain {
        let parent = self
            .engine
            .parent_chain(self.snapshotter, key, Some(NAME), false);
        parent.await.unwrap()
    }

    /// Commits the image's layers with all labels, as a labelled unpack on the host does. The image marks each layer as
    /// guest-pulled with an annotation, if `marked`.
    fn unpack_on_host(&self, marked: bool) {
        let labels = LayerLabels::new(&self.manifest, Base::Pull, Some(NAME));
        let mut parent: Option<&str> = None;
        for (i, layer) in self.manifest.layers.iter().enumerate() {
            let mut labels = labels[i].clone();
            if marked {
                labels.insert(PROXY_MODE.to_owned(), "true".to_owned());
            }
            let chain_id = layer.chain_id.as_str();
            self.fake.put(self.snapshotter, chain_id, parent, labels);
            self.fake.fill(self.snapshotter, chain_id);
            parent = Some(chain_id);
        }
    }

    fn proxied(&self) -> usize {
        let all = self.fake.all(self.snapshotter);
        all.iter().filter(|s| is_proxied(&s.labels)).count()
    }

    fn prepares(&self) -> usize {
        self.fake.subjects("prepare snapshot").len()
    }
}

/// What the host unpacked does not count as ready once the guest pulls, and empty layers not once it does not.
#[tokio::test]
async fn a_snapshotter_that_is_restarted_in_another_mode_is_asked_again() {
    for snapshotter in [NYDUS, OTHER] {
        let bench = Bench::new(snapshotter).await;
        bench.restart(false);
        bench.ensure().await.unwrap();
        assert_eq!(bench.proxied(), 0, "{snapshotter}");
        assert!(!bench.engine.profile(snapshotter).fails_closed);
        bench.fake.activate(snapshotter, "c1", bench.top());
        assert_eq!(bench.parent_of("c1").await, ParentChain::Ready);

        bench.restart(true);
        let unknown = ParentChain::Unknown {
            chain: bench.top().to_owned(),
        };
        assert_eq!(bench.parent_of("c1").await, unknown, "{snapshotter}");
        bench.fake.collect_container(snapshotter, "c1");
        let done = bench.ensure().await.unwrap();
        assert_eq!(
            (done.found, done.action),
            (State::Unlabelled, Action::Replaced)
        );
        assert_eq!(bench.proxied(), 3, "{snapshotter}");
        assert!(bench.engine.profile(snapshotter).fails_closed);
        bench.fake.activate(snapshotter, "c2", bench.top());
        assert_eq!(bench.parent_of("c2").await, ParentChain::Ready);

        bench.restart(false);
        assert_eq!(bench.parent_of("c2").await, unknown, "{snapshotter}");
        // Until it is known better, nothing starts from a wrong chain.
        assert!(bench.engine.profile(snapshotter).fails_closed);
        bench.fake.collect_container(snapshotter, "c2");
        let done = bench.ensure().await.unwrap();
        assert_eq!((done.found, done.action), (State::Mixed, Action::Replaced));
        assert_eq!(bench.proxied(), 0, "{snapshotter}");
        assert_eq!(bench.state().await, State::Ready, "{snapshotter}");
        assert!(!bench.engine.profile(snapshotter).fails_closed);
    }
}

/// One such image would make all others look unlabelled.
#[tokio::test]
async fn an_annotation_marks_no_layer_as_guest_pulled() {
    for snapshotter in [NYDUS, "erofs"] {
        let bench = Bench::new(snapshotter).await;
        if snapshotter == NYDUS {
            bench.restart(false);
        }
        bench.unpack_on_host(false);
        let marked = Labels::from([(PROXY_MODE.to_owned(), "true".to_owned())]);
        bench.fake.put(snapshotter, "another", None, marked);
        bench.fake.fill(snapshotter, "another");
        // A command has found out nothing.
        assert_eq!(bench.state().await, State::Unanchored, "{snapshotter}");

        let bench = Bench::new(snapshotter).await;
        if snapshotter == NYDUS {
            bench.restart(false);
        }
        bench.unpack_on_host(true);
        assert_eq!(bench.state().await, State::Unanchored, "{snapshotter}");
        let done = bench.ensure().await.unwrap();
        assert_eq!(done.action, Action::Anchored, "{snapshotter}");
        assert!(!bench.engine.supports_guest_pull(snapshotter));
    }
}

/// A command sees from the mounts of a container that the guest pulls, and from the emptiness of a layer.
#[tokio::test]
async fn a_command_finds_out_without_a_change() {
    for (restarted, with_container, expected) in [
        (false, true, State::Ready),
        (false, false, State::Ready),
        (true, true, State::Mixed),
    ] {
        let mut bench = Bench::new(NYDUS).await;
        bench.restart(true);
        bench.ensure().await.unwrap();
        if restarted {
            bench.restart(false);
        }
        if with_container {
            bench.activate_now("c");
        }
        bench.bench.set_policy(default_policy());
        bench.fake.calls();
        assert_eq!(
            bench.state().await,
            expected,
            "{restarted} {with_container}"
        );
        assert!(!Fake::writes(&bench.fake.calls()));
    }
}

/// A snapshotter cannot tell the mounts of containers from before its restart.
#[tokio::test]
async fn a_container_from_before_a_restart_shows_nothing() {
    let mut bench = Bench::new(NYDUS).await;
    bench.restart(true);
    bench.ensure().await.unwrap();
    for container in ["a", "b"] {
        bench.fake.activate(NYDUS, container, bench.top());
    }
    bench.restart(false);
    bench.bench.set_policy(default_policy());
    assert_eq!(bench.state().await, State::Ready);
    bench.activate_now("c");
    bench.bench.set_policy(default_policy());
    assert_eq!(bench.state().await, State::Mixed);
}

#[tokio::test]
async fn one_container_is_enough_to_show_that_the_guest_pulls() {
    for is_seen in [true, false] {
        let mut bench = Bench::new(NYDUS).await;
        bench.restart(true);
        bench.ensure().await.unwrap();
        for container in ["a", "b", "c"] {
            bench.fake.activate(NYDUS, container, bench.top());
        }
        if !is_seen {
            // As in a container that does not mount its directory.
            std::fs::remove_file(bench.socket()).unwrap();
        }
        for (failing, expected) in [(2, State::Ready), (3, State::Mixed)] {
            bench.bench.set_policy(default_policy());
            for _ in 0..failing {
                bench
                    .fake
                    .fail("ask mounts of snapshot", 0, ErrorKind::Other);
            }
            // A socket that is seen tells that all containers are from before the restart.
            let expected = if is_seen { State::Ready } else { expected };
            assert_eq!(bench.state().await, expected, "{is_seen} {failing}");
            assert!(bench.fake.pending_faults().is_empty());
        }
    }
}

#[tokio::test]
async fn a_lazy_snapshotter_with_labelled_layers_is_not_probed() {
    let bench = Bench::new(OTHER).await;
    let lazy: Vec<_> = bench
        .manifest
        .layers
        .iter()
        .map(|l| l.blob.clone())
        .collect();
    bench.fake.is_lazy(OTHER, &lazy);
    bench.unpack_on_host(false);
    bench.fake.calls();
    bench.engine.find_out(OTHER).await;
    assert_eq!(bench.prepares(), 0);
    assert!(!bench.engine.profile(OTHER).fails_closed);
}

/// A probe of a snapshotter that hangs takes 10 s.
#[tokio::test(start_paused = true)]
async fn callers_at_the_same_time_share_one_probe() {
    for fails in [false, true] {
        let bench = Bench::new(NYDUS).await;
        bench.restart(true);
        bench.fake.prepares_in(NYDUS, Duration::from_secs(1));
        if fails {
            bench.fake.fail("prepare snapshot", 0, ErrorKind::Other);
        }
        let callers = (0..10).map(|_| bench.engine.find_out(NYDUS));
        futures::future::join_all(callers).await;
        assert_eq!(bench.prepares(), 1, "{fails}");
        assert_eq!(bench.engine.supports_guest_pull(NYDUS), !fails);
        // An error is not remembered.
        bench.engine.find_out(NYDUS).await;
        assert!(bench.engine.supports_guest_pull(NYDUS), "{fails}");
        assert_eq!(bench.prepares(), 1 + usize::from(fails));
    }
}

/// A stop and a reload drop a probe at any moment. The end of the engine removes what it has left; no later start may come.
#[tokio::test(start_paused = true)]
async fn a_probe_that_is_dropped_leaves_nothing() {
    let millis = Duration::from_millis;
    let mut cancelled = 0;
    for moment in (50..1000).step_by(100) {
        let bench = Bench::new(NYDUS).await;
        bench.restart(true);
        for call in [
            "create lease",
            "stat snapshot",
            "remove snapshot",
            "delete lease",
        ] {
            bench.fake.slow(call, millis(100));
        }
        bench.fake.prepares_in(NYDUS, millis(100));
        let probe = bench.engine.find_out(NYDUS);
        let ended = tokio::time::timeout(millis(moment), probe).await;
        cancelled += usize::from(ended.is_err());
        bench.engine.close().await;
        assert!(bench.fake.lease_ids().is_empty(), "{moment}");
        assert!(bench.fake.all(NYDUS).is_empty(), "{moment}");
    }
    assert!(cancelled > 3, "{cancelled}");
}

/// Without such a lease the end of the engine takes no call, and a containerd that hangs does not hold it up.
#[tokio::test(start_paused = true)]
async fn the_end_of_the_engine_is_quick() {
    let bench = Bench::new(NYDUS).await;
    bench.restart(true);
    bench.engine.find_out(NYDUS).await;
    bench.fake.calls();
    bench.engine.close().await;
    assert_eq!(bench.fake.calls(), Vec::<String>::new());

    let bench = Bench::new(NYDUS).await;
    bench.restart(true);
    bench.fake.prepares_in(NYDUS, Duration::from_secs(5));
    let probe = bench.engine.find_out(NYDUS);
    let ended = tokio::time::timeout(Duration::from_secs(1), probe).await;
    assert!(ended.is_err());
    let call = "list resources of lease";
    bench.fake.slow(call, Duration::from_secs(3600));
    let began = tokio::time::Instant::now();
    bench.engine.close().await;
    assert!(
        began.elapsed() < Duration::from_secs(3),
        "{:?}",
        began.elapsed()
    );
}

/// The restart was not seen, for example since the socket is the same.
#[tokio::test]
async fn a_layer_that_is_not_left_to_the_guest_contradicts_the_finding() {
    let bench = Bench::new(NYDUS).await;
    bench.restart(true);
    bench.engine.find_out(NYDUS).await;
    bench.fake.set_mode(NYDUS, false);
    let error = bench.ensure().await.unwrap_err();
    assert!(matches!(*error, Error::NotLeftToGuest { .. }), "{error}");
    assert!(bench.fake.all(NYDUS).is_empty());
    assert!(bench.fake.lease_ids().is_empty());
    bench.ensure().await.unwrap();
    assert_eq!(bench.state().await, State::Ready);

    // The other way round.
    bench.fake.set_mode(NYDUS, true);
    for chain in bench.manifest.layers.iter().rev() {
        bench.fake.forget(NYDUS, &chain.chain_id);
    }
    let error = bench.ensure().await.unwrap_err();
    assert!(matches!(*error, Error::Unsettled { .. }), "{error}");
    bench.ensure().await.unwrap();
    assert_eq!(bench.proxied(), 3);
    assert_eq!(bench.state().await, State::Ready);
}

#[tokio::test]
async fn the_configured_profile_decides_before_the_name_and_the_finding() {
    let mut bench = Bench::new(NYDUS).await;
    bench
        .bench
        .set_policy(Box::new(Configured(Profile::COMPLETE)));
    bench.fake.set_mode(NYDUS, false);
    bench.fake.calls();
    bench.engine.find_out(NYDUS).await;
    assert_eq!(bench.prepares(), 0);
    assert!(!bench.engine.profile(NYDUS).fails_closed);
    bench.ensure().await.unwrap();

    let mut bench = Bench::new(OTHER).await;
    bench.bench.set_policy(Box::new(Configured(Profile::NYDUS)));
    bench.unpack_on_host(false);
    assert_eq!(bench.state().await, State::Unlabelled);
    assert!(bench.engine.profile(OTHER).fails_closed);
    bench.fake.set_mode(OTHER, true);
    bench.ensure().await.unwrap();
    assert_eq!(bench.proxied(), 3);
}

/// Nothing is made before it is known whether the guest pulls, and the next request asks again.
#[tokio::test]
async fn an_error_of_introspection_decides_nothing() {
    for snapshotter in [NYDUS, OTHER] {
        let bench = Bench::new(snapshotter).await;
        bench.restart(true);
        for kind in [ErrorKind::Other, ErrorKind::TimedOut] {
            for _ in 0..10 {
                bench.fake.fail("list snapshotters", 0, kind);
            }
            bench.ensure().await.unwrap_err();
            assert!(bench.fake.all(snapshotter).is_empty(), "{snapshotter}");
            assert!(bench.fake.lease_ids().is_empty());
            bench.fake.heal();
        }
        // Until it is known, a snapshotter of any name may leave images to the guest.
        bench.fake.fail("list snapshotters", 0, ErrorKind::Other);
        drop(bench.ensure().await);
        bench.ensure().await.unwrap();
        assert_eq!(bench.proxied(), 3, "{snapshotter}");
        bench.fake.calls();
        bench.ensure().await.unwrap();
        assert_eq!(bench.fake.subjects("list snapshotters"), [""; 0]);
    }
}
