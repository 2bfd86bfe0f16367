//! Callers that share a flight, images that share layers, and changes of a chain during a flight.

use super::*;
use crate::image::{Manifests, Platform};

#[tokio::test]
async fn requests_for_the_same_image_share_one_flight() {
    let bench = Bench::new(4).await;
    let tickets: Vec<_> = (0..20)
        .map(|_| bench.engine.ensure(request(Want::Image(NAME.to_owned()))))
        .collect();
    for mut ticket in tickets {
        assert_eq!(ticket.outcome().await.unwrap().action, Action::Unpacked);
        assert_eq!(ticket.progress().ready_layers, 4);
    }
    let calls = bench.fake.calls();
    let applied = calls.iter().filter(|call| *call == "apply layer").count();
    assert_eq!(applied, 4);
}

/// Fifty images share their three lowest layers, and none is unpacked.
#[tokio::test(start_paused = true)]
async fn shared_base_layers_are_unpacked_once() {
    for rebases in [false, true] {
        let bench = Bench::new(3).await;
        if rebases {
            bench.fake.can_rebase(EROFS, "2.2.0");
        }
        let name = |n: usize| format!("r.example/child:{n}");
        for n in 0..50 {
            // The first three layers are the same in all images.
            bench.fake.image(&name(n), 4 + n % 3);
        }
        bench.fake.calls();
        let ask = |n| bench.engine.ensure(request(Want::Image(name(n))));
        for mut ticket in (0..50).map(ask).collect::<Vec<_>>() {
            ticket.outcome().await.unwrap();
        }
        let calls = bench.fake.calls();
        let applied = calls.iter().filter(|call| *call == "apply layer").count();
        assert_eq!(applied, 6, "rebases: {rebases}");
        bench.assert_nothing_left();
    }
}

/// A lease protects a layer from garbage collection, but not from a client that replaces the chain.
#[tokio::test(start_paused = true)]
async fn a_layer_that_is_removed_during_the_flight_is_unpacked_again() {
    let bench = Bench::new(3).await;
    bench.commit_without_labels(1);
    bench.fake.slow("prepare snapshot", Duration::from_secs(1));
    let mut ticket = bench.engine.ensure(request(Want::Image(NAME.to_owned())));
    tokio::time::sleep(Duration::from_millis(500)).await;
    // The layer is relabelled, and the layer above it is about to be prepared.
    bench.fake.remove(EROFS, &bench.chain_ids[0]).await.unwrap();
    let done = ticket.outcome().await.unwrap();
    assert_eq!((done.action, done.layers_done), (Action::Unpacked, 3));
    assert_eq!(bench.state().await, State::Ready);
    bench.assert_nothing_left();
}

/// The layer does not exist when its child is prepared, and exists again when the flight reads the status.
#[tokio::test(start_paused = true)]
async fn a_layer_that_is_replaced_during_the_flight_is_used_as_parent() {
    let bench = Bench::new(2).await;
    bench.commit_without_labels(1);
    bench.fake.slow("prepare snapshot", Duration::from_secs(1));
    bench.fake.slow("remove snapshot", Duration::from_secs(1));
    let mut ticket = bench.engine.ensure(request(Want::Image(NAME.to_owned())));
    tokio::time::sleep(Duration::from_millis(500)).await;
    bench.fake.forget(EROFS, &bench.chain_ids[0]);
    // The prepare has failed, and its key is being removed.
    tokio::time::sleep(Duration::from_secs(1)).await;
    bench.commit_without_labels(1);
    ticket.outcome().await.unwrap();
    assert_eq!(bench.state().await, State::Ready);
    bench.assert_nothing_left();
}

/// If the pull fails, only this lease keeps the manifest and the config.
#[tokio::test(start_paused = true)]
async fn the_lease_holds_the_documents_of_an_image_that_is_being_pulled() {
    let bench = Bench::new(1).await;
    let image = bench.fake.image("r.example/arrives:1", 3);
    let manifests = Manifests::new(Platform::of_this_node());
    let manifest = manifests.read(bench.fake.as_ref(), &image).await.unwrap();
    bench.fake.slow("prepare snapshot", Duration::from_secs(60));
    let mut ticket = bench.engine.ensure(request(Want::Arriving(image)));
    tokio::time::sleep(Duration::from_secs(1)).await;
    let [lease] = &bench.fake.lease_ids()[..] else {
        panic!("expected one lease");
    };
    let held = bench.fake.lease_resources(lease).await.unwrap();
    for digest in [&manifest.digest, &manifest.config] {
        assert!(held.contains(&Resource::blob(digest)), "{digest}: {held:?}");
    }
    ticket.outcome().await.unwrap();
    bench.assert_nothing_left();
}

#[tokio::test(start_paused = true)]
async fn a_flight_continues_without_its_caller() {
    let bench = Bench::new(3).await;
    drop(bench.engine.ensure(request(Want::Image(NAME.to_owned()))));
    // No other caller asks.
    let ready = async {
        while bench.state().await != State::Ready {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ready = tokio::time::timeout(Duration::from_secs(60), ready).await;
    assert!(ready.is_ok(), "the flight ended with its caller");
}

#[tokio::test]
async fn close_stops_a_flight_and_cleans_up() {
    let bench = Bench::new(50).await;
    let mut ticket = bench.engine.ensure(request(Want::Image(NAME.to_owned())));
    while ticket.progress().ready_layers < 5 {
        assert!(ticket.changed().await);
    }
    bench.engine.close().await;
    let error = ticket.outcome().await.unwrap_err();
    assert!(matches!(*error, Error::Stopped(_)), "{error}");
    bench.assert_nothing_left();
    assert_eq!(bench.state().await, State::Partial);
}

/// containerd pulls no blob of a layer that its own snapshotter has: the layer is made as for any other image.
#[tokio::test(start_paused = true)]
async fn an_image_that_arrives_is_not_stopped_with_the_wait_for_its_blobs() {
    let bench = Bench::new(3).await;
    let lowest = &bench.manifest.layers[0].blob.digest;
    bench.fake.discard(lowest);
    let in_pull = Want::Arriving(bench.image.clone());
    let mut in_pull = bench.request(in_pull, Urgency::Arrived);
    tokio::time::sleep(Duration::from_millis(200)).await;
    let arrived = bench.ask(NAME).outcome().await.unwrap_err();
    assert!(arrived.to_string().contains(lowest), "{arrived}");
    in_pull.outcome().await.unwrap_err();
    bench.assert_nothing_left();
    // Without a record the wait is all that there is.
    let in_pull = Want::Arriving(bench.image.clone());
    let error = bench.request(in_pull, Urgency::Arrived).outcome().await;
    assert!(matches!(*error.unwrap_err(), Error::Stopped(_)));
}

/// Other labels may be required since, and an image that was removed has no anchor when it is pulled again.
#[tokio::test(start_paused = true)]
async fn what_was_found_before_the_cache_was_cleared_is_not_recorded() {
    type Clear = fn(&Engine);
    let clears: [(Clear, bool); 3] = [
        (|_| {}, true),
        (Engine::forget, false),
        (|engine| engine.images_removed(None), false),
    ];
    for (n, (clear, is_known)) in clears.into_iter().enumerate() {
        let bench = Bench::new(2).await;
        bench.fake.slow("apply layer", Duration::from_secs(10));
        let mut ticket = bench.ask(NAME);
        tokio::time::sleep(Duration::from_secs(5)).await;
        clear(&bench.engine);
        ticket.outcome().await.unwrap();
        bench.fake.activate(EROFS, "container", bench.top());
        let parent = bench.engine.parent_chain(EROFS, "container", None, false);
        let is_ready = parent.await.unwrap() == ParentChain::Ready;
        assert_eq!(is_ready, is_known, "{n}");
    }
}

/// The flight has the rules of the earlier policy.
#[tokio::test(start_paused = true)]
async fn nobody_joins_a_flight_from_before_a_change_of_the_policy() {
    let bench = Bench::new(2).await;
    bench.fake.slow("apply layer", Duration::from_secs(10));
    let mut before = bench.ask(NAME);
    tokio::time::sleep(Duration::from_secs(5)).await;
    bench.engine.forget();
    let mut after = bench.ask(NAME);
    let mut again = bench.ask(NAME);
    assert_eq!(before.outcome().await.unwrap().action, Action::Unpacked);
    for ticket in [&mut after, &mut again] {
        assert_eq!(ticket.outcome().await.unwrap().action, Action::None);
    }
}
