//! Tests of what is found and removed when the plugin leaves, with a fault in every call.

use std::sync::Arc;
use std::time::Duration;

use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, ErrorKind, Image, Labels, Resource};

use super::super::proxied;
use super::super::purge::{Removal, Survey};
use super::super::snapshotter::guest_pull::private_name;
use super::super::snapshotter::lease::Leases;
use super::super::target::images::Images;
use super::super::{Fate, Leftover, LeftoverKind, Role, Usage};
use super::bench::Bench;
use super::{EROFS, PARALLEL};

const NYDUS: &str = "nydus";

fn anchor(snapshotter: &str, suffix: &str) -> String {
    format!("containerd.io/gc.ref.snapshot.{snapshotter}{suffix}")
}

/// Returns a containerd with nydus as a proxy plugin.
fn with_proxy() -> Fake {
    let fake = Fake::default();
    fake.is_lazy(NYDUS, &[]);
    fake
}

/// Returns a bench whose image the engine has made ready ahead.
async fn ahead(snapshotter: &'static str) -> Bench {
    let fake = with_proxy();
    let image = fake.image(super::NAME, 3);
    let bench = Bench::on(fake, image, snapshotter, PARALLEL).await;
    bench.ensure().await.unwrap();
    bench
}

/// Returns what was found, as kinds and words.
fn fates(found: &[Leftover]) -> Vec<(LeftoverKind, &'static str)> {
    let mut fates: Vec<_> = found.iter().map(|it| (it.kind, it.fate.word())).collect();
    fates.sort_unstable();
    fates
}

impl Bench {
    async fn purge(&self) -> Vec<Leftover> {
        self.engine.purge().await.unwrap()
    }

    async fn labels(&self) -> Labels {
        self.fake.blob(self.config()).await.unwrap().labels
    }

    fn has(&self, name: &str) -> bool {
        let all = self.fake.all(self.snapshotter);
        all.iter().any(|snapshot| snapshot.name == name)
    }

    async fn anchor_private(&self, suffix: &str, name: &str) {
        self.fake.commit_unlabelled(self.snapshotter, name, None);
        let label = Labels::from([(anchor(self.snapshotter, suffix), name.to_owned())]);
        self.fake.label_blob(self.config(), label).await.unwrap();
    }

    /// Checks that nothing of this program is left.
    async fn assert_clean(&self) {
        let found = self.engine.left_behind().await.unwrap();
        assert!(found.is_empty(), "{found:#?}");
        assert!(self.fake.lease_ids().is_empty());
    }
}

#[tokio::test]
async fn a_copy_that_no_container_has_used_is_removed() {
    let bench = ahead(EROFS).await;
    bench.fake.calls();
    let found = bench.engine.left_behind().await.unwrap();
    assert!(!Fake::writes(&bench.fake.calls()), "a look changes nothing");
    let expected = [
        (LeftoverKind::Copy, "removable"),
        (LeftoverKind::Label, "removable"),
    ];
    assert_eq!(fates(&found), expected);
    let is_named = |it: &Leftover| it.image.as_deref() == Some(super::NAME);
    assert!(found.iter().all(is_named), "{found:#?}");
    let purged = bench.purge().await;
    let expected = expected.map(|(kind, _)| (kind, "removed"));
    assert_eq!(fates(&purged), expected);
    assert!(bench.fake.all(EROFS).is_empty());
    assert_eq!(bench.labels().await, Labels::new());
    bench.assert_clean().await;
}

/// containerd would have unpacked it for its container, and it stays for the next one.
#[tokio::test]
async fn a_chain_that_a_container_has_used_stays() {
    for is_recorded in [true, false] {
        let bench = ahead(EROFS).await;
        match is_recorded {
            true => bench.engine.record_use(super::NAME, EROFS).await.unwrap(),
            false => bench.fake.activate(EROFS, "container", bench.top()),
        }
        let purged = bench.purge().await;
        assert_eq!(fates(&purged), [(LeftoverKind::Label, "removed")]);
        bench.fake.collect_garbage();
        assert!(bench.has(bench.top()));
        let anchor = (anchor(EROFS, ""), bench.top().to_owned());
        assert_eq!(bench.labels().await, Labels::from([anchor]));
        bench.assert_clean().await;
    }
}

/// containerd alone would have unpacked the layers on the host. What it unpacks on guest-pulled layers is broken.
#[tokio::test]
async fn a_guest_pulled_chain_stays_only_while_a_container_uses_it() {
    let bench = ahead(NYDUS).await;
    bench.engine.record_use(super::NAME, NYDUS).await.unwrap();
    bench.fake.activate(NYDUS, "container", bench.top());
    let before = bench.labels().await;
    assert_eq!(fates(&bench.purge().await), [(LeftoverKind::Copy, "stays")]);
    assert_eq!(bench.labels().await, before);
    bench.fake.collect_container(NYDUS, "container");
    let expected = [
        (LeftoverKind::Copy, "removed"),
        (LeftoverKind::Label, "removed"),
    ];
    assert_eq!(fates(&bench.purge().await), expected);
    assert!(bench.fake.all(NYDUS).is_empty());
    bench.assert_clean().await;
}

/// containerd has unpacked the image on the host, and set the anchor: the plugin has replaced the chain since.
#[tokio::test]
async fn a_replaced_chain_is_the_plugins() {
    let fake = with_proxy();
    let image = fake.image(super::NAME, 3);
    let bench = Bench::on(fake, image, NYDUS, PARALLEL).await;
    bench.commit_without_labels(3);
    let label = Labels::from([(anchor(NYDUS, ""), bench.top().to_owned())]);
    bench.fake.label_blob(bench.config(), label).await.unwrap();
    bench.ensure().await.unwrap();
    let usage = bench.engine.usage(&bench.image, NYDUS).await.unwrap();
    assert_eq!(usage, Usage::Used, "containerd unpacks for a container");
    let expected = [
        (LeftoverKind::Copy, "removed"),
        (LeftoverKind::Label, "removed"),
    ];
    assert_eq!(fates(&bench.purge().await), expected);
    assert!(bench.fake.all(NYDUS).is_empty());
}

/// Returns a bench whose image has layers that the host has unpacked on a guest-pulled one.
async fn mixed() -> Bench {
    let fake = with_proxy();
    let (lower, upper) = (
        fake.image("r.example/lower:1", 1),
        fake.image(super::NAME, 3),
    );
    let bench = Bench::on(fake, upper, NYDUS, PARALLEL).await;
    bench.ask(&lower.name).outcome().await.unwrap();
    for two in bench.chain_ids.windows(2) {
        bench.fake.commit_unlabelled(NYDUS, &two[1], Some(&two[0]));
    }
    let anchor = (anchor(NYDUS, ""), bench.top().to_owned());
    let label = Labels::from([anchor]);
    bench.fake.label_blob(bench.config(), label).await.unwrap();
    bench
}

/// Returns the states of the chains of the image of a bench.
fn copies(found: &[Leftover]) -> Vec<&'static str> {
    let is_own =
        |it: &&Leftover| it.kind == LeftoverKind::Copy && it.image.as_deref() == Some(super::NAME);
    found
        .iter()
        .filter(is_own)
        .map(|it| it.fate.word())
        .collect()
}

/// Its root file system is broken.
#[tokio::test]
async fn host_layers_on_guest_pulled_ones_are_removed() {
    for (is_marked_falsely, is_used) in [(false, false), (false, true), (true, false)] {
        let bench = mixed().await;
        if is_marked_falsely {
            bench.fake.fill(NYDUS, &bench.chain_ids[0]);
        }
        if is_used {
            bench.fake.activate(NYDUS, "container", bench.top());
        }
        let purged = bench.purge().await;
        let expected = match (is_marked_falsely, is_used) {
            (true, _) => vec![],
            (_, true) => vec!["stays"],
            (_, false) => vec!["removed"],
        };
        assert_eq!(copies(&purged), expected);
        assert_eq!(bench.has(bench.top()), expected != ["removed"]);
    }
}

/// In a built-in snapshotter an annotation of the image has brought the mark, whatever the usage of the layer is: of a file
/// with a file system it is one inode.
#[tokio::test]
async fn a_marked_layer_of_a_built_in_snapshotter_is_like_any_other() {
    let bench = Bench::new(3).await;
    let mut parent = None;
    for (n, chain) in bench.chain_ids.iter().enumerate() {
        let labels = match n {
            0 => proxied(Labels::new()),
            _ => Labels::new(),
        };
        bench.fake.put(EROFS, chain, parent, labels);
        parent = Some(chain.as_str());
    }
    let label = Labels::from([(anchor(EROFS, ""), bench.top().to_owned())]);
    bench.fake.label_blob(bench.config(), label).await.unwrap();
    let purged = bench.purge().await;
    assert!(purged.is_empty(), "{purged:#?}");
    assert!(bench.has(bench.top()));
}

/// An annotation of an image may have brought the mark of a layer that has content.
#[tokio::test]
async fn a_chain_stays_while_the_content_of_a_layer_is_unknown() {
    let bench = mixed().await;
    bench.fake.fill(NYDUS, &bench.chain_ids[0]);
    let call = "ask usage of snapshot";
    bench.fake.fail(call, 0, ErrorKind::TimedOut);
    let purged = bench.purge().await;
    assert_eq!(copies(&purged), ["failed"], "{purged:#?}");
    bench.fake.collect_garbage();
    assert!(bench.has(bench.top()));
    assert_eq!(copies(&bench.purge().await), [""; 0]);
}

/// With `discard_unpacked_layers`, containerd keeps no blob of a layer that it has unpacked, and could not unpack the
/// image for its container.
#[tokio::test]
async fn a_copy_whose_blobs_are_gone_stays() {
    for snapshotter in [EROFS, NYDUS] {
        let bench = ahead(snapshotter).await;
        let blob = &bench.manifest.layers[1].blob.digest;
        bench.fake.discard(blob);
        let before = bench.labels().await;
        let purged = bench.purge().await;
        assert_eq!(fates(&purged), [(LeftoverKind::Copy, "stays")]);
        let reason = purged[0].fate.reason();
        assert!(reason.contains(blob), "{reason}");
        assert!(bench.has(bench.top()));
        assert_eq!(bench.labels().await, before);
    }
}

/// Its blobs may be gone.
#[tokio::test]
async fn a_copy_stays_while_its_image_cannot_be_read() {
    let bench = ahead(EROFS).await;
    let images = Images::new(bench.fake.clone());
    let survey = Survey {
        containerd: bench.fake.as_ref(),
        images: &images,
        leases: &Leases::new(Role::Daemon),
    };
    bench.fake.fail("read blob", 0, ErrorKind::Unreachable);
    let found = survey.run().await.unwrap();
    assert_eq!(fates(&found), [(LeftoverKind::Copy, "failed")]);
}

#[tokio::test]
async fn a_private_chain_goes_with_its_last_container() {
    for (suffix, prefix) in [
        ("/nri-unpack", "nri-unpack-private-"),
        ("/nri-unpack-host", "nri-unpack-private-host-"),
    ] {
        let bench = Bench::new(1).await;
        let name = format!("{prefix}{}", bench.top());
        bench.anchor_private(suffix, &name).await;
        bench.fake.activate(EROFS, "container", &name);
        for _ in 0..2 {
            let purged = bench.purge().await;
            assert_eq!(fates(&purged), [(LeftoverKind::PrivateChain, "stays")]);
            assert_eq!(purged[0].image.as_deref(), Some(super::NAME));
            assert_eq!(bench.labels().await, Labels::new());
            assert!(bench.has(&name));
        }
        bench.fake.collect_container(EROFS, "container");
        assert!(bench.fake.all(EROFS).is_empty());
        bench.assert_clean().await;
    }
}

/// The anchor of layers that are left of a lost image, and labels that a later version may set.
#[tokio::test]
async fn all_other_labels_of_this_program_are_removed() {
    let bench = Bench::new(1).await;
    bench.fake.put(
        EROFS,
        "sha256:rebuilt",
        None,
        Labels::from([("nri-unpack/rebuilt-from".to_owned(), "overlayfs".to_owned())]),
    );
    let labels = [
        (anchor(EROFS, ""), "sha256:rebuilt".to_owned()),
        (anchor(EROFS, "/nri-unpack-kept"), "sha256:gone".to_owned()),
        (
            anchor("removed", "/nri-unpack"),
            "nri-unpack-private-x".to_owned(),
        ),
        ("nri-unpack/usage.removed".to_owned(), "unused".to_owned()),
        ("nri-unpack/later".to_owned(), "x".to_owned()),
    ];
    let labels = Labels::from(labels);
    bench.fake.label_blob(bench.config(), labels).await.unwrap();
    let purged = bench.purge().await;
    assert!(
        purged.iter().all(|it| it.fate == Fate::Removed),
        "{purged:#?}"
    );
    assert_eq!(purged.len(), 5);
    let kept = (anchor(EROFS, ""), "sha256:rebuilt".to_owned());
    assert_eq!(bench.labels().await, Labels::from([kept]));
    assert_eq!(bench.fake.all(EROFS)[0].labels, Labels::new());
    bench.assert_clean().await;
}

/// The label of a volume that a pod mounts tells that it is filled: without it, it would be filled again.
#[tokio::test]
async fn the_label_of_a_pods_volume_stays() {
    let bench = ahead(EROFS).await;
    bench.fake.activate(EROFS, "/volume", bench.top());
    let label = Labels::from([("nri-unpack/volume".to_owned(), "filled".to_owned())]);
    let labelled = bench.fake.label_snapshot(EROFS, "/volume", label);
    labelled.await.unwrap();
    let purged = bench.purge().await;
    let expected = [
        (LeftoverKind::Label, "removed"),
        (LeftoverKind::Label, "stays"),
    ];
    assert_eq!(fates(&purged), expected);
}

/// Returns the labels of a lease whose process runs in another process namespace.
fn running_elsewhere() -> Labels {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let owner = format!("command {} pid:[1] 1 1", boot.trim());
    Labels::from([("nri-unpack/owner".to_owned(), owner)])
}

#[tokio::test]
async fn leases_and_temporary_snapshots_of_ended_processes_are_removed() {
    let bench = ahead(EROFS).await;
    bench.engine.record_use(super::NAME, EROFS).await.unwrap();
    let top = bench.top().to_owned();
    let keys = [
        "extract-nri-unpack-1.0 sha256:c".to_owned(),
        format!("nri-unpack-view {top}"),
        "nri-unpack-probe-nri-unpack-1".to_owned(),
    ];
    for key in &keys {
        bench.fake.activate(EROFS, key, &top);
    }
    let held = [&keys[0], &keys[1]].map(|key| Resource::snapshot(EROFS, key));
    bench.fake.lease("nri-unpack-1", Labels::new(), &held);
    let working = "extract-nri-unpack-2.0 sha256:d";
    bench.fake.activate(EROFS, working, &top);
    let held = [Resource::snapshot(EROFS, working)];
    bench.fake.lease("nri-unpack-2", running_elsewhere(), &held);
    bench.fake.lease("another client's", Labels::new(), &[]);
    let purged = bench.purge().await;
    let expected = [
        (LeftoverKind::Lease, "removed"),
        (LeftoverKind::Lease, "stays"),
        (LeftoverKind::TemporarySnapshot, "removed"),
        (LeftoverKind::TemporarySnapshot, "removed"),
        (LeftoverKind::TemporarySnapshot, "removed"),
        (LeftoverKind::Label, "removed"),
    ];
    assert_eq!(fates(&purged), expected);
    assert_eq!(bench.fake.lease_ids(), ["another client's", "nri-unpack-2"]);
    assert!(bench.has(working) && bench.has(&top));
    assert!(!keys.iter().any(|key| bench.has(key)));
    // No child was left to garbage collection.
    bench.fake.forget(EROFS, working);
    bench.fake.remove(EROFS, &top).await.unwrap();
}

/// An `ensure` begins while the store is read.
#[tokio::test(start_paused = true)]
async fn a_layer_that_is_prepared_meanwhile_stays() {
    const SECOND: Duration = Duration::from_secs(1);
    for call in [
        "list leases",
        "list",
        "list images",
        "read blob",
        "list snapshots of",
    ] {
        let bench = ahead(EROFS).await;
        bench.engine.record_use(super::NAME, EROFS).await.unwrap();
        let key = "extract-nri-unpack-2.0 sha256:d";
        bench.fake.slow(call, SECOND);
        let begin = async {
            tokio::time::sleep(SECOND / 2).await;
            bench.fake.lease("nri-unpack-2", running_elsewhere(), &[]);
            bench.fake.activate(EROFS, key, bench.top());
        };
        let (purged, ()) = futures::join!(bench.purge(), begin);
        assert!(bench.has(key), "{call}: {purged:#?}");
    }
}

/// Two images with the same layers: the chain of the one is that of the other.
#[tokio::test]
async fn layers_of_another_image_stay() {
    let bench = ahead(EROFS).await;
    let twin: Image = bench.fake.image("r.example/twin:1", 3);
    let [_, config] = bench.fake.documents_of(&twin);
    let label = Labels::from([(anchor(EROFS, ""), bench.top().to_owned())]);
    bench.fake.label_blob(&config, label).await.unwrap();
    let purged = bench.purge().await;
    let expected = [
        (LeftoverKind::Copy, "stays"),
        (LeftoverKind::Label, "removed"),
    ];
    assert_eq!(fates(&purged), expected);
    assert!(bench.has(bench.top()));
    assert_eq!(bench.labels().await, Labels::new());
    bench.assert_clean().await;
}

/// A container is created on a copy between the look and the garbage collection.
#[tokio::test]
async fn a_copy_that_a_container_begins_to_use_gets_its_anchor_back() {
    let bench = ahead(EROFS).await;
    let (images, leases) = (
        Images::new(bench.fake.clone()),
        Arc::new(Leases::new(Role::Daemon)),
    );
    let containerd = bench.fake.as_ref();
    let survey = Survey {
        containerd,
        images: &images,
        leases: &leases,
    };
    let found = survey.run().await.unwrap();
    bench.fake.activate(EROFS, "container", bench.top());
    let removal = Removal {
        containerd,
        leases: &leases,
    };
    let purged = removal.run(found).await;
    let expected = [
        (LeftoverKind::Copy, "stays"),
        (LeftoverKind::Label, "removed"),
    ];
    assert_eq!(fates(&purged), expected);
    let anchor = (anchor(EROFS, ""), bench.top().to_owned());
    assert_eq!(bench.labels().await, Labels::from([anchor]));
}

/// What it uses cannot be seen.
#[tokio::test]
async fn nothing_of_a_snapshotter_that_does_not_answer_is_removed() {
    let bench = ahead(EROFS).await;
    let before = bench.labels().await;
    bench
        .fake
        .fail("list snapshots of", 0, ErrorKind::Unreachable);
    let purged = bench.purge().await;
    let expected = [
        (LeftoverKind::Copy, "failed"),
        (LeftoverKind::Label, "failed"),
    ];
    assert_eq!(fates(&purged), expected);
    assert!(purged[0].fate.reason().contains("does not answer"));
    assert_eq!(bench.labels().await, before);
}

/// Returns a bench with something of each kind, and a private chain that a container uses. Returns the name of that as well.
async fn cluttered(snapshotter: &'static str) -> (Bench, String) {
    let bench = match snapshotter {
        NYDUS => mixed().await,
        _ => ahead(snapshotter).await,
    };
    let used = format!("{}-used", private_name(bench.top()));
    bench.anchor_private("/nri-unpack", &used).await;
    bench.fake.activate(snapshotter, "container", &used);
    let label = Labels::from([("nri-unpack/rebuilt-from".to_owned(), "overlayfs".to_owned())]);
    let labelled = bench.fake.label_snapshot(snapshotter, &used, label).await;
    labelled.unwrap();
    let key = "extract-nri-unpack-1.0 sha256:c";
    bench.fake.activate(snapshotter, key, &used);
    let held = [Resource::snapshot(snapshotter, key)];
    bench.fake.lease("nri-unpack-1", Labels::new(), &held);
    bench.fake.lease("another client's", Labels::new(), &[]);
    bench.fake.calls();
    (bench, used)
}

/// After any fault the next purge removes the rest, and nothing in use was removed.
#[tokio::test]
async fn a_fault_in_any_call_leaves_work_for_the_next_purge() {
    for snapshotter in [EROFS, NYDUS] {
        let (bench, _) = cluttered(snapshotter).await;
        bench.purge().await;
        let counts = bench.fake.count_calls().into_iter();
        let calls: Vec<_> = counts
            .flat_map(|(call, n)| (0..n).map(move |i| (call, i)))
            .collect();
        assert!(calls.len() > 20, "{calls:?}");
        for ((call, after), is_lost) in calls.iter().flat_map(|c| [(c, false), (c, true)]) {
            let (bench, used) = cluttered(snapshotter).await;
            match is_lost {
                true => bench.fake.lose(call, *after),
                false => bench.fake.fail(call, *after, ErrorKind::Other),
            }
            let context = format!("{snapshotter} {call} {after} {is_lost}");
            let first = bench.engine.purge().await;
            assert!(bench.fake.pending_faults().is_empty(), "{context}");
            let again = bench.purge().await;
            let is_done = |it: &Leftover| matches!(it.fate, Fate::Removed | Fate::Stays(_));
            assert!(
                again.iter().all(is_done),
                "{context}: {first:#?} {again:#?}"
            );
            let names = bench.fake.all(snapshotter).into_iter().map(|it| it.name);
            assert_eq!(names.collect::<Vec<_>>(), ["container", &used], "{context}");
            assert_eq!(bench.labels().await, Labels::new(), "{context}");
            assert_eq!(bench.fake.lease_ids(), ["another client's"], "{context}");
        }
    }
}

/// What was removed is reported.
#[tokio::test]
async fn an_error_about_leases_loses_no_report() {
    let (bench, _) = cluttered(EROFS).await;
    bench.engine.left_behind().await.unwrap();
    let before_sweep = bench.fake.count_calls()["list leases"];
    let whole = bench.purge().await;
    let last = bench.fake.count_calls()["list leases"] - 1;
    assert!(before_sweep < last);
    for after in [before_sweep, last] {
        let (bench, _) = cluttered(EROFS).await;
        bench
            .fake
            .fail("list leases", after, ErrorKind::Unreachable);
        let purged = bench.purge().await;
        assert_eq!(purged.len(), whole.len(), "{purged:#?}");
        for leftover in purged {
            let is_failed = leftover.fate.word() == "failed";
            let is_lease = leftover.kind == LeftoverKind::Lease;
            assert_eq!(is_failed, is_lease, "{leftover:#?}");
        }
        let again = bench.purge().await;
        let is_lease = |it: &&Leftover| it.kind == LeftoverKind::Lease;
        let mut leases = again.iter().filter(is_lease);
        assert!(leases.all(|it| it.fate == Fate::Removed), "{again:#?}");
    }
}
