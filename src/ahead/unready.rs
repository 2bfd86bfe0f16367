//! The images of a snapshotter that are being made ready ahead, or wait for it. A new pod raises the priority of the
//! newest of them.

use parking_lot::Mutex;
use std::cmp::Reverse;
use std::collections::HashSet;
use std::time::SystemTime;

use crate::unpack::Want;

/// The limit of images whose priority a new pod raises, newest first. A pod has a handful of containers, so it does
/// not need the others.
const MAX_PUSHED: usize = 8;

/// All such images of one snapshotter: at most one entry per image for a reconcile, and one per job.
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
    want: Want,
    /// The target digest of the image's record.
    record: String,
    /// When the image was created in the store.
    came: Option<SystemTime>,
    /// Whether a pod has raised its priority.
    is_raised: bool,
}

/// Keeps an image in [`Unready`] until it is dropped.
#[derive(Debug)]
pub(super) struct PendingGuard<'a> {
    unready: &'a Unready,
    id: u64,
    want: Want,
    record: String,
}

impl Unready {
    pub(super) fn enter(
        &self,
        want: Want,
        record: &str,
        came: Option<SystemTime>,
    ) -> PendingGuard<'_> {
        let mut waiting = self.0.lock();
        let id = waiting.next;
        waiting.next += 1;
        waiting.images.push(PendingImage {
            id,
            want: want.clone(),
            record: record.to_owned(),
            came,
            is_raised: false,
        });
        PendingGuard {
            unready: self,
            id,
            want,
            record: record.to_owned(),
        }
    }

    /// Returns the number of the next entry.
    pub(super) fn next(&self) -> u64 {
        self.0.lock().next
    }

    /// Removes the images with a number below `next` that had a record and have none any more. Returns the record and
    /// the name of each.
    pub(super) fn take_removed(&self, records: &HashSet<&str>, next: u64) -> Vec<(String, String)> {
        self.take(|p| p.id < next && !records.contains(p.record.as_str()))
    }

    /// Removes an image that is gone from the store. Returns its name if it was still here.
    pub(super) fn take_record(&self, record: &str) -> Option<String> {
        self.take(|p| p.record == record)
            .pop()
            .map(|(_, name)| name)
    }

    fn take(&self, is_gone: impl Fn(&PendingImage) -> bool) -> Vec<(String, String)> {
        let mut waiting = self.0.lock();
        let is_gone = |p: &mut PendingImage| !matches!(p.want, Want::Arriving(_)) && is_gone(p);
        let gone = waiting.images.extract_if(.., is_gone);
        gone.map(|p| (p.record, p.want.name().to_owned())).collect()
    }

    /// Returns the newest images, up to [`MAX_PUSHED`], without those that it has returned before: their priority is
    /// raised already.
    pub(super) fn raise_newest(&self) -> Vec<Want> {
        let mut waiting = self.0.lock();
        waiting
            .images
            .sort_by_key(|image| Reverse((image.came, image.id)));
        // An image may be here twice: from its arrival and from a reconcile.
        let mut newest: Vec<Want> = Vec::new();
        let mut raised = Vec::new();
        for image in &mut waiting.images {
            let is_new = !newest.contains(&image.want);
            if is_new && newest.len() == MAX_PUSHED {
                break;
            }
            if is_new {
                newest.push(image.want.clone());
            }
            if !std::mem::replace(&mut image.is_raised, true) && is_new {
                raised.push(image.want.clone());
            }
        }
        raised
    }

    /// Removes an image: it is ready.
    pub(super) fn remove(&self, image: &str) {
        let is_meant = |p: &PendingImage| p.want.name() == image;
        self.0.lock().images.retain(|piece| !is_meant(piece));
    }
}

impl PendingGuard<'_> {
    pub(super) fn want(&self) -> &Want {
        &self.want
    }

    pub(super) fn record(&self) -> &str {
        &self.record
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
    fn the_newest_images_are_raised_once() {
        let unready = Unready::default();
        let enter = |name: &str, came: u64| {
            let came = SystemTime::UNIX_EPOCH + Duration::from_secs(came);
            unready.enter(Want::Image(name.to_owned()), name, Some(came))
        };
        let mut entries = vec![enter("middle", 2), enter("newest", 3), enter("oldest", 1)];
        let raised = || {
            let wants = unready.raise_newest();
            let names = wants.iter().map(|want| want.name().to_owned());
            names.collect::<Vec<_>>()
        };
        assert_eq!(raised(), ["newest", "middle", "oldest"]);
        assert_eq!(raised(), [""; 0]);
        // The same image arrives again.
        entries.push(enter("oldest", 4));
        assert_eq!(raised(), ["oldest"]);
        let more: Vec<_> = (10..20).map(|n| n.to_string()).collect();
        entries.extend(more.iter().zip(10..).map(|(n, came)| enter(n, came)));
        unready.remove("19");
        let newest: Vec<_> = more[..9].iter().rev().take(MAX_PUSHED).collect();
        assert_eq!(raised().iter().collect::<Vec<_>>(), newest);
        assert_eq!(raised(), [""; 0]);
        drop(entries.pop());
        drop(entries.pop());
        assert_eq!(raised(), ["10"]);
    }

    #[test]
    fn a_removed_image_is_returned_once() {
        let unready = Unready::default();
        let enter = |name: &str, record| unready.enter(Want::Image(name.to_owned()), record, None);
        let _entries = [enter("a", "1"), enter("b", "2")];
        let next = unready.next();
        let _later = enter("c", "3");
        let gone = unready.take_removed(&HashSet::from(["2"]), next);
        assert_eq!(gone, [("1".to_owned(), "a".to_owned())]);
        assert_eq!(unready.take_record("1"), None);
        assert_eq!(unready.take_record("2").as_deref(), Some("b"));
        assert_eq!(unready.take_record("3").as_deref(), Some("c"));
    }
}
