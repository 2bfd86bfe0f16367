//! The comparison of containerd's metadata shows every write, and nothing else.

use std::collections::HashMap;

use containerd_client::services::v1::snapshots::{Info, UpdateSnapshotRequest};
use lab::{Lab, Store, Version, images, namespaced};

/// Reading changes nothing. Each write is shown, also if it writes the existing value.
#[tokio::test]
async fn every_write_is_a_change() {
    for version in Version::ALL {
        let lab = Lab::start(version).await.unwrap();
        let app = images::app("registry.test/lab/app:1").unwrap();
        lab.import(&app).await.unwrap();
        let mut cri = lab.cri().await.unwrap();
        let store = lab.store().await.unwrap();
        store.collect_garbage().await.unwrap();
        let before = store.metadata().await.unwrap();
        cri.image_status(app.name()).await.unwrap().unwrap();
        assert_changes(&before, &store, &[]).await;

        let snapshotters = store.snapshotters().await.unwrap();
        assert!(
            snapshotters.contains(&"native".to_owned()),
            "{snapshotters:?}"
        );
        assert!(
            !snapshotters.contains(&"devmapper".to_owned()),
            "{snapshotters:?}"
        );

        let top = format!("snapshot overlayfs {}", app.top());
        let (old, new) = (format!("- {top}"), format!("+ {top}"));
        relabel(&store, app.top(), "new").await;
        assert_changes(&before, &store, &[&old, &new]).await;
        let relabelled = store.metadata().await.unwrap();
        relabel(&store, app.top(), "new").await;
        assert_changes(&relabelled, &store, &[&old, &new]).await;

        let layer = &app.layers[0].digest;
        assert!(store.content().await.unwrap().contains_key(layer));
        let relabelled = store.metadata().await.unwrap();
        store.delete_content(layer).await.unwrap();
        assert!(!store.content().await.unwrap().contains_key(layer));
        assert_changes(&relabelled, &store, &[&format!("- content {layer}")]).await;

        let less = store.metadata().await.unwrap();
        store.remove_snapshot("overlayfs", app.top()).await.unwrap();
        assert_changes(&less, &store, &[&old]).await;
    }
}

/// Compares the beginnings of the changes since `before`.
async fn assert_changes(before: &lab::Metadata, store: &Store, expected: &[&str]) {
    let changes = before.changes(&store.metadata().await.unwrap());
    let as_expected = changes.len() == expected.len()
        && changes
            .iter()
            .zip(expected)
            .all(|(is, should)| is.starts_with(should));
    assert!(as_expected, "{changes:#?}");
}

async fn relabel(store: &Store, key: &str, value: &str) {
    let label = "containerd.io/snapshot/lab".to_owned();
    let request = UpdateSnapshotRequest {
        snapshotter: "overlayfs".to_owned(),
        info: Some(Info {
            name: key.to_owned(),
            labels: HashMap::from([(label, value.to_owned())]),
            ..Default::default()
        }),
        update_mask: None,
    };
    store
        .client
        .snapshots()
        .update(namespaced(request))
        .await
        .unwrap();
}
