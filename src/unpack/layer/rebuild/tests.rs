//! Tests of the engine with images whose blobs are gone: the result, and what a fault in each step leaves behind.
//!
//! Overlayfs' attributes need root, as the plugin itself does.

mod files;
mod memory;

use std::fs;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps, XattrFlags, lsetxattr, utimensat};
use tempfile::TempDir;

use crate::containerd::fake::Fake;
use crate::containerd::{Containerd, ErrorKind, SnapshotKind};
use crate::image::{Manifest, Manifests, Platform};

use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::engine::Engine;
use crate::unpack::layer::fallback::{ContentFallback, FallbackSource};
use crate::unpack::layer::pull::Registries;
use crate::unpack::schedule::priority::Urgency;
use crate::unpack::schedule::progress::Outcome;
use crate::unpack::snapshotter::lease_owner::Role;
use crate::unpack::target::request::{Request, Want};

const EROFS: &str = "erofs";
const OVERLAYFS: &str = "overlayfs";
const NAME: &str = "r.example/app:1";

fn attribute(path: &Path, name: &str, value: &[u8]) {
    lsetxattr(path, name, value, XattrFlags::empty()).unwrap();
}

fn time(path: &Path, seconds: i64, nanoseconds: i64) {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds,
    };
    let times = Timestamps {
        last_access: time,
        last_modification: time,
    };
    utimensat(CWD, path, &times, AtFlags::SYMLINK_NOFOLLOW).unwrap();
}

/// An image of three layers that is unpacked in overlayfs and whose blobs are gone. The first and the third layer
/// have the same content.
struct Bench {
    fake: Arc<Fake>,
    engine: Arc<Engine>,
    manifest: Arc<Manifest>,
    dirs: Vec<TempDir>,
}

impl Bench {
    async fn new() -> Self {
        let fake = Arc::new(Fake::default());
        let image = fake.image(NAME, 3);
        let manifests = Manifests::new(Platform::of_this_node());
        let manifest = manifests.read(fake.as_ref(), &image).await.unwrap();
        let fallback = ContentFallback::new(vec![FallbackSource::Rebuild], Registries::default());
        let bench = Self {
            engine: Engine::new(
                fake.clone(),
                Role::Daemon,
                crate::unpack::tests::PARALLEL,
                crate::unpack::tests::default_policy(),
                fallback,
            ),
            fake,
            manifest,
            dirs: (0..3).map(|_| tempfile::tempdir().unwrap()).collect(),
        };
        for (i, content) in ["a", "b", "a"].into_iter().enumerate() {
            let dir = bench.dirs[i].path();
            fs::write(dir.join("f"), content).unwrap();
            time(&dir.join("f"), 1, 0);
            time(dir, 1, 0);
            bench.unpacked(i, 2);
        }
        bench
    }

    /// Commits the layer in overlayfs and discards its blob.
    fn unpacked(&self, i: usize, inodes: u64) {
        let layers = &self.manifest.layers;
        let parent = i
            .checked_sub(1)
            .map(|below| layers[below].chain_id.as_str());
        let fake = &self.fake;
        fake.commit_unlabelled(OVERLAYFS, &layers[i].chain_id, parent);
        let dirs: Vec<_> = self.dirs[..=i].iter().rev().map(TempDir::path).collect();
        fake.show(OVERLAYFS, &layers[i].chain_id, &dirs, inodes);
        fake.discard(&layers[i].blob.digest);
    }

    async fn ensure(&self) -> Outcome {
        let request = Request {
            want: Want::Image(NAME.to_owned()),
            snapshotter: EROFS.to_owned(),
            urgency: Urgency::Asked,
        };
        self.engine.ensure(request).outcome().await
    }

    /// Asserts that no lease and no unfinished blob remains, and only committed layers in both snapshotters.
    fn assert_nothing_left(&self) {
        assert!(self.fake.lease_ids().is_empty());
        assert_eq!(self.fake.ingests(), [""; 0]);
        for snapshotter in [EROFS, OVERLAYFS] {
            for snapshot in self.fake.all(snapshotter) {
                assert_eq!(snapshot.kind, SnapshotKind::Committed, "{}", snapshot.name);
            }
        }
    }
}

#[tokio::test]
async fn layers_of_overlayfs_are_rebuilt_in_another_snapshotter() {
    let bench = Bench::new().await;
    let done = bench.ensure().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Rebuilt, 3));
    bench.assert_nothing_left();
    let snapshots = bench.fake.all(EROFS);
    assert_eq!(snapshots.len(), 3);
    for snapshot in snapshots {
        assert_eq!(snapshot.labels["nri-unpack/rebuilt-from"], OVERLAYFS);
        assert!(
            snapshot
                .labels
                .contains_key("containerd.io/snapshot/cri.image-ref")
        );
    }
    assert_eq!(bench.ensure().await.unwrap().action, Action::None);
}

#[tokio::test]
async fn only_layers_without_a_blob_are_rebuilt() {
    for rebases in [false, true] {
        let bench = Bench::new().await;
        if rebases {
            bench.fake.can_rebase(EROFS, "2.2.0");
        }
        let manifest = &bench.manifest;
        // The second layer's blob exists again.
        let media_type = &manifest.layers[1].blob.media_type;
        bench.fake.document(media_type, b"layer 1");
        assert_eq!(bench.ensure().await.unwrap().action, Action::Rebuilt);
        let mut below = None;
        for (i, rebuilt) in [true, false, true].into_iter().enumerate() {
            let chain_id = &manifest.layers[i].chain_id;
            let layer = bench.fake.stat(EROFS, chain_id).await.unwrap();
            let labels = layer.labels;
            assert_eq!(labels.contains_key("nri-unpack/rebuilt-from"), rebuilt);
            assert_eq!(layer.parent, below);
            below = Some(chain_id.clone());
        }
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_fault_in_any_step_leaves_nothing_and_the_next_ensure_finishes() {
    let calls = [
        "prepare snapshot",
        "apply layer",
        "commit snapshot",
        "look up blob",
        "add to lease",
        "view snapshot",
        "remove snapshot",
        "ask usage of snapshot",
        "write blob",
        "write piece",
        "delete lease",
    ];
    for call in calls {
        for after in 0..4 {
            for kind in [ErrorKind::Other, ErrorKind::TimedOut] {
                let bench = Bench::new().await;
                bench.fake.fail(call, after, kind);
                let first = bench.ensure().await;
                bench.fake.heal();
                if ["delete lease", "remove snapshot"].contains(&call) {
                    bench.engine.sweep().await.unwrap();
                }
                bench.assert_nothing_left();
                let second = bench.ensure().await;
                let context = format!("{call} {after} {kind:?}: {first:?}, {second:?}");
                assert!(second.is_ok(), "{context}");
                assert_eq!(bench.fake.all(EROFS).len(), 3, "{context}");
                bench.assert_nothing_left();
            }
        }
    }
}

/// A view under a lease remains until it is removed by name.
#[tokio::test]
async fn a_view_that_cannot_be_removed_keeps_its_lease() {
    let bench = Bench::new().await;
    // The faults begin with the second removal: the first is that of the attempt without a blob.
    for _ in 0..20 {
        bench.fake.fail("remove snapshot", 1, ErrorKind::TimedOut);
    }
    bench.ensure().await.unwrap();
    let is_view = |snapshot: &crate::containerd::Snapshot| snapshot.kind == SnapshotKind::View;
    assert!(bench.fake.all(OVERLAYFS).iter().any(is_view));
    assert_eq!(bench.fake.lease_ids().len(), 1);
    bench.fake.heal();
    bench.engine.sweep().await.unwrap();
    bench.assert_nothing_left();
}

#[tokio::test]
async fn a_view_that_a_crash_left_does_not_stop_a_rebuild() {
    let bench = Bench::new().await;
    let chain_id = &bench.manifest.layers[0].chain_id;
    let key = format!("nri-unpack-view {chain_id}");
    bench.fake.lease("crashed", Default::default(), &[]);
    bench
        .fake
        .view("crashed", OVERLAYFS, &key, chain_id)
        .await
        .unwrap();
    bench.fake.delete_lease("crashed", false).await.unwrap();
    bench.ensure().await.unwrap();
    bench.assert_nothing_left();
}

#[tokio::test]
async fn a_stop_during_the_write_leaves_nothing() {
    let bench = Bench::new().await;
    // The file is larger than the queue, so the stop comes during the write.
    fs::write(bench.dirs[0].path().join("f"), vec![1; 64 << 20]).unwrap();
    let request = Request {
        want: Want::Image(NAME.to_owned()),
        snapshotter: EROFS.to_owned(),
        urgency: Urgency::Asked,
    };
    let mut ticket = bench.engine.ensure(request);
    while bench.fake.ingests().is_empty() {
        tokio::task::yield_now().await;
    }
    bench.engine.close().await;
    let error = ticket.outcome().await.unwrap_err();
    assert!(matches!(*error, Error::Stopped(_)), "{error}");
    bench.assert_nothing_left();
}

#[tokio::test]
async fn the_error_says_why_a_layer_cannot_be_rebuilt() {
    type Break = fn(&Bench);
    let cases: [(Break, &str); 4] = [
        (
            |bench| {
                bench
                    .fake
                    .forget(OVERLAYFS, &bench.manifest.layers[1].chain_id)
            },
            "rebuild: overlayfs does not have the layer either",
        ),
        (
            |bench| bench.unpacked_elsewhere(),
            "/nowhere/fs is not there: in a container",
        ),
        (|bench| bench.counted(99), "the snapshotter counted 99"),
        (
            |bench| {
                attribute(
                    &bench.dirs[1].path().join("f"),
                    "trusted.overlay.metacopy",
                    b"",
                )
            },
            "the attribute trusted.overlay.metacopy points to data outside of the layer",
        ),
    ];
    for (spoil, words) in cases {
        let bench = Bench::new().await;
        spoil(&bench);
        let error = bench.ensure().await.unwrap_err();
        let message = error.to_string();
        assert!(
            matches!(*error, Error::Unavailable { position: 2, .. }),
            "{message}"
        );
        let digest = &bench.manifest.layers[1].blob.digest;
        for word in [
            "layer 2 of 3",
            digest,
            words,
            "`ctr -n moby content fetch --hosts-dir /srv/hosts ",
        ] {
            assert!(message.contains(word), "{message}");
        }
        bench.assert_nothing_left();
    }
}

impl Bench {
    fn unpacked_elsewhere(&self) {
        let nowhere = [Path::new("/nowhere/fs"), self.dirs[0].path()];
        let chain_id = &self.manifest.layers[1].chain_id;
        self.fake.show(OVERLAYFS, chain_id, &nowhere, 2);
    }

    fn counted(&self, inodes: u64) {
        let dirs = [self.dirs[1].path(), self.dirs[0].path()];
        let chain_id = &self.manifest.layers[1].chain_id;
        self.fake.show(OVERLAYFS, chain_id, &dirs, inodes);
    }
}
