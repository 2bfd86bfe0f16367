//! What is being made ready ahead, or waits for its turn: a pod that comes meanwhile pushes it.

use std::cmp::Reverse;
use std::sync::Mutex;
use std::time::SystemTime;

use crate::unpack::Want;

use super::lock;

/// Images of a snapshotter that a new pod pushes ahead: those that came last. A pod has a handful of
/// containers, and the rest is not for it.
const MAX_PUSHED: usize = 8;

/// All of it. It is as long as there are images to make ready, in each snapshotter that is kept.
#[derive(Debug, Default)]
pub(super) struct Unready(Mutex<Waiting>);

#[derive(Debug, Default)]
struct Waiting {
    next: u64,
    pieces: Vec<Piece>,
}

#[derive(Debug)]
struct Piece {
    id: u64,
    snapshotter: String,
    want: Want,
    /// When the image came.
    came: Option<SystemTime>,
}

/// An image that is on its way into a snapshotter, until it is dropped.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    unready: &'a Unready,
    id: u64,
    snapshotter: String,
    want: Want,
}

impl Unready {
    pub(super) fn enter(
        &self,
        snapshotter: &str,
        want: Want,
        came: Option<SystemTime>,
    ) -> Entry<'_> {
        let mut waiting = lock(&self.0);
        let id = waiting.next;
        waiting.next += 1;
        waiting.pieces.push(Piece {
            id,
            snapshotter: snapshotter.to_owned(),
            want: want.clone(),
            came,
        });
        Entry {
            unready: self,
            id,
            snapshotter: snapshotter.to_owned(),
            want,
        }
    }

    /// Those that came last, the last first.
    pub(super) fn newest_in(&self, snapshotter: &str) -> Vec<Want> {
        let waiting = lock(&self.0);
        let pieces = waiting.pieces.iter();
        let mut here: Vec<_> = pieces.filter(|p| p.snapshotter == snapshotter).collect();
        here.sort_by_key(|piece| Reverse((piece.came, piece.id)));
        // One may have arrived and wait in the reconcile as well.
        let mut wants = Vec::new();
        for piece in here {
            if wants.len() < MAX_PUSHED && !wants.contains(&piece.want) {
                wants.push(piece.want.clone());
            }
        }
        wants
    }

    /// This image needs no push any more.
    pub(super) fn remove(&self, snapshotter: &str, image: &str) {
        let is_meant = |p: &Piece| p.snapshotter == snapshotter && p.want.name() == image;
        lock(&self.0).pieces.retain(|piece| !is_meant(piece));
    }
}

impl Entry<'_> {
    pub(super) fn snapshotter(&self) -> &str {
        &self.snapshotter
    }

    pub(super) fn want(&self) -> &Want {
        &self.want
    }
}

impl Drop for Entry<'_> {
    fn drop(&mut self) {
        lock(&self.unready.0).pieces.retain(|p| p.id != self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_last_that_came_are_pushed_first() {
        let unready = Unready::default();
        let enter = |snapshotter, name: &str, came: u64| {
            let came = SystemTime::UNIX_EPOCH + Duration::from_secs(came);
            unready.enter(snapshotter, Want::Image(name.to_owned()), Some(came))
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
}
