//! The name of an image that was unpacked while it was being pulled. Then nothing was known of it but its
//! digest and from which host and repository it came, not always by which port, and its labels name it so;
//! the name that was asked for comes with its record. A snapshotter looks at the label when it mounts, so the change counts from the next container on.

use crate::containerd::{Containerd, Labels};
use crate::image::{IMAGE_REF, hostname, repository};

use super::Error;
use super::target::Target;

/// Gives the layers that have the name from the pull the one that the target has now. Answers how many.
pub(super) async fn name_layers(
    containerd: &dyn Containerd,
    target: &Target,
) -> Result<usize, Error> {
    let (sight, _) = target.look(containerd).await?;
    let layers = target.manifest.layers.iter().zip(&target.labels);
    let mut named = 0;
    for ((layer, wanted), found) in layers.zip(&sight.layers) {
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

/// Whether the image is found named by the digest of its manifest, and wanted by another name of the same
/// repository, be it on another port.
pub(super) fn is_from_the_pull(found: &Labels, wanted: &Labels, manifest: &str) -> bool {
    let (Some(found), Some(wanted)) = (found.get(IMAGE_REF), wanted.get(IMAGE_REF)) else {
        return false;
    };
    let by_digest = found
        .split_once('@')
        .filter(|(_, digest)| *digest == manifest);
    let Some(((found_in, _), wanted_in)) = by_digest.zip(repository(wanted)) else {
        return false;
    };
    found != wanted && without_port(found_in) == without_port(&wanted_in)
}

/// A repository's host and path.
fn without_port(repository: &str) -> Option<(&str, &str)> {
    let (registry, path) = repository.split_once('/')?;
    Some((hostname(registry), path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_name_from_the_pull_gives_way() {
        let digest = format!("sha256:{}", "0".repeat(64));
        let by_digest = format!("r.example:5000/a/app@{digest}");
        let without_port = format!("r.example/a/app@{digest}");
        let elsewhere = format!("r.example/other@{digest}");
        for (found, wanted, expected) in [
            (Some(&*by_digest), "r.example:5000/a/app:1", true),
            (Some(&*by_digest), &*by_digest, false),
            (Some(&*without_port), "r.example:5000/a/app:1", true),
            (Some(&*without_port), "r.example:5000/a/other:1", false),
            (Some(&*elsewhere), "r.example:5000/a/app:1", false),
            (
                Some("r.example:5000/a/app:2"),
                "r.example:5000/a/app:1",
                false,
            ),
            (None, "r.example:5000/a/app:1", false),
        ] {
            let label = |name: &str| (IMAGE_REF.to_owned(), name.to_owned());
            let found: Labels = found.map(label).into_iter().collect();
            let wanted = Labels::from([label(wanted)]);
            let gives_way = is_from_the_pull(&found, &wanted, &digest);
            assert_eq!(gives_way, expected, "{found:?}, {wanted:?}");
        }
    }
}
