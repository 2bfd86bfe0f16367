//! Protection from garbage collection: before a flight begins, its lease gets the layers that are committed and the
//! blobs of those that are missing.

use std::collections::HashSet;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::containerd::{self, Containerd, Resource};
use crate::image::Manifest;

use super::Target;
use crate::unpack::chain::state::ChainStatus;
use crate::unpack::layer::kept_blobs::kept_by;
use crate::unpack::snapshotter::lease::Lease;

/// The number of blobs that are added to a lease at the same time. containerd runs one transaction for each, one after
/// another, so more would only block other clients.
const PARALLEL_HOLDS: usize = 4;

/// Adds the highest committed layer to the lease, which keeps all layers below it, too.
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

/// Adds the blobs of the missing layers to the lease, unless the manifest's labels keep them. With
/// `discard_unpacked_layers` the manifest does not keep them, and the next garbage collection would remove the blobs
/// that remain of a pull.
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

/// Adds the manifest and the config of an image that is still being pulled: only the pull itself keeps them, and
/// the pull may fail.
pub(crate) async fn documents(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
) -> Result<(), containerd::Error> {
    let Manifest { digest, config, .. } = &*target.manifest;
    let hold = |digest: &str| containerd.hold(lease.id(), Resource::blob(digest));
    futures::try_join!(hold(digest), hold(config)).map(drop)
}

/// Adds the blobs of all layers, for a chain that is to be replaced. Returns the lowest layer whose blob is gone, if
/// any.
pub(crate) async fn all_blobs(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
) -> Result<Option<usize>, containerd::Error> {
    for (i, layer) in target.manifest.layers.iter().enumerate() {
        let digest = &layer.blob.digest;
        // Added first: a blob that is found after this cannot be collected.
        containerd.hold(lease.id(), Resource::blob(digest)).await?;
        match containerd.blob(digest).await {
            Ok(_) => {}
            Err(e) if e.is_not_found() => return Ok(Some(i)),
            Err(e) => return Err(e),
        }
    }
    Ok(None)
}
