//! Layers whose blob is cut short, or is far larger than it looks, and indexes that lead nowhere.

use anyhow::{Context, Result, ensure};
use lab::images::{Blob, Compression, INDEX, MANIFEST, bomb, digest};
use lab::{Image, Options, Version, images};
use serde_json::{Value, json};

use super::{MAX_GROWTH, image};
use crate::support::{Node, handler};

/// What a command takes at most: the program in a debug build, and what it holds.
const MAX_PEAK: u64 = 64 << 20;

/// The size of containerd's file system in MiB, and of the file in a bomb, in pieces of 16 MiB: four times as much.
const DISK: u64 = 256;
const PIECES: usize = 64;

/// Returns an image whose second layer is this blob.
fn with_blob(name: &str, bytes: Vec<u8>) -> Image {
    let mut image = image(name).build();
    let before = image.layers[1].digest.clone();
    let after = digest(&bytes);
    let size = bytes.len();
    for blob in image.blobs.iter_mut().filter(|blob| blob.digest == before) {
        let media_type = blob.media_type.clone();
        let (digest, bytes) = (after.clone(), bytes.clone());
        *blob = Blob {
            media_type,
            digest,
            bytes,
        };
    }
    image.layers[1].digest = after.clone();
    super::edited(image, MANIFEST, |manifest| {
        manifest["layers"][1]["digest"] = json!(after);
        manifest["layers"][1]["size"] = json!(size);
    })
}

/// Returns the bytes of an image's second layer.
fn layer_of(image: &Image) -> Result<&[u8]> {
    let mut blobs = image.blobs.iter();
    let layer = blobs.find(|blob| blob.digest == image.layers[1].digest);
    Ok(&layer.context("a layer without blob")?.bytes)
}

impl Node {
    /// Returns the file of a blob in the content store.
    fn blob_file(&self, digest: &str) -> std::path::PathBuf {
        let content = self
            .lab
            .root()
            .join("io.containerd.content.v1.content/blobs");
        content.join(digest.replace(':', "/"))
    }
}

async fn truncated_layers_are_refused(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let before = node.peak_memory()?;
    let sound = image("truncated").build();
    let whole = layer_of(&sound)?.to_vec();
    for (name, length) in [
        ("half", whole.len() / 2),
        ("tail", whole.len() - 4),
        ("nothing", 0),
    ] {
        let image = with_blob(name, whole[..length].to_vec());
        node.store.put_image(&image).await?;
        node.meets(&image, handler, Some(&image.layers[1].digest))
            .await?;
    }
    // The digest is that of the whole blob, which was cut short on the disk.
    let image = image("cut").build();
    node.store.put_image(&image).await?;
    let digest = &image.layers[1].digest;
    let file = std::fs::File::options()
        .write(true)
        .open(node.blob_file(digest))?;
    file.set_len(20)?;
    node.meets(&image, handler, Some(digest)).await?;

    node.assert_growth(before, MAX_GROWTH)
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_layers_are_refused_on_2_1() -> Result<()> {
    truncated_layers_are_refused(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn truncated_layers_are_refused_on_1_7() -> Result<()> {
    truncated_layers_are_refused(Version::V1_7).await
}

/// Only containerd decompresses a layer, onto its disk.
async fn bombs_take_no_memory(version: Version) -> Result<()> {
    let handler = handler(version);
    let mut options = Options::new(version);
    options.root_size = Some(DISK);
    let mut node = Node::start_with(version, options).await?;
    node.serve("").await?;
    let before = node.peak_memory()?;
    for (name, compression) in [("gzip", Compression::Gzip), ("zstd", Compression::Zstd)] {
        let blob = bomb(PIECES, compression);
        println!("{name}: {} bytes", blob.len());
        ensure!(blob.len() < 2 << 20, "{} bytes", blob.len());
        let image = with_blob(&format!("bomb-{name}"), blob);
        node.store.put_image(&image).await?;
        // The disk is full, or the digest of what containerd has applied is another one.
        let peak = node
            .meets(&image, handler, Some(&image.layers[1].digest))
            .await?;
        ensure!(peak < MAX_PEAK, "{name}: {peak} bytes");
        node.cri.remove_image(image.name()).await?;
        node.store.collect_garbage().await?;
    }
    node.assert_growth(before, MAX_GROWTH)
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_take_no_memory_on_2_1() -> Result<()> {
    bombs_take_no_memory(Version::V2_1).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bombs_take_no_memory_on_1_7() -> Result<()> {
    bombs_take_no_memory(Version::V1_7).await
}

/// As many times as an index names the next one, and as many indexes in one another. containerd 1.7 follows each of these
/// paths.
const WIDE: usize = 2;
const DEEP: usize = 12;

/// Returns an image below so many indexes, each of which names the next one many times.
fn below_indexes(name: &str, deep: usize) -> Image {
    let mut image = image(name).build();
    for _ in 0..deep {
        let below = &image.target;
        let entry = json!({"mediaType": below.media_type, "digest": below.digest, "size": below.bytes.len()});
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": vec![entry; WIDE]});
        let bytes = index.to_string().into_bytes();
        let index = Blob {
            media_type: INDEX.to_owned(),
            digest: digest(&bytes),
            bytes,
        };
        image.blobs.push(index.clone());
        image.target = index;
    }
    image
}

/// No index can contain its own digest; one that was changed on the disk can. containerd 1.7 follows such indexes itself, when
/// the image comes into its store, for minutes.
#[tokio::test(flavor = "multi_thread")]
async fn indexes_that_lead_nowhere_are_refused_on_2_1() -> Result<()> {
    let version = Version::V2_1;
    let handler = handler(version);
    let mut node = Node::start(version).await?;
    node.serve("").await?;
    let before = node.peak_memory()?;
    let wide = below_indexes("wide", 6);
    node.store.put_image(&wide).await?;
    node.meets(&wide, handler, None).await?;
    node.ensure_ready(&wide, handler)?;
    let deep = below_indexes("deep", DEEP);
    node.store.put_image(&deep).await?;
    node.meets(&deep, handler, Some("nested too deeply"))
        .await?;

    let itself = below_indexes("itself", 1);
    node.store.put_image(&itself).await?;
    let digest = &itself.target.digest;
    let mut index: Value = serde_json::from_slice(&itself.target.bytes)?;
    for entry in index["manifests"].as_array_mut().context("a list")? {
        entry["digest"] = json!(digest);
        entry["mediaType"] = json!(images::INDEX);
    }
    std::fs::write(node.blob_file(digest), index.to_string())?;
    node.meets(&itself, handler, Some("do not match this digest"))
        .await?;

    node.assert_growth(before, MAX_GROWTH)
}
