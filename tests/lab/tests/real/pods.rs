//! Pulls and pods on both versions: which snapshots they leave, and with which labels.

use k8s_cri::v1::ContainerState;
use lab::{Cri, Image, Kind, Lab, Options, Pod, Registry, Shared, Version, images};
use tonic::Code;

use crate::teardown::Traces;

/// An image that exists for overlayfs only, used with another handler, leaves snapshots without labels there.
/// This is the reason for the plugin. The test also uses all other operations of the lab.
async fn a_fallback_unpack_leaves_no_labels(version: Version, handler: &str) {
    let lab = Lab::start(version).await.unwrap();
    let registry = Registry::start().await.unwrap();
    lab.use_registry(&registry).unwrap();
    let app = images::app("registry.test/lab/app:1").unwrap();
    registry.push(&app).await.unwrap();
    let mut cri = lab.cri().await.unwrap();
    let store = lab.store().await.unwrap();

    let id = cri.pull_image(app.name()).await.unwrap();
    assert_eq!(id, app.config.digest);
    let (first, _) = run_app(&mut cri, "", &app).await;
    assert_eq!(
        store.chain("overlayfs", &app).await.unwrap().len(),
        app.layers.len()
    );
    assert_eq!(store.chain(handler, &app).await.unwrap(), []);

    let (pod, container) = run_app(&mut cri, handler, &app).await;
    assert_eq!(cri.pod_status(&pod).await.unwrap().runtime_handler, handler);
    let chain = store.chain(handler, &app).await.unwrap();
    let keys: Vec<&String> = chain.iter().map(|snapshot| &snapshot.key).collect();
    assert_eq!(keys, app.chain_ids().iter().collect::<Vec<_>>());
    for (n, snapshot) in chain.iter().enumerate() {
        assert_eq!(snapshot.parent, if n == 0 { "" } else { keys[n - 1] });
        assert!(snapshot.labels.is_empty(), "{:?}", snapshot.labels);
    }
    let snapshots = store.snapshots(handler).await.unwrap();
    let own = snapshots.iter().find(|s| s.key == container).unwrap();
    assert_eq!((own.kind, own.parent.as_str()), (Kind::Active, app.top()));

    lab.kill();
    assert!(
        lab.cri().await.is_err(),
        "a killed containerd does not answer"
    );
    lab.restart().await.unwrap();
    let mut cri = lab.cri().await.unwrap();
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");
    cri.remove_pod(&first).await.unwrap();

    let traces = Traces::of(&lab, &pod);
    drop(lab);
    traces.assert_gone();
}

/// Runs the app in a new pod, and reads its files.
async fn run_app(cri: &mut Cri, handler: &str, app: &Image) -> (Pod, String) {
    let pod = cri.run_pod(handler, &[]).await.unwrap();
    let container = cri
        .create_container(&pod, app.name(), &[], &[])
        .await
        .unwrap();
    cri.start_container(&container).await.unwrap();
    assert_eq!(cri.cat(&container, "/data/two").await.unwrap(), "two\n");
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");
    cri.cat(&container, "/data/one")
        .await
        .expect_err("a layer above hides it");
    (pod, container)
}

#[tokio::test]
async fn a_fallback_unpack_leaves_no_labels_on_1_7() {
    a_fallback_unpack_leaves_no_labels(Version::V1_7, "native").await;
}

#[tokio::test]
async fn a_fallback_unpack_leaves_no_labels_on_2_1() {
    a_fallback_unpack_leaves_no_labels(Version::V2_1, "erofs").await;
}

/// The operations of an operator: inspect, stop, remove, and restart containerd.
#[tokio::test]
async fn operator_commands_work() {
    for version in Version::ALL {
        let lab = Lab::start(version).await.unwrap();
        let app = images::app("registry.test/lab/app:1").unwrap();
        lab.import(&app).await.unwrap();
        let mut cri = lab.cri().await.unwrap();
        let store = lab.store().await.unwrap();
        let config = &cri.info().await.unwrap()["config"];
        assert!(config.contains("\"native\""), "{version:?}: {config}");
        let pause = store.image_labels("registry.test/pause:1").await.unwrap();
        assert_eq!(pause["io.cri-containerd.pinned"], "pinned", "{version:?}");

        let (pod, container) = run_app(&mut cri, "", &app).await;
        let failed = cri
            .exec_sync(&container, &["sh", "-c", "echo out; echo err >&2; exit 7"])
            .await
            .unwrap();
        assert_eq!(
            (failed.code, &*failed.stdout, &*failed.stderr),
            (7, "out\n", "err\n")
        );
        lab.stop().await.unwrap();
        lab.restart().await.unwrap();
        let mut cri = lab.cri().await.unwrap();
        let store = lab.store().await.unwrap();
        let state = cri.container_status(&container).await.unwrap().state();
        assert_eq!(state, ContainerState::ContainerRunning, "{version:?}");
        cri.stop_container(&container).await.unwrap();
        let state = cri.container_status(&container).await.unwrap().state();
        assert_eq!(state, ContainerState::ContainerExited, "{version:?}");
        cri.remove_container(&container).await.unwrap();
        cri.remove_pod(&pod).await.unwrap();

        store.delete_content(&app.layers[0].digest).await.unwrap();
        let gone = store
            .content_labels(&app.layers[0].digest)
            .await
            .unwrap_err();
        assert_eq!(gone.code(), Code::NotFound, "{version:?}");
        assert!(
            lab.ctr(&["images", "ls"])
                .await
                .unwrap()
                .contains(app.name())
        );
        cri.remove_image(app.name()).await.unwrap();
        assert!(
            !store.images().await.unwrap().contains_key(app.name()),
            "{version:?}"
        );
        store.collect_garbage().await.unwrap();
        assert_eq!(
            store.chain("overlayfs", &app).await.unwrap(),
            [],
            "{version:?}"
        );
        assert!(store.leases().await.unwrap().is_empty(), "{version:?}");
        let error = lab.ctr(&["no-such-command"]).await.unwrap_err().to_string();
        assert!(error.starts_with("ctr no-such-command: "), "{error}");
    }
}

/// containerd's own labelled pull for a handler sets the labels that the plugin's labels must equal.
#[tokio::test]
async fn a_pull_for_a_handler_labels_its_snapshots() {
    for version in Version::ALL {
        let options = Options {
            snapshot_annotations: true,
            pull_by_handler: true,
            ..Options::new(version)
        };
        let lab = Lab::start_with(version, options).await.unwrap();
        let registry = Registry::start().await.unwrap();
        lab.use_registry(&registry).unwrap();
        let app = images::app("registry.test/lab/app:1").unwrap();
        registry.push(&app).await.unwrap();
        lab.cri()
            .await
            .unwrap()
            .pull_image_for(app.name(), "native")
            .await
            .unwrap();

        let store = lab.store().await.unwrap();
        assert_eq!(
            store.chain("overlayfs", &app).await.unwrap(),
            [],
            "{version:?}"
        );
        let chain = store.chain("native", &app).await.unwrap();
        assert_eq!(chain.len(), app.layers.len(), "{version:?}");
        for (snapshot, layer) in chain.iter().zip(&app.layers) {
            let label =
                |name: &str| snapshot.labels[&format!("containerd.io/snapshot{name}")].as_str();
            assert_eq!(label(".ref"), layer.chain_id);
            assert_eq!(label("/cri.image-ref"), app.name());
            assert_eq!(label("/cri.manifest-digest"), app.manifest.digest);
            assert_eq!(label("/cri.layer-digest"), layer.digest);
        }
        let anchors = store.content_labels(&app.config.digest).await.unwrap();
        assert_eq!(
            anchors["containerd.io/gc.ref.snapshot.native"],
            app.top(),
            "{version:?}"
        );
    }
}

/// A pull that discards its layers leaves no blob to unpack for another handler.
#[tokio::test]
async fn discarded_layers_have_no_blobs() {
    for version in Version::ALL {
        let options = Options {
            discard_unpacked_layers: true,
            ..Options::new(version)
        };
        let lab = Lab::start_with(version, options).await.unwrap();
        let registry = Registry::start().await.unwrap();
        lab.use_registry(&registry).unwrap();
        let app = images::app("registry.test/lab/app:1").unwrap();
        registry.push(&app).await.unwrap();
        let mut cri = lab.cri().await.unwrap();
        cri.pull_image(app.name()).await.unwrap();

        // Garbage collection deletes the blobs; deleting a lease with `sync` waits for it.
        let store = lab.store().await.unwrap();
        store.collect_garbage().await.unwrap();
        for layer in &app.layers {
            let gone = store.content_labels(&layer.digest).await.unwrap_err();
            assert_eq!(gone.code(), Code::NotFound, "{version:?}");
        }
        let pod = cri.run_pod("native", &[]).await.unwrap();
        let error = cri
            .create_container(&pod, app.name(), &[], &[])
            .await
            .unwrap_err();
        assert!(
            error
                .message()
                .contains("failed to get reader from content store"),
            "{error}"
        );
    }
}

static SHARED: Shared = Shared::new(Version::V2_1);

/// All callers get the same lab while it runs; it ends when the last one drops it.
#[tokio::test]
async fn a_shared_lab_ends_when_its_last_user_drops_it() {
    let (one, other) = tokio::join!(SHARED.get(), SHARED.get());
    let (one, other) = (one.unwrap(), other.unwrap());
    assert_eq!(one.socket(), other.socket());
    let socket = one.socket().to_owned();
    drop(one);
    assert!(other.cri().await.unwrap().version().await.is_ok());
    drop(other);
    assert!(!socket.exists());
}
