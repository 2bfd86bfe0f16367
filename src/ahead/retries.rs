//! Images that could not be made ready in a snapshotter: each is tried again by itself, with growing pauses.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;

/// The pause after the first failure. Each further failure doubles it.
const SHORTEST_PAUSE: Duration = Duration::from_secs(10);

/// The longest pause: what an image lacks may have come back without an event, and the metrics show that it still
/// fails.
const LONGEST_PAUSE: Duration = Duration::from_secs(10 * 60);

/// The limit of remembered images: more than a node has. Images beyond it are found by the next reconcile.
const MAX_IMAGES: usize = 1024;

/// The images of a snapshotter that are tried again, by name.
#[derive(Debug, Default)]
pub(super) struct Retries {
    images: Mutex<HashMap<String, Retry>>,
    /// Notified when an image was added.
    added: Notify,
}

#[derive(Debug)]
struct Retry {
    pause: Duration,
    /// The time of the next try; `None` while it is being tried.
    at: Option<Instant>,
}

impl Retries {
    /// Records that an image could not be made ready.
    pub(super) fn failed(&self, image: &str) {
        let mut images = self.images.lock();
        let pause = match images.get(image) {
            // Another try of the same image has failed meanwhile.
            Some(Retry { at: Some(at), .. }) if *at > Instant::now() => return,
            Some(retry) => (retry.pause * 2).min(LONGEST_PAUSE),
            None if images.len() >= MAX_IMAGES => return,
            None => SHORTEST_PAUSE,
        };
        let at = Some(Instant::now() + pause);
        images.insert(image.to_owned(), Retry { pause, at });
        self.added.notify_one();
    }

    /// Forgets an image: it is ready, or gone. Returns whether it had failed before.
    pub(super) fn forget(&self, image: &str) -> bool {
        self.images.lock().remove(image).is_some()
    }

    /// Forgets an image whose try has ended without a further failure.
    pub(super) fn tried(&self, image: &str) {
        let mut images = self.images.lock();
        if images.get(image).is_some_and(|retry| retry.at.is_none()) {
            images.remove(image);
        }
    }

    /// Waits until images have to be tried again, and returns them.
    pub(super) async fn due(&self) -> Vec<String> {
        loop {
            let next = self
                .images
                .lock()
                .values()
                .filter_map(|retry| retry.at)
                .min();
            let Some(next) = next else {
                self.added.notified().await;
                continue;
            };
            tokio::select! {
                () = tokio::time::sleep_until(next) => {}
                () = self.added.notified() => continue,
            }
            let now = Instant::now();
            let mut images = self.images.lock();
            let due = images
                .iter_mut()
                .filter(|(_, retry)| retry.at.is_some_and(|at| at <= now));
            let due = due.map(|(image, retry)| {
                retry.at = None;
                image.clone()
            });
            return due.collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn the_pauses_grow_until_the_image_is_ready() {
        let retries = Retries::default();
        let mut pauses = Vec::new();
        for _ in 0..9 {
            let began = Instant::now();
            retries.failed("a");
            assert_eq!(retries.due().await, ["a"]);
            pauses.push(began.elapsed().as_secs());
        }
        assert_eq!(pauses, [10, 20, 40, 80, 160, 320, 600, 600, 600]);
        retries.failed("a");
        assert!(retries.forget("a") && !retries.forget("a"));
        let never = tokio::time::timeout(Duration::from_secs(3600), retries.due());
        assert!(never.await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_image_has_one_next_try() {
        let retries = Retries::default();
        retries.failed("a");
        retries.failed("a");
        tokio::time::advance(SHORTEST_PAUSE / 2).await;
        retries.failed("b");
        assert_eq!(retries.due().await, ["a"]);
        assert_eq!(retries.due().await, ["b"]);
        // The try of `a` ended without a failure, that of `b` with one.
        retries.failed("b");
        retries.tried("a");
        retries.tried("b");
        assert_eq!(retries.due().await, ["b"]);
        assert!(!retries.forget("a"));
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let retries = Retries::default();
        for n in 0..2 * MAX_IMAGES {
            retries.failed(&n.to_string());
        }
        assert_eq!(retries.images.lock().len(), MAX_IMAGES);
    }
}
