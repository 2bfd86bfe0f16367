//! What a flight stands on, put under its lease before it begins: the layers that are there, and the
//! blobs of those that are not; and what a manifest keeps by its labels.

use std::collections::HashSet;

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::containerd::{self, Containerd, Labels, Resource};

use crate::image::Manifest;

use super::Sight;
use super::lease::Lease;
use super::target::Target;

/// What a manifest's labels for the blobs that it keeps begin with.
const KEEPS: &str = "containerd.io/gc.ref.content";

/// Blobs that are held at once: each takes containerd one transaction, one after another.
const PARALLEL_HOLDS: usize = 4;

/// The highest committed layer, and with it all below, is not to be collected while a flight builds
/// on it.
pub(super) async fn committed(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
    sight: &Sight,
) -> Result<(), containerd::Error> {
    let Some(highest) = sight.committed().checked_sub(1) else {
        return Ok(());
    };
    let chain_id = &target.manifest.layers[highest].chain_id;
    let resource = Resource::snapshot(&target.snapshotter, chain_id);
    containerd.hold(lease.id(), resource).await
}

/// The blobs from which the layers above the committed ones are unpacked. Where the manifest keeps
/// them, nothing is done; with `discard_unpacked_layers` it does not, and the next garbage collection
/// takes those that are still there from a pull.
pub(super) async fn blobs(
    containerd: &dyn Containerd,
    lease: &Lease,
    target: &Target,
    sight: &Sight,
) -> Result<(), containerd::Error> {
    let manifest = &target.manifest;
    let kept = kept_by(containerd, manifest).await?;
    let missing = manifest.layers.iter().skip(sight.committed());
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

/// The blobs that a manifest keeps from garbage collection by its labels: none where it is not there.
pub(super) async fn kept_by(
    containerd: &dyn Containerd,
    manifest: &Manifest,
) -> Result<HashSet<String>, containerd::Error> {
    let labels = match containerd.blob(&manifest.digest).await {
        Ok(blob) => blob.labels,
        Err(e) if e.is_not_found() => return Ok(HashSet::new()),
        Err(e) => return Err(e),
    };
    let kept = labels.into_iter().filter(|(key, _)| key.starts_with(KEEPS));
    Ok(kept.map(|(_, digest)| digest).collect())
}

/// The manifest and the config of an image that is still being pulled: nothing keeps them but the pull
/// itself, which may fail.
pub(super) async fn documents(
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
pub(super) async fn all_blobs(
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

/// What to change in a manifest's labels so that it keeps the blobs that it kept before, and no
/// others.
pub(super) fn changes_back(before: &Labels, now: &Labels) -> Labels {
    let keeps = now.iter().filter(|(key, _)| key.starts_with(KEEPS));
    let changed = keeps.filter(|(key, value)| before.get(*key) != Some(value));
    // An empty value takes a label away.
    let back = changed.map(|(key, _)| (key.clone(), before.get(key).cloned().unwrap_or_default()));
    back.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_goes_and_what_was_changed_comes_back() {
        let labels = |all: &[(&str, &str)]| -> Labels {
            let owned = |(key, value): &(&str, &str)| (key.to_string(), value.to_string());
            all.iter().map(owned).collect()
        };
        let before = labels(&[("a", "1"), ("containerd.io/gc.ref.content.config", "c")]);
        let now = labels(&[
            ("a", "2"),
            ("b", "3"),
            ("containerd.io/gc.ref.content.config", "d"),
            ("containerd.io/gc.ref.content.l.0", "l"),
        ]);
        let back = labels(&[
            ("containerd.io/gc.ref.content.config", "c"),
            ("containerd.io/gc.ref.content.l.0", ""),
        ]);
        assert_eq!(changes_back(&before, &now), back);
        assert_eq!(changes_back(&now, &now), Labels::new());
    }
}
