//! Chains that could not be replaced because something uses them: each is tried again in the background until it
//! is replaced, or need not be.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::retry;
use crate::unpack::chain::action::Action;
use crate::unpack::schedule::progress::{Done, Outcome};

/// Between tries to replace a chain in use, at most: quick at first, since containerd takes a
/// rejected container's snapshot away within 0.2 s.
const REPLACE_PAUSE: Duration = Duration::from_secs(10);

/// Tries to replace a chain in use before that is said: with those pauses, some minutes.
const TRIES_UNSAID: usize = 30;

/// Tries after which a chain counts as held by something that stays: more than it takes containerd to remove a
/// rejected sandbox, less than the kubelet's next try takes to come.
const TRIES_HELD: usize = 5;

/// Between tries after that: a container may run for months, and each try lists all snapshots.
const SELDOM: Duration = Duration::from_secs(5 * 60);

/// A snapshotter and an image.
type Key = (String, String);

/// The replacements that go on in the background.
#[derive(Debug, Default)]
pub(crate) struct Replacements(Arc<Mutex<HashMap<Key, usize>>>);

/// One replacement that goes on, until it is dropped.
#[derive(Debug)]
pub(crate) struct Replacement {
    key: Key,
    replacements: Arc<Mutex<HashMap<Key, usize>>>,
}

impl Replacements {
    /// A replacement of the image's chain; `None` where one goes on.
    pub(crate) fn begin(&self, image: &str, snapshotter: &str) -> Option<Replacement> {
        let key = (snapshotter.to_owned(), image.to_owned());
        let mut tries = self.lock();
        if tries.contains_key(&key) {
            return None;
        }
        tries.insert(key.clone(), 0);
        Some(Replacement {
            key,
            replacements: self.0.clone(),
        })
    }

    /// Whether the chain could not be replaced for some tries: something else uses it.
    pub(crate) fn is_held(&self, image: &str, snapshotter: &str) -> bool {
        let key = (snapshotter.to_owned(), image.to_owned());
        self.lock()
            .get(&key)
            .is_some_and(|tries| *tries >= TRIES_HELD)
    }

    /// Takes the lock, and releases it.
    pub(crate) fn probe_locks(&self) {
        drop(self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.0.lock()
    }
}

impl Replacement {
    /// Tries again and again, with pauses, until the chain is replaced or need not be.
    pub(crate) async fn run<F: Future<Output = Outcome>>(self, attempt: impl Fn() -> F) {
        let (snapshotter, image) = (self.key.0.as_str(), self.key.1.as_str());
        for (n, pause) in retry::pauses_up_to(REPLACE_PAUSE).enumerate() {
            let pause = if n > TRIES_UNSAID { SELDOM } else { pause };
            tokio::time::sleep(pause).await;
            if n == TRIES_UNSAID {
                log::info!(image, snapshotter; "a chain that was unpacked on the host is still in use; containers on it go on, new ones get another");
            }
            match attempt().await {
                // Somebody else was quicker.
                Ok(Done {
                    action: Action::None,
                    ..
                }) => return,
                Ok(done) => {
                    log::info!(image, snapshotter, state:% = done.found, action:% = done.action; "a chain that was unpacked on the host is replaced");
                    return;
                }
                Err(e) if e.may_pass() => {
                    if let Some(tries) = self.replacements.lock().get_mut(&self.key) {
                        *tries = n + 1;
                    }
                    log::debug!(image, snapshotter, error:% = e; "chain not replaced yet");
                }
                Err(e) => {
                    return log::debug!(image, snapshotter, error:% = e; "chain not to be replaced any more");
                }
            }
        }
    }
}

impl Drop for Replacement {
    fn drop(&mut self) {
        self.replacements.lock().remove(&self.key);
    }
}
