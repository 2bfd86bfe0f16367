//! The blobs that a manifest's gc labels keep from garbage collection.

use std::collections::HashSet;

use crate::containerd::{self, Containerd, Labels};
use crate::image::Manifest;

/// The prefix of a manifest's gc labels, one for each blob that the manifest keeps.
const KEEPS: &str = "containerd.io/gc.ref.content";

/// Returns the blobs that the gc labels of a manifest keep from garbage collection; none if the manifest does
/// not exist.
pub(crate) async fn kept_by(
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

/// Returns the changes that restore a manifest's gc labels, so that it keeps the blobs that it kept before and
/// no others.
pub(crate) fn changes_back(before: &Labels, now: &Labels) -> Labels {
    let keeps = now.iter().filter(|(key, _)| key.starts_with(KEEPS));
    let changed = keeps.filter(|(key, value)| before.get(*key) != Some(value));
    // An empty value removes a label.
    let back = changed.map(|(key, _)| (key.clone(), before.get(key).cloned().unwrap_or_default()));
    back.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn added_gc_labels_are_removed_and_changed_ones_are_restored() {
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
