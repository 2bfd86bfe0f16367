//! What a flight stands on, put under its lease before it begins: the layers that are there, and the
//! blobs of those that are not.

use std::collections::HashSet;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::containerd::{self, Containerd, Resource};
use crate::image::Manifest;

use super::Target;
use crate::unpack::chain::state::ChainStatus;
use crate::unpack::layer::kept_blobs::kept_by;
use crate::unpack::snapshotter::lease::Lease;

/// Blobs that are held at once: each takes containerd one transaction, one after another.
const PARALLEL_HOLDS: usize = 4;

/// The highest committed layer, and with it all below, is not to be collected while a flight builds
/// on it.
pub(crate) async fn committed(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
    status: &ChainStatus,
) -> Result<(), containerd::Error> {
    let Some(highest) = status.committed().checked_sub(1) else {
        return Ok(());
    };
    let chain_id = &target.manifest.layers[highest].chain_id;
    let resource = Resource::snapshot(&target.snapshotter, chain_id);
    containerd.hold(lease.id(), resource).await
}

/// The blobs from which the layers above the committed ones are unpacked. Where the manifest keeps
/// them, nothing is done; with `discard_unpacked_layers` it does not, and the next garbage collection
/// takes those that are still there from a pull.
pub(crate) async fn blobs(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
    status: &ChainStatus,
) -> Result<(), containerd::Error> {
    let manifest = &target.manifest;
    let kept = kept_by(containerd, manifest).await?;
    let missing = manifest.layers.iter().skip(status.committed());
    let digests: HashSet<_> = missing.map(|layer| layer.blob.digest.clone()).collect();
    let holds = digests
        .difference(&kept)
        .map(|digest| containerd.hold(lease.id(), Resource::blob(digest)));
    let holds: Vec<_> = holds.collect();
    stream::iter(holds)
        .buffer_unordered(PARALLEL_HOLDS)
        .try_collect()
        .await
}

/// The manifest and the config of an image that is still being pulled: nothing keeps them but the pull
/// itself, which may fail.
pub(crate) async fn documents(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
) -> Result<(), containerd::Error> {
    let Manifest { digest, config, .. } = &*target.manifest;
    let hold = |digest: &str| containerd.hold(lease.id(), Resource::blob(digest));
    futures::try_join!(hold(digest), hold(config)).map(drop)
}

/// All blobs of the layers, for a chain that is to be taken away and unpacked again. Answers the
/// lowest layer that has none.
pub(crate) async fn all_blobs(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
) -> Result<Option<usize>, containerd::Error> {
    for (i, layer) in target.manifest.layers.iter().enumerate() {
        let digest = &layer.blob.digest;
        // Held first: what is there afterwards stays.
        containerd.hold(lease.id(), Resource::blob(digest)).await?;
        match containerd.blob(digest).await {
            Ok(_) => {}
            Err(e) if e.is_not_found() => return Ok(Some(i)),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
