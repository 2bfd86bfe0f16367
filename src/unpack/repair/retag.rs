//! The name of an image that was unpacked while it was being pulled. Then nothing was known of it but its
//! digest and from which host and repository it came, not always by which port, and its labels name it so;
//! the name that was asked for comes with its record. A snapshotter looks at the label when it mounts, so the change counts from the next container on.

use crate::containerd::Containerd;
use crate::image::is_from_the_pull;
use crate::unpack::chain::error::Error;
use crate::unpack::target::Target;

/// Gives the layers that have the name from the pull the one that the target has now. Answers how many.
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
