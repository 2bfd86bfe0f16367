//! The plugin's labels equal those that containerd's own labelled pull sets for the same image in another
//! snapshotter: same keys, same values.

use anyhow::{Result, ensure};
use lab::{Handler, Options, Version};

use crate::support::{Node, handler};

async fn assert_equal_labels(version: Version) -> Result<()> {
    let mut options = Options::new(version);
    // The pull for «theirs» must set labels for the comparison; by default it sets none.
    options.snapshot_annotations = true;
    options.pull_by_handler = true;
    options.handlers = vec![
        Handler::new("ours", handler(version)),
        Handler::new("theirs", theirs(version)),
    ];
    let mut node = Node::start_with(version, options).await?;
    node.cri.pull_image_for(node.image.name(), "theirs").await?;

    let ensured = node.command(&["ensure", node.image.name(), "--handler", "ours"])?;
    ensure!(ensured.status.success(), "{ensured:?}");

    let theirs = node.store.chain(theirs(version), &node.image).await?;
    let ours = node.store.chain(handler(version), &node.image).await?;
    ensure!(
        theirs.len() == 5 && ours.len() == 5,
        "{theirs:#?}\n{ours:#?}"
    );
    for (ours, theirs) in ours.iter().zip(&theirs) {
        ensure!(ours.labels.len() >= 5, "{ours:#?}");
        ensure!(
            ours.labels == theirs.labels,
            "ours {ours:#?}, theirs {theirs:#?}"
        );
        ensure!((&ours.key, &ours.parent) == (&theirs.key, &theirs.parent));
    }

    let config = node.store.content_labels(&node.image.config.digest).await?;
    for snapshotter in [handler(version), crate::labels::theirs(version)] {
        let anchor = config.get(&format!("containerd.io/gc.ref.snapshot.{snapshotter}"));
        ensure!(
            anchor.map(String::as_str) == Some(node.image.top()),
            "{snapshotter}: {config:?}"
        );
    }
    Ok(())
}

/// Returns the snapshotter for containerd's own pull.
pub(crate) fn theirs(version: Version) -> &'static str {
    match version {
        Version::V1_7 => "overlayfs",
        Version::V2_1 => "native",
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_equal_those_of_a_pull_on_2_1() -> Result<()> {
    assert_equal_labels(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_equal_those_of_a_pull_on_1_7() -> Result<()> {
    assert_equal_labels(Version::V1_7).await
}
