//! The images that are being made ready ahead, or wait for it. A new pod raises the priority of the newest of them.

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};
use std::time::SystemTime;

use crate::unpack::Want;

/// The limit of images of a snapshotter whose priority a new pod raises, newest first. A pod has a handful of
/// containers, so it does not need the others.
const MAX_PUSHED: usize = 8;

/// All such images: at most one entry per image and managed snapshotter for a reconcile, and one per arrival.
#[derive(Debug, Default)]
pub(super) struct Unready(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    images: Vec<PendingImage>,
}

#[derive(Debug)]
struct PendingImage {
    id: u64,
    snapshotter: String,
    want: Want,
    /// The target digest of the image's record.
    record: String,
    /// When the image was created in the store.
    came: Option<SystemTime>,
}

/// Keeps an image in [`Unready`] until it is dropped.
#[derive(Debug)]
pub(super) struct PendingGuard<'a> {
    unready: &'a Unready,
    id: u64,
    snapshotter: String,
    want: Want,
    record: String,
}

impl Unready {
    pub(super) fn enter(
        &self,
        snapshotter: &str,
        want: Want,
        record: &str,
        came: Option<SystemTime>,
    ) -> PendingGuard<'_> {
        let mut waiting = self.0.lock();
        let id = waiting.next;
        waiting.next += 1;
        waiting.images.push(PendingImage {
            id,
            snapshotter: snapshotter.to_owned(),
            want: want.clone(),
            record: record.to_owned(),
            came,
        });
        PendingGuard {
            unready: self,
            id,
            snapshotter: snapshotter.to_owned(),
            want,
            record: record.to_owned(),
        }
    }

    /// Returns the number of the next entry.
    pub(super) fn next(&self) -> u64 {
        self.0.lock().next
    }

    /// Removes the images with a number below `next` that had a record and have none any more. Returns the name of
    /// each image once.
    pub(super) fn take_removed(&self, records: &HashSet<&str>, next: u64) -> Vec<String> {
        self.take(|p| p.id < next && !records.contains(p.record.as_str()))
    }

    fn take(&self, is_gone: impl Fn(&PendingImage) -> bool) -> Vec<String> {
        let is_gone = |p: &PendingImage| !matches!(p.want, Want::Arriving(_)) && is_gone(p);
        let mut waiting = self.0.lock();
        let (gone, left) = std::mem::take(&mut waiting.images)
            .into_iter()
            .partition(is_gone);
        waiting.images = left;
        let gone: Vec<PendingImage> = gone;
        let by_record = gone
            .into_iter()
            .map(|p| (p.record, p.want.name().to_owned()));
        let by_record: BTreeMap<_, _> = by_record.collect();
        by_record.into_values().collect()
    }

    /// Returns the images of a snapshotter, newest first, up to [`MAX_PUSHED`].
    pub(super) fn newest_in(&self, snapshotter: &str) -> Vec<Want> {
        let waiting = self.0.lock();
        let images = waiting.images.iter();
        let mut here: Vec<_> = images.filter(|p| p.snapshotter == snapshotter).collect();
        here.sort_by_key(|piece| Reverse((piece.came, piece.id)));
        // An image may be here twice: from its arrival and from a reconcile.
        let mut wants = Vec::new();
        for piece in here {
            if wants.len() < MAX_PUSHED && !wants.contains(&piece.want) {
                wants.push(piece.want.clone());
            }
        }
        wants
    }

    /// Removes an image: it is ready.
    pub(super) fn remove(&self, snapshotter: &str, image: &str) {
        let is_meant = |p: &PendingImage| p.snapshotter == snapshotter && p.want.name() == image;
        self.0.lock().images.retain(|piece| !is_meant(piece));
    }
}

impl PendingGuard<'_> {
    pub(super) fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    pub(super) fn want(&self) -> &Want {
        &self.want
    }

    pub(super) fn record(&self) -> &str {
        &self.record
    }

    /// Removes an image that is gone from the store, for each snapshotter. Returns its name if it was still here.
    pub(super) fn take_removed(&self) -> Option<String> {
        self.unready.take(|p| p.record == self.record).pop()
    }
}

impl Drop for PendingGuard<'_> {
    fn drop(&mut self) {
        self.unready.0.lock().images.retain(|p| p.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_newest_images_come_first() {
        let unready = Unready::default();
        let enter = |snapshotter, name: &str, came: u64| {
            let came = SystemTime::UNIX_EPOCH + Duration::from_secs(came);
            unready.enter(snapshotter, Want::Image(name.to_owned()), name, Some(came))
        };
        let mut entries = vec![enter("erofs", "middle", 2), enter("erofs", "newest", 3)];
        entries.push(enter("erofs", "oldest", 1));
        entries.push(enter("nydus", "elsewhere", 9));
        let names = || {
            let wants = unready.newest_in("erofs");
            wants
                .iter()
                .map(|w| w.name().to_owned())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(), ["newest", "middle", "oldest"]);
        unready.remove("erofs", "newest");
        assert_eq!(names(), ["middle", "oldest"]);
        entries.push(enter("erofs", "oldest", 4));
        assert_eq!(names(), ["oldest", "middle"]);
        let more: Vec<_> = (10..20).map(|n| n.to_string()).collect();
        entries.extend(
            more.iter()
                .zip(10..)
                .map(|(n, came)| enter("erofs", n, came)),
        );
        let newest: Vec<_> = more.iter().rev().take(MAX_PUSHED).collect();
        assert_eq!(names().iter().collect::<Vec<_>>(), newest);
        entries.clear();
        assert_eq!(names(), [""; 0]);
    }

    #[test]
    fn a_removed_image_is_returned_once() {
        let unready = Unready::default();
        let enter = |snapshotter, name: &str, record| {
            unready.enter(snapshotter, Want::Image(name.to_owned()), record, None)
        };
        let entries = [enter("erofs", "a", "1"), enter("nydus", "a", "1")];
        let kept = enter("erofs", "b", "2");
        let next = unready.next();
        let later = enter("erofs", "c", "3");
        assert_eq!(unready.take_removed(&HashSet::from(["2"]), next), ["a"]);
        assert_eq!(entries[1].take_removed(), None);
        assert_eq!(kept.take_removed().as_deref(), Some("b"));
        assert_eq!(later.take_removed().as_deref(), Some("c"));
    }
}
