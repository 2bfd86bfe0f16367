//! The queue of replacements without an engine.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use crate::containerd::fake::Fake;
use crate::unpack::chain::error::Error;
use crate::unpack::repair::replacements::{ReplacementQueue, Source};
use crate::unpack::target::images::Images;

/// Runs the queue's task until it ends, and returns the number of attempts. The first one panics, if `panics`.
async fn run(queue: &Arc<ReplacementQueue>, panics: bool) -> (usize, bool) {
    let attempts = Arc::new(AtomicUsize::new(0));
    let (queue, made) = (queue.clone(), attempts.clone());
    let task = tokio::spawn(async move {
        let fake = Arc::new(Fake::default());
        let images = Images::new(fake.clone());
        let source = Source {
            containerd: fake.as_ref(),
            images: &images,
            snapshotter: "nydus",
        };
        let replace = |image: String| {
            made.fetch_add(1, Ordering::Relaxed);
            assert!(!panics, "an attempt panics");
            // It ends the work on the image.
            async { Err(Arc::new(Error::Removed(image))) }
        };
        queue.run(&source, replace).await;
    });
    let has_ended = task.await.is_ok();
    (attempts.load(Ordering::Relaxed), has_ended)
}

/// The image whose attempt has panicked is tried again with the next one.
#[tokio::test(start_paused = true)]
async fn after_a_panic_the_next_image_starts_the_task_again() {
    let queue = Arc::new(ReplacementQueue::default());
    assert!(queue.add("first"));
    assert!(!queue.add("second"));
    assert_eq!(run(&queue, true).await, (1, false));
    assert!(queue.add("third"), "the task is not started again");
    let running = tokio::time::timeout(Duration::from_secs(60), run(&queue, false));
    assert_eq!(running.await, Ok((3, true)));
    assert!(queue.add("fourth"));
}
