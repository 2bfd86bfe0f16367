//! Faults of calls, blobs and layers: what is left after them, and what the error says.

use super::*;

#[tokio::test]
async fn after_a_fault_in_any_call_nothing_is_left_and_the_next_ensure_succeeds() {
    let calls = [
        "list images",
        "read blob",
        "stat snapshot",
        "look up blob",
        "create lease",
        "list extraction snapshots of",
        "add to lease",
        "prepare snapshot",
        "apply layer",
        "commit snapshot",
        "label blob",
    ];
    for call in calls {
        for after in 0..2 {
            for kind in [
                ErrorKind::Other,
                ErrorKind::Unreachable,
                ErrorKind::TimedOut,
            ] {
                let bench = Bench::new(3).await;
                bench.fake.fail(call, after, kind);
                let first = bench.ensure().await;
                bench.assert_nothing_left();
                bench.fake.heal();
                let second = bench.ensure().await;
                assert!(
                    second.is_ok(),
                    "{call} {after} {kind:?}: {first:?}, {second:?}"
                );
                assert_eq!(bench.state().await, State::Ready);
                bench.assert_nothing_left();
            }
        }
    }
}

#[tokio::test]
async fn a_sweep_removes_what_a_failed_cleanup_left() {
    for (call, kind) in [
        ("remove snapshot", ErrorKind::Unreachable),
        ("delete lease", ErrorKind::TimedOut),
    ] {
        let bench = Bench::new(3).await;
        bench.fake.fail("apply layer", 1, ErrorKind::Unreachable);
        bench.fake.fail(call, 0, kind);
        bench.ensure().await.unwrap_err();
        // The sweep finds an extraction snapshot by its lease; without a lease, garbage collection removes it.
        bench.engine.sweep().await.unwrap();
        bench.fake.collect_garbage();
        bench.assert_nothing_left();
        assert_eq!(bench.ensure().await.unwrap().action, Action::Unpacked);
        bench.assert_nothing_left();
    }
}

#[tokio::test]
async fn a_layer_with_a_wrong_diff_id_is_not_committed() {
    let bench = Bench::new(3).await;
    let manifest = &bench.manifest;
    bench
        .fake
        .applies_as(&manifest.layers[1].blob.digest, &sha256(b"something else"));

    let error = bench.ensure().await.unwrap_err();
    let Error::WrongDiffId {
        position,
        layers,
        expected,
        ..
    } = &*error
    else {
        panic!("{error}");
    };
    assert_eq!(
        (*position, *layers, expected),
        (2, 3, &manifest.layers[1].diff_id)
    );
    bench.assert_nothing_left();
    assert_eq!(bench.fake.all(EROFS).len(), 1);
}

#[tokio::test]
async fn the_error_names_the_missing_blob() {
    let bench = Bench::new(2).await;
    let manifest = &bench.manifest;
    let digest = &manifest.layers[1].blob.digest;
    bench.fake.discard(digest);
    let message = bench.ensure().await.unwrap_err().to_string();
    assert!(
        message.contains("layer 2 of 2") && message.contains(digest),
        "{message}"
    );
    bench.assert_nothing_left();
}

/// Returns the resources of all leases.
async fn held(fake: &Fake) -> Vec<Resource> {
    let mut held = vec![];
    for lease in fake.lease_ids() {
        held.extend(fake.lease_resources(&lease).await.unwrap());
    }
    held
}

#[tokio::test]
async fn a_lease_holds_the_blobs_that_the_manifest_does_not_keep() {
    for kept in [false, true] {
        let bench = Bench::new(20).await;
        let last = &bench.manifest.layers.last().unwrap().blob.digest;
        if kept {
            let label = ("containerd.io/gc.ref.content.l.19".to_owned(), last.clone());
            let labelled = bench
                .fake
                .label_blob(&bench.manifest.digest, [label].into());
            labelled.await.unwrap();
        }
        let mut ticket = bench.engine.ensure(request(Want::Image(NAME.to_owned())));
        while ticket.progress().ready_layers < 2 {
            assert!(ticket.changed().await);
        }
        let held = held(&bench.fake).await;
        assert_eq!(held.contains(&Resource::blob(last)), !kept, "{held:?}");
        ticket.outcome().await.unwrap();
        bench.assert_nothing_left();
    }
}
