//! The blockfile snapshotter on both versions: a snapshotter of containerd whose mounts are not directories.

use lab::{Handler, Lab, Options, Version, images};

/// A container runs from a chain of files, each with a whole file system.
async fn a_container_runs_from_a_file(version: Version) {
    let mut options = Options::new(version);
    options
        .handlers
        .push(Handler::new("blockfile", "blockfile"));
    let lab = Lab::start_with(version, options).await.unwrap();
    let app = images::app("registry.test/lab/app:1").unwrap();
    lab.import(&app).await.unwrap();

    let mut cri = lab.cri().await.unwrap();
    let pod = cri.run_pod("blockfile", &[]).await.unwrap();
    let container = cri
        .create_container(&pod, app.name(), &[], &[])
        .await
        .unwrap();
    cri.start_container(&container).await.unwrap();
    assert_eq!(cri.cat(&container, "/data/three").await.unwrap(), "three\n");

    let store = lab.store().await.unwrap();
    let chain = store.chain("blockfile", &app).await.unwrap();
    assert_eq!(chain.len(), app.layers.len());
    assert!(chain.iter().all(|s| s.labels.is_empty()), "{chain:?}");
    let mounts = store.mounts("blockfile", &container).await.unwrap();
    assert_eq!(mounts.len(), 1);
    assert_eq!(mounts[0].kind, "ext4");
    assert!(mounts[0].options.contains(&"loop".to_owned()), "{mounts:?}");

    let dir = lab.path("");
    assert!(loop_devices().contains(&dir.display().to_string()));
    drop(lab);
    assert!(!loop_devices().contains(&dir.display().to_string()));
}

/// Returns the files that the machine's loop devices use, one per line.
fn loop_devices() -> String {
    let devices = std::fs::read_dir("/sys/block").unwrap().flatten();
    devices
        .filter_map(|d| std::fs::read_to_string(d.path().join("loop/backing_file")).ok())
        .collect()
}

#[tokio::test]
async fn a_container_runs_from_a_file_on_1_7() {
    a_container_runs_from_a_file(Version::V1_7).await;
}

#[tokio::test]
async fn a_container_runs_from_a_file_on_2_1() {
    a_container_runs_from_a_file(Version::V2_1).await;
}
