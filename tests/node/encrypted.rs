//! Encrypted layers: containerd decrypts them with a program that needs the payload from its CRI plugin. The
//! program of these tests checks the payload, and copies the layer: only the media type says that it is
//! encrypted.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use lab::{Image, Layer, Options, Version};
use serde_json::Value;

use crate::support::{DEFAULT_HOOKS, Node, handler, write_script};

/// Fails without its payload, which containerd passes as file descriptor 3, and while it is locked. Keeps the
/// payload of its last run.
const PROCESSOR: &str = r#"#!/bin/sh
cd "$(dirname "$0")" || exit 1
test ! -e locked || { echo "locked" >&2; exit 1; }
cat <&3 > payload.new || exit 1
grep -q io.containerd.ocicrypt.v1.Payload payload.new || exit 1
mv payload.new payload
exec cat
"#;

fn options(version: Version, directory: &Path) -> Result<Options> {
    let program = directory.join("decrypt");
    write_script(&program, PROCESSOR)?;
    let mut options = Options::new(version);
    let layer = "application/vnd.oci.image.layer.v1.tar+gzip";
    options.extra_config = format!(
        "[stream_processors.\"io.containerd.ocicrypt.decoder.v1.tar.gzip\"]\n\
         accepts = [\"{layer}+encrypted\"]\nreturns = {layer:?}\npath = {program:?}\n"
    );
    // containerd 2.1 passes the payload when CRI pulls itself, but not through the transfer service.
    options.snapshot_annotations = true;
    Ok(options)
}

fn image(name: &str) -> Image {
    let layer = Layer::new().file("secret", 0o600, name).encrypted();
    let layer = layer
        .annotate("org.opencontainers.image.enc.keys.jwe", "key <of> \"it\"")
        .annotate("org.opencontainers.image.enc.pubopts", "options");
    let image = Image::builder(format!("registry.test/secret/{name}:1"));
    image.layer(layer).command(&["/none"]).build()
}

/// Returns what a payload says about the layer, without the snapshot labels that CRI adds to it.
fn payload_fields(payload: &[u8]) -> Result<Value> {
    let begin = payload.iter().position(|byte| *byte == b'{');
    let mut fields: Value = serde_json::from_slice(&payload[begin.context("no JSON")?..])?;
    let annotations = fields["Descriptor"]["annotations"].as_object_mut();
    let annotations = annotations.context("no annotations")?;
    annotations.retain(|key, _| !key.starts_with("containerd.io/snapshot/cri."));
    Ok(fields)
}

async fn encrypted_layers_are_decrypted(version: Version) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let payload = directory.path().join("payload");
    let take = || {
        let bytes = std::fs::read(&payload).context("the program was handed no payload")?;
        std::fs::remove_file(&payload)?;
        anyhow::Ok(bytes)
    };
    let options = options(version, directory.path())?;
    let (mut node, handler) = (Node::start_with(version, options).await?, handler(version));

    let [first, second, third, fourth] = ["first", "second", "third", "fourth"].map(image);
    node.pull(&first).await?;
    let of_cri = take()?;
    ensure!(node.ensure_ready(&first, handler)? == "unpacked");
    let ours = take()?;
    ensure!(
        payload_fields(&ours)? == payload_fields(&of_cri)?,
        "{ours:?}, not {of_cri:?}"
    );
    node.image = first;
    node.assert_labelled(handler).await?;

    // containerd's own unpack inside the creation passes no payload, and fails.
    node.hooks = DEFAULT_HOOKS;
    node.serve("").await?;
    node.pull(&second).await?;
    let (_, tries) = node.created(handler, second.name()).await?;
    ensure!((2..=3).contains(&tries), "{tries} tries");

    // If the layer can no longer be decrypted, its snapshot in another snapshotter is copied. Without such a
    // snapshot the error says so.
    node.pull(&third).await?;
    std::fs::write(directory.path().join("locked"), "")?;
    ensure!(node.ensure_ready(&third, handler)? == "rebuilt");
    node.store.put_image(&fourth).await?;
    let refused = node.command(&["ensure", fourth.name(), "--handler", handler])?;
    let printed = String::from_utf8_lossy(&refused.stdout).into_owned();
    ensure!(refused.status.code() == Some(1), "{refused:?}");
    for words in ["is encrypted", "overlayfs does not have the layer either"] {
        ensure!(printed.contains(words), "{words}: {printed}");
    }
    node.assert_nothing_left(handler).await
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_layers_are_decrypted_on_2_1() -> Result<()> {
    encrypted_layers_are_decrypted(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_layers_are_decrypted_on_1_7() -> Result<()> {
    encrypted_layers_are_decrypted(Version::V1_7).await
}
