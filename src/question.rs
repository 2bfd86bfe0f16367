//! One question for all that ask it at the same time: they share the answer.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use tokio::sync::Mutex;

/// A question with answers of this type.
#[derive(Debug)]
pub(crate) struct Question<T> {
    /// The number of callers so far.
    asked: AtomicU64,
    /// The number of those that wait for their answer.
    waiting: AtomicUsize,
    last: Mutex<Option<Last<T>>>,
}

/// The last answer, as long as callers wait that it may be for.
#[derive(Debug)]
struct Last<T> {
    /// The number of callers that the answer is for.
    callers: u64,
    answer: T,
}

/// Counts a caller that waits, until it is answered or dropped.
struct Waiting<'a>(&'a AtomicUsize);

impl<'a> Waiting<'a> {
    fn begin(waiting: &'a AtomicUsize) -> Self {
        waiting.fetch_add(1, Ordering::SeqCst);
        Self(waiting)
    }

    fn is_last(&self) -> bool {
        self.0.load(Ordering::SeqCst) == 1
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::SeqCst);
    }
}

impl<T> Default for Question<T> {
    fn default() -> Self {
        Self {
            asked: AtomicU64::default(),
            waiting: AtomicUsize::default(),
            last: Mutex::default(),
        }
    }
}

impl<T: Clone> Question<T> {
    /// Returns an answer that was begun after this call: that of another caller, or else this one's `answer`.
    pub(crate) async fn ask(&self, answer: impl Future<Output = T>) -> T {
        self.share(answer, false).await
    }

    /// Returns an answer that was not complete before this call: that of another caller, or else this one's `answer`.
    pub(crate) async fn join(&self, answer: impl Future<Output = T>) -> T {
        self.share(answer, true).await
    }

    /// With `joined`, the answer is for all callers that come until it is complete, else for those that came before it was
    /// begun.
    async fn share(&self, answer: impl Future<Output = T>, joined: bool) -> T {
        let waiting = Waiting::begin(&self.waiting);
        let caller = self.asked.fetch_add(1, Ordering::SeqCst) + 1;
        let mut last = self.last.lock().await;
        let answer = match &*last {
            Some(last) if last.callers >= caller => last.answer.clone(),
            _ => {
                let before = self.asked.load(Ordering::SeqCst);
                let answer = answer.await;
                *last = Some(Last {
                    callers: match joined {
                        true => self.asked.load(Ordering::SeqCst),
                        false => before,
                    },
                    answer: answer.clone(),
                });
                answer
            }
        };
        if waiting.is_last() {
            *last = None;
        }
        answer
    }

    #[cfg(test)]
    pub(crate) async fn keeps_an_answer(&self) -> bool {
        self.last.lock().await.is_some()
    }
}
