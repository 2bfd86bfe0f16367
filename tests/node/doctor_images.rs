//! `doctor` on images: shared layers cause no finding, a missing blob does, and its remedy helps.

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, PAUSE, Version, images};
use serde_json::{Value, json};

use crate::doctor::{Found, has};
use crate::support::{Node, PATIENCE, handler};

/// Returns an image of two layers; the lower one is the same for each image.
fn on_base(name: &str, own: &str) -> Image {
    let base = Layer::new().file("base", 0o644, "base\n");
    let own = Layer::new().file("own", 0o644, own);
    let image = Image::builder(format!("registry.test/shared/{name}"));
    image.layer(base).layer(own).command(&["/own"]).build()
}

/// Returns the image with another config, as tools for WASM and ORAS write it.
fn artifact(name: &str, media_type: &str, config: Value, layer: &str) -> Result<Image> {
    let mut image = on_base(name, "artifact");
    let config = config.to_string().into_bytes();
    let old = image.config.digest.clone();
    image.config.bytes = config;
    image.config.digest = images::digest(&image.config.bytes);
    let mut manifest: Value = serde_json::from_slice(&image.manifest.bytes)?;
    manifest["config"] = json!({
        "mediaType": media_type, "digest": image.config.digest, "size": image.config.bytes.len(),
    });
    let layers = manifest["layers"].as_array_mut().context("layers")?;
    layers[0]["mediaType"] = json!(layer);
    layers.truncate(1);
    let before = image.manifest.digest.clone();
    image.manifest.bytes = manifest.to_string().into_bytes();
    image.manifest.digest = images::digest(&image.manifest.bytes);
    image.target = image.manifest.clone();
    for blob in &mut image.blobs {
        if blob.digest == old {
            *blob = image.config.clone();
        } else if blob.digest == before {
            *blob = image.manifest.clone();
        }
    }
    Ok(image)
}

async fn shared_layers(version: Version) -> Result<()> {
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let snapshotter = handler(version);
    let (a, b) = (on_base("pair:a", "a"), on_base("pair:b", "b"));
    let twin = |name: &str, user: &str| {
        let layer = Layer::new().file("f", 0o644, "f\n").file(
            "etc/passwd",
            0o644,
            "a:x:1:1::/:\nb:x:2:2::/:\n",
        );
        let image = Image::builder(format!("registry.test/shared/{name}")).layer(layer);
        image.user(user).command(&["/f"]).build()
    };
    let (one, other) = (twin("twin:a", "a"), twin("twin:b", "b"));
    let pinned = on_base("pinned:1", "pinned");
    for image in [&a, &b, &one, &other, &pinned] {
        node.lab.import(image).await?;
    }
    let label = [
        "images",
        "label",
        pinned.name(),
        "io.cri-containerd.pinned=pinned",
    ];
    node.lab.ctr(&label).await?;
    let empty = "application/vnd.oci.empty.v1+json";
    let wasm = "application/vnd.wasm.config.v0+json";
    let wasm_config =
        json!({"os": "wasip1", "architecture": "wasm", "layerDigests": ["sha256:00"]});
    for artifact in [
        artifact("oras:1", empty, json!({}), images::LAYER_GZIP)?,
        artifact("wasm:1", wasm, wasm_config, "application/wasm")?,
    ] {
        node.store.put_image(&artifact).await?;
    }
    for image in [&a, &one] {
        let pod = node.cri.run_pod(snapshotter, &[]).await?;
        node.cri
            .create_container(&pod, image.name(), &[], &[])
            .await?;
    }
    ensure!(node.state_of(&b, snapshotter).await? == "partial");
    ensure!(node.state_of(&other, snapshotter).await? == "unanchored");
    let pause = images::pause(&[PAUSE])?;
    let began = std::time::Instant::now();
    while node.state_of(&pause, snapshotter).await? != "ready"
        || node.state_of(&pause, "native").await? != "ready"
    {
        ensure!(began.elapsed() < PATIENCE, "the pause image is not ready");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    let (code, found) = node.examine()?;
    ensure!(code == Some(0) && found.is_empty(), "{code:?}: {found:#?}");

    // `ensure` skips artifacts that are no images, and `check` finds all images ready.
    let ensured = node.command(&["ensure", "--all", "--snapshotter", snapshotter])?;
    ensure!(ensured.status.success(), "{ensured:?}");
    let checked = node.command(&["check", "--snapshotter", snapshotter])?;
    ensure!(checked.status.success(), "{checked:?}");
    let by_name = node.command(&[
        "ensure",
        "registry.test/shared/oras:1",
        "--snapshotter",
        snapshotter,
    ])?;
    let printed = String::from_utf8_lossy(&by_name.stdout).into_owned();
    ensure!(
        printed.contains("is not that of a container image"),
        "{by_name:?}"
    );
    let (code, found) = node.examine()?;
    ensure!(code == Some(0) && found.is_empty(), "{code:?}: {found:#?}");
    let log = node.log.text();
    ensure!(!log.contains("cannot be made ready"), "{log}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_layers_cause_no_finding_on_2_1() -> Result<()> {
    shared_layers(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn shared_layers_cause_no_finding_on_1_7() -> Result<()> {
    shared_layers(Version::V1_7).await
}

impl Node {
    /// Runs the commands of a finding. The registry of the tests uses plain HTTP.
    pub(crate) async fn follow(&self, found: &Found, id: &str) -> Result<()> {
        let commands = found[id]["remedy"]["commands"].as_array();
        let commands = commands
            .filter(|commands| !commands.is_empty())
            .context("commands")?;
        for command in commands {
            let words: Vec<_> = command.as_str().context("text")?.split(' ').collect();
            let ["ctr", "-n", "k8s.io", ref more @ ..] = words[..] else {
                anyhow::bail!("{command}");
            };
            self.lab.ctr(more).await?;
        }
        Ok(())
    }
}

/// A missing blob, and a missing document.
async fn missing_blob(version: Version) -> Result<()> {
    let node = Node::start(version).await?;
    let snapshotter = handler(version);
    let hosts = format!("[pull]\nhosts = {:?}\n", node.lab.path("hosts"));
    let strict = node.config(&format!(
        "{hosts}[unpack]\nmin_free = \"0%\"\nmissing_content = []\n"
    ));
    let original = node.config(&hosts);
    let name = node.image.name().to_owned();

    node.store
        .delete_content(&node.image.layers[1].digest)
        .await?;
    // overlayfs has the layer: an image that needs it takes it from there.
    let (_, found) = node.examine_with(&original, &[])?;
    ensure!(!found.contains_key("images-unavailable"), "{found:#?}");
    let (code, found) = node.examine_with(&strict, &[])?;
    ensure!(code == Some(1), "{code:?}");
    has(&found, "images-unavailable", "warning", &name)?;
    node.follow(&found, "images-unavailable").await?;
    let (_, found) = node.examine_with(&strict, &[])?;
    ensure!(!found.contains_key("images-unavailable"), "{found:#?}");

    node.store.delete_content(&node.image.config.digest).await?;
    let (_, found) = node.examine_with(&original, &[])?;
    has(&found, "images-unavailable", "warning", "not found")?;
    node.follow(&found, "images-unavailable").await?;
    let (_, found) = node.examine_with(&original, &[])?;
    ensure!(!found.contains_key("images-unavailable"), "{found:#?}");
    node.ensure_ready(&node.image, snapshotter)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_blob_is_found_and_fetched_on_2_1() -> Result<()> {
    missing_blob(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_blob_is_found_and_fetched_on_1_7() -> Result<()> {
    missing_blob(Version::V1_7).await
}
