//! SOCI with both versions of containerd: only the labels decide whether a layer is mounted lazily or unpacked.

use lab::{Image, Lab, Options, Registry, Remote, Version, images};
use tonic::Code;

/// The type of a layer that is mounted from the registry.
const LAZY: &str = "fuse.rawBridge";

/// A labelled pull mounts each layer from the registry; an image that exists for overlayfs only is unpacked
/// again.
async fn only_labelled_layers_are_mounted_lazily(version: Version) {
    let options = Options {
        remotes: vec![Remote::Soci],
        snapshot_annotations: true,
        pull_by_handler: true,
        ..Options::new(version)
    };
    let lab = Lab::start_with(version, options).await.unwrap();
    let registry = Registry::start_with_tls().await.unwrap();
    lab.use_registry(&registry).unwrap();
    let app = images::app(&registry.image("lab/app:1")).unwrap();
    registry.push(&app).await.unwrap();
    let mut cri = lab.cri().await.unwrap();
    let store = lab.store().await.unwrap();

    // The image exists for overlayfs only: SOCI unpacks it completely.
    cri.pull_image(app.name()).await.unwrap();
    lab.publish_soci_index(app.name()).await.unwrap();
    run_app(&lab, &app).await;
    let chain = store.chain("soci", &app).await.unwrap();
    assert_eq!(chain.len(), app.layers.len());
    assert_eq!(lazy_mounts(&lab), 0);

    cri.remove_image(app.name()).await.unwrap();
    store.collect_garbage().await.unwrap();
    assert_eq!(store.chain("soci", &app).await.unwrap(), []);

    // The image was pulled with labels: not even a blob of a layer exists.
    cri.pull_image_for(app.name(), "soci").await.unwrap();
    let chain = store.chain("soci", &app).await.unwrap();
    assert_eq!(chain.len(), app.layers.len());
    assert_eq!(lazy_mounts(&lab), app.layers.len());
    for layer in &app.layers {
        let blob = store.content_labels(&layer.digest).await.unwrap_err();
        assert_eq!(blob.code(), Code::NotFound);
    }
    run_app(&lab, &app).await;

    let dir = lab.path("");
    drop(lab);
    assert!(!mounts().contains(&dir.display().to_string()));
}

/// Runs the app, reads a file, and removes it again. The pause image has no index.
async fn run_app(lab: &Lab, app: &Image) {
    let mut cri = lab.cri().await.unwrap();
    let pod = cri.run_pod("soci", &[]).await.unwrap();
    let container = cri
        .create_container(&pod, app.name(), &[], &[])
        .await
        .unwrap();
    cri.start_container(&container).await.unwrap();
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");
    cri.remove_pod(&pod).await.unwrap();
}

/// Returns how many layers of this lab are mounted from the registry.
fn lazy_mounts(lab: &Lab) -> usize {
    let dir = lab.path("").display().to_string();
    let is_lazy = |mount: &&str| mount.contains(&dir) && mount.contains(LAZY);
    mounts().lines().filter(is_lazy).count()
}

fn mounts() -> String {
    std::fs::read_to_string("/proc/self/mountinfo").unwrap()
}

#[tokio::test]
async fn only_labelled_layers_are_mounted_lazily_on_1_7() {
    only_labelled_layers_are_mounted_lazily(Version::V1_7).await;
}

#[tokio::test]
async fn only_labelled_layers_are_mounted_lazily_on_2_1() {
    only_labelled_layers_are_mounted_lazily(Version::V2_1).await;
}
