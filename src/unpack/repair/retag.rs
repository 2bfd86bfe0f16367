//! Puts the tag into the labels of an image that was unpacked during its pull. At that time only the digest, the host
//! and the repository are known, and not always the port, so the labels name the image by these. The tag comes with the
//! image's record. A snapshotter reads the label when it mounts, so the change counts from the next container on.

use crate::containerd::Containerd;
use crate::image::is_from_the_pull;
use crate::unpack::chain::error::Error;
use crate::unpack::target::Target;

/// Replaces the name from the pull in the labels of the target's layers. Returns the number of layers changed.
pub(crate) async fn name_layers(
    containerd: &dyn Containerd,
    target: &Target,
) -> Result<usize, Error> {
    let (status, _) = target.look(containerd).await?;
    let layers = target.manifest.layers.iter().zip(&target.labels);
    let mut named = 0;
    for ((layer, wanted), found) in layers.zip(&status.layers) {
        let found = found.as_ref();
        if found.is_some_and(|found| is_from_the_pull(found, wanted, &target.manifest.digest)) {
            let (snapshotter, chain) = (&target.snapshotter, &layer.chain_id);
            let labelled = containerd.label_snapshot(snapshotter, chain, wanted.clone());
            labelled.await.map_err(|e| target.failed(e))?;
            named += 1;
        }
    }
    Ok(named)
}
