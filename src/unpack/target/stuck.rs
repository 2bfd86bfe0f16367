//! Finds stuck images, which containerd cannot unpack by itself in a snapshotter: the blob of a missing layer is gone,
//! will be removed by the next garbage collection, or is encrypted (the unpack inside `CreateContainer` passes no key).
//! Changes nothing.

use std::cmp::Reverse;

use crate::containerd::{self, Containerd, Image};
use crate::image::{self, Manifest};

use super::images::Images;
use super::store_images::RequestImages;
use crate::unpack::chain::error::Error;
use crate::unpack::layer::kept_blobs::kept_by;

/// The number of images with the same layer that are checked. If a node has more of them, the next attempt of
/// containerd fails at a layer that fewer images share.
const MAX_LOOKED_AT: usize = 64;

/// Returns the images that have the layer `chain` and are stuck in the snapshotter, the newest first.
pub(crate) async fn with_layer(
    images: &Images,
    snapshotter: &str,
    chain: &str,
) -> Result<Vec<Image>, Error> {
    let list = RequestImages::default();
    let mut known_images = image::distinct(images.all(&list).await?.to_vec());
    known_images.sort_by_key(|known| Reverse(known.image.created_at));
    let mut stuck = Vec::new();
    let mut looked_at = 0;
    for known in known_images {
        let Some(manifest) = images.readable(&known.image).await? else {
            continue;
        };
        if !manifest.layers.iter().any(|layer| layer.chain_id == chain) {
            continue;
        }
        if is_stuck(images, snapshotter, &known.image, &manifest).await? {
            stuck.push(known.image);
        }
        looked_at += 1;
        if looked_at == MAX_LOOKED_AT {
            break;
        }
    }
    Ok(stuck)
}

/// Whether this image is stuck in the snapshotter.
pub(crate) async fn is(images: &Images, snapshotter: &str, image: &Image) -> Result<bool, Error> {
    match images.readable(image).await? {
        Some(manifest) => is_stuck(images, snapshotter, image, &manifest).await,
        None => Ok(false),
    }
}

async fn is_stuck(
    images: &Images,
    snapshotter: &str,
    image: &Image,
    manifest: &Manifest,
) -> Result<bool, Error> {
    let stuck = lacks_content(images.containerd(), snapshotter, manifest).await;
    stuck.map_err(|source| Error::Containerd {
        image: image.name.clone(),
        snapshotter: snapshotter.to_owned(),
        source,
    })
}

async fn lacks_content(
    containerd: &dyn Containerd,
    snapshotter: &str,
    manifest: &Manifest,
) -> Result<bool, containerd::Error> {
    let mut missing = manifest.layers.iter();
    // The parents of a committed layer are committed, so the first missing layer is the lowest.
    let lowest = loop {
        let Some(layer) = missing.next() else {
            return Ok(false);
        };
        match containerd.stat(snapshotter, &layer.chain_id).await {
            Ok(_) => {}
            Err(e) if e.is_not_found() => break layer,
            Err(e) => return Err(e),
        }
    };
    let kept = kept_by(containerd, manifest).await?;
    for layer in std::iter::once(lowest).chain(missing) {
        let digest = layer.blob.digest.as_str();
        if layer.is_encrypted() || !kept.contains(digest) {
            return Ok(true);
        }
        match containerd.blob(digest).await {
            Ok(_) => {}
            Err(e) if e.is_not_found() => return Ok(true),
            Err(e) => return Err(e),
        }
    }
    Ok(false)
}
