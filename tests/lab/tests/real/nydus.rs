//! nydus-snapshotter in proxy mode with both versions of containerd: the facts on which the plugin's handling
//! of it is based.

use std::time::{Duration, Instant};

use lab::nydus::{GUEST_PULL, KataVolume};
use lab::{Lab, Options, Registry, Remote, Snapshot, Store, Version, images};
use tonic::Code;

/// The label with which nydus-snapshotter marks a layer that the guest pulls.
const PROXIED: &str = "containerd.io/snapshot/nydus-proxy-mode";

async fn start(version: Version) -> (Lab, Registry) {
    let options = Options {
        remotes: vec![Remote::Nydus],
        snapshot_annotations: true,
        pull_by_handler: true,
        ..Options::new(version)
    };
    let lab = Lab::start_with(version, options).await.unwrap();
    let registry = Registry::start().await.unwrap();
    lab.use_registry(&registry).unwrap();
    (lab, registry)
}

/// A labelled pull commits the whole chain without any layer blob, and the container gets a volume for its
/// guest. The container starts after the guest has the image; the guest always has the sandbox's image.
async fn a_labelled_pull_is_left_to_the_guest(version: Version) {
    let (lab, registry) = start(version).await;
    let app = images::app("registry.test/lab/app:1").unwrap();
    let pause = images::pause(&["registry.test/pause:1"]).unwrap();
    let mut cri = lab.cri().await.unwrap();
    let store = lab.store().await.unwrap();
    for image in [&app, &pause] {
        registry.push(image).await.unwrap();
        cri.pull_image_for(image.name(), "nydus").await.unwrap();
        let chain = store.chain("nydus", image).await.unwrap();
        assert_eq!(chain.len(), image.layers.len());
        assert!(chain.iter().all(is_proxied), "{chain:?}");
    }
    for layer in &app.layers {
        let blob = store.content_labels(&layer.digest).await.unwrap_err();
        assert_eq!(blob.code(), Code::NotFound);
    }

    let pod = cri.run_pod("nydus", &[]).await.unwrap();
    let container = cri
        .create_container(&pod, app.name(), &[], &[])
        .await
        .unwrap();
    let volume = guest_volume(&store, &container).await.unwrap();
    assert_eq!(volume.volume_type, GUEST_PULL);
    assert_eq!(
        volume.labels["containerd.io/snapshot/cri.layer-digest"],
        app.layers.last().unwrap().digest
    );
    assert!(guest_volume(&store, &pod.id).await.is_some());

    let error = cri.start_container(&container).await.unwrap_err();
    assert!(
        error.message().contains("executable file not found"),
        "{error}"
    );
    lab.give_to_guest(&app).unwrap();
    let container = cri
        .create_container(&pod, app.name(), &[], &[])
        .await
        .unwrap();
    cri.start_container(&container).await.unwrap();
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");
    cri.cat(&container, "/data/one")
        .await
        .expect_err("a layer above hides it");
}

/// An image that exists for overlayfs only is unpacked on the host, without labels: the confidential container
/// would run from files that its guest must not trust.
async fn a_fallback_unpack_leaves_a_host_chain(version: Version) {
    let (lab, registry) = start(version).await;
    let app = images::app("registry.test/lab/app:1").unwrap();
    registry.push(&app).await.unwrap();
    let mut cri = lab.cri().await.unwrap();
    let store = lab.store().await.unwrap();
    cri.pull_image(app.name()).await.unwrap();

    let pod = cri.run_pod("nydus", &[]).await.unwrap();
    let container = cri
        .create_container(&pod, app.name(), &[], &[])
        .await
        .unwrap();
    cri.start_container(&container).await.unwrap();
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");
    let chain = store.chain("nydus", &app).await.unwrap();
    assert_eq!(chain.len(), app.layers.len());
    assert!(chain.iter().all(|s| s.labels.is_empty()), "{chain:?}");
    let mounts = store.mounts("nydus", &container).await.unwrap();
    assert_eq!(mounts[0].kind, "overlay");
    assert_eq!(guest_volume(&store, &container).await, None);

    // The chain IDs exist already, so a labelled pull does not repair the chain.
    cri.pull_image_for(app.name(), "nydus").await.unwrap();
    assert!(
        !store
            .chain("nydus", &app)
            .await
            .unwrap()
            .iter()
            .any(is_proxied)
    );
}

/// Only the snapshotter is killed and restarted: its snapshots still exist, and containerd reconnects by
/// itself.
#[tokio::test]
async fn a_restarted_snapshotter_keeps_its_snapshots() {
    let (lab, registry) = start(Version::V2_1).await;
    let app = images::app("registry.test/lab/app:1").unwrap();
    registry.push(&app).await.unwrap();
    lab.cri()
        .await
        .unwrap()
        .pull_image_for(app.name(), "nydus")
        .await
        .unwrap();
    let store = lab.store().await.unwrap();
    let before = store.chain("nydus", &app).await.unwrap();
    assert_eq!(before.len(), app.layers.len());

    let nydus = lab.remote(Remote::Nydus);
    nydus.restart().await.expect_err("it still runs");
    nydus.kill();
    let gone = store.chain("nydus", &app).await.unwrap_err();
    // The call may meet the end of the old connection before the socket has no listener.
    let words = ["connection refused", "EOF"];
    assert!(words.iter().any(|it| gone.message().contains(it)), "{gone}");
    let later = nydus.log().from_now();
    nydus.restart().await.unwrap();
    assert!(!later.text().is_empty());
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match store.chain("nydus", &app).await {
            Ok(after) => break assert_eq!(after, before),
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn is_proxied(snapshot: &Snapshot) -> bool {
    snapshot.labels.get(PROXIED).is_some_and(|l| l == "true")
}

/// Returns the volume that the guest of this container or sandbox would get.
async fn guest_volume(store: &Store, key: &str) -> Option<KataVolume> {
    let mounts = store.mounts("nydus", key).await.unwrap();
    let [mount] = &mounts[..] else {
        panic!("{key} has other mounts than one: {mounts:?}")
    };
    mount.kata_volume().unwrap()
}

#[tokio::test]
async fn a_labelled_pull_is_left_to_the_guest_on_1_7() {
    a_labelled_pull_is_left_to_the_guest(Version::V1_7).await;
}

#[tokio::test]
async fn a_labelled_pull_is_left_to_the_guest_on_2_1() {
    a_labelled_pull_is_left_to_the_guest(Version::V2_1).await;
}

#[tokio::test]
async fn a_fallback_unpack_leaves_a_host_chain_on_1_7() {
    a_fallback_unpack_leaves_a_host_chain(Version::V1_7).await;
}

#[tokio::test]
async fn a_fallback_unpack_leaves_a_host_chain_on_2_1() {
    a_fallback_unpack_leaves_a_host_chain(Version::V2_1).await;
}
