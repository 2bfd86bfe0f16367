//! Renames the layers of an image that was unpacked while it was being pulled. During the pull only the image's
//! digest, host and repository are known, and not always the registry's port: the labels have a name made of these.
//! The image's record, which containerd writes at the end of the pull, has the pulled name. A snapshotter reads the
//! label when it mounts, so the change applies from the next container on.

use crate::containerd::Containerd;
use crate::image::{is_from_the_pull, is_named_by};
use crate::unpack::chain::error::Error;
use crate::unpack::target::Target;

/// Replaces the name from the pull in the layers' labels with the target's name. Returns the number of changed
/// layers.
pub(crate) async fn name_layers(
    containerd: &dyn Containerd,
    target: &Target,
) -> Result<usize, Error> {
    let (status, _) = target.read_status(containerd).await?;
    let digest = &target.manifest.digest;
    let layers = target.manifest.layers.iter().enumerate();
    let mut renamed = 0;
    for ((i, layer), found) in layers.zip(&status.layers) {
        let wanted = || &target.labels[i];
        let is_meant =
            |found| is_named_by(found, digest) && is_from_the_pull(found, wanted(), digest);
        if found.as_ref().is_some_and(is_meant) {
            let (snapshotter, chain) = (&target.snapshotter, &layer.chain_id);
            // An image that ends at a shared layer may have put its own labels there meanwhile.
            let now = containerd.stat(snapshotter, chain).await;
            if !is_meant(&now.map_err(|e| target.failed(e))?.labels) {
                continue;
            }
            let labelled = containerd.label_snapshot(snapshotter, chain, wanted().clone());
            labelled.await.map_err(|e| target.failed(e))?;
            renamed += 1;
        }
    }
    Ok(renamed)
}
