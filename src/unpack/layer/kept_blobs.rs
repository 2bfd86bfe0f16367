//! Which blobs a manifest keeps from garbage collection by its labels.

use std::collections::HashSet;

use crate::containerd::{self, Containerd, Labels};
use crate::image::Manifest;

/// What a manifest's labels for the blobs that it keeps begin with.
const KEEPS: &str = "containerd.io/gc.ref.content";

/// The blobs that a manifest keeps from garbage collection by its labels: none where it is not there.
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

/// What to change in a manifest's labels so that it keeps the blobs that it kept before, and no
/// others.
pub(crate) fn changes_back(before: &Labels, now: &Labels) -> Labels {
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
