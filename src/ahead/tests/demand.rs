//! Tests of images that containerd failed to unpack.

use super::*;

#[tokio::test(start_paused = true)]
async fn an_image_that_containerd_failed_to_unpack_is_made_ready() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = image_with_own_layer(&bench.fake, NAME);
    for (snapshotter, key, state) in [
        ("erofs", "extract-nri-unpack-1-2-3.0", State::Missing),
        ("erofs", "a-container", State::Missing),
        ("native", "extract-12-ab", State::Missing),
        ("erofs", "extract-12-ab", State::Ready),
    ] {
        bench.emit_unpack_failed(&image, snapshotter, key);
        settle().await;
        assert_eq!(bench.state(&image, "erofs").await, state, "{key}");
        assert_eq!(bench.state(&image, "native").await, State::Missing);
    }
}

#[tokio::test(start_paused = true)]
async fn a_repeated_failure_of_containerd_adds_no_work() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = image_with_own_layer(&bench.fake, NAME);
    bench.fake.slow("prepare snapshot", Duration::from_secs(20));
    for _ in 0..100 {
        bench.emit_unpack_failed(&image, "erofs", "extract-12-ab");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
    assert_eq!(bench.prepared(&[(NAME, &image)]).len(), 1);
}

/// Many images may have the layer. Excluded ones do not count towards the limit of attempts.
#[tokio::test(start_paused = true)]
async fn excluded_images_do_not_count_as_attempts_for_a_layer() {
    let config = "[snapshotters.erofs]\nexclude = [\"*/excluded:*\"]\n";
    let bench = Bench::on(Fake::default(), config).await;
    let image = image_with_own_layer(&bench.fake, NAME);
    bench.fake.came(&image, 1);
    let media_type = "application/vnd.oci.image.layer.v1.tar";
    let layer = bench.fake.document(media_type, only_layer(NAME).as_bytes());
    for n in 0..20 {
        let name = format!("r.example/excluded:{n}");
        let excluded = bench.fake.image_from(&name, std::slice::from_ref(&layer));
        bench.fake.came(&excluded, 2 + n);
    }
    bench.emit_unpack_failed(&image, "erofs", "extract-12-ab");
    settle().await;
    assert_eq!(bench.state(&image, "erofs").await, State::Ready);
}

/// The manifests of this store keep no layer blobs, as with `discard_unpacked_layers`.
#[tokio::test(start_paused = true)]
async fn a_new_image_that_containerd_cannot_unpack_is_made_ready_for_a_waiting_pod() {
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
        let image = image_with_own_layer(&bench.fake, NAME);
        bench.emit_created(NAME);
        settle().await;
        assert_eq!(
            bench.state(&image, "erofs").await,
            state,
            "{pod:?} {config}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn an_image_is_left_to_containerd_until_a_blob_is_gone() {
    let bench = Bench::on(Fake::default(), "").await;
    let image = image_with_own_layer(&bench.fake, NAME);
    let layer = sha256(only_layer(NAME).as_bytes());
    let gc_label = ("containerd.io/gc.ref.content.l.0".to_owned(), layer.clone());
    let gc_labels = Labels::from([gc_label]);
    let labelled = bench.fake.label_blob(&image.target.digest, gc_labels).await;
    labelled.unwrap();
    for _ in 0..2 {
        bench.emit_unpack_failed(&image, "erofs", "extract-12-ab");
        settle().await;
    }
    assert_eq!(bench.prepared(&[(NAME, &image)]), [""; 0]);
    assert!(!bench.node.engine.is_stuck("erofs", &image).await.unwrap());
    bench.fake.discard(&layer);
    assert!(bench.node.engine.is_stuck("erofs", &image).await.unwrap());
    bench.emit_unpack_failed(&image, "erofs", "extract-12-ab");
    settle().await;
    assert_eq!(bench.prepared(&[(NAME, &image)]), [NAME]);
}
