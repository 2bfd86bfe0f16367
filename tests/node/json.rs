//! The JSON output of the commands is a contract on which scripts depend.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use lab::Version;
use serde_json::Value;

use crate::support::Node;

fn keys(object: &Value) -> BTreeSet<&str> {
    object
        .as_object()
        .map(|o| o.keys().map(String::as_str).collect())
        .unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn json_of_check_ensure_and_handlers_has_the_documented_keys() -> Result<()> {
    let node = Node::start(Version::V2_1).await?;
    let json = |arguments: &[&str], code: i32| -> Result<Value> {
        let output = node.command(&[arguments, &["--output", "json"]].concat())?;
        ensure!(
            output.status.code() == Some(code),
            "{arguments:?}: {output:?}"
        );
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let image = node.image.name();

    let report = json(&["check", image, "--handler", "erofs"], 1)?;
    let row = &report["images"][0];
    let expected = [
        "name",
        "manifest",
        "snapshotter",
        "state",
        "layers",
        "ready_layers",
        "ahead",
        "reason",
    ];
    ensure!(keys(row) == BTreeSet::from(expected), "{row:#}");
    ensure!(
        row["name"] == image && row["manifest"] == node.image.manifest.digest.as_str(),
        "{row:#}"
    );
    ensure!(
        row["snapshotter"] == "erofs" && row["state"] == "missing",
        "{row:#}"
    );
    ensure!(row["layers"] == 5 && row["ready_layers"] == 0, "{row:#}");

    let report = json(&["ensure", image, "--handler", "erofs"], 0)?;
    let row = &report["results"][0];
    let expected = [
        "name",
        "snapshotter",
        "state",
        "action",
        "layers_done",
        "layers_kept",
        "duration_ms",
        "error",
    ];
    ensure!(keys(row) == BTreeSet::from(expected), "{row:#}");
    ensure!(
        row["state"] == "ready" && row["action"] == "unpacked",
        "{row:#}"
    );
    ensure!(row["layers_done"] == 5 && row["error"].is_null(), "{row:#}");
    ensure!(json(&["ensure", image, "--handler", "erofs"], 0)?["results"][0]["action"] == "none");

    let report = json(&["purge", "--dry-run"], 1)?;
    let row = &report["leftovers"][0];
    let expected = [
        "kind",
        "snapshotter",
        "name",
        "label",
        "image",
        "state",
        "reason",
    ];
    ensure!(keys(row) == BTreeSet::from(expected), "{row:#}");
    ensure!(
        row["state"] == "removable" && row["image"] == image,
        "{row:#}"
    );

    // All images in the snapshotters that belong to one handler only: this image and the pause image.
    let report = json(&["check"], 1)?;
    let rows = report["images"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let places: BTreeSet<_> = rows
        .iter()
        .filter_map(|row| row["snapshotter"].as_str())
        .collect();
    ensure!(
        places == BTreeSet::from(["erofs", "native"]) && rows.len() == 4,
        "{report:#}"
    );

    let report = json(&["handlers"], 0)?;
    let expected = ["handlers", "default_snapshotter", "problems"];
    ensure!(keys(&report) == BTreeSet::from(expected), "{report:#}");
    ensure!(report["default_snapshotter"] == "overlayfs", "{report:#}");
    let erofs = &report["handlers"][0];
    ensure!(
        keys(erofs) == BTreeSet::from(["handler", "snapshotter", "origin"]),
        "{report:#}"
    );
    ensure!(
        erofs["handler"] == "erofs" && erofs["origin"] == "CRI status",
        "{report:#}"
    );
    Ok(())
}
