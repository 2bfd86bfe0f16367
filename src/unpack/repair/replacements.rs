//! The background replacement of chains in use: each is tried again until it is replaced, or need not be replaced any
//! more.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};

use crate::retry;
use crate::unpack::chain::action::Action;
use crate::unpack::schedule::progress::{Done, Outcome};

/// The longest pause between the first attempts. The pauses begin short, since containerd removes the snapshot of a
/// rejected container within 0.2 s.
const LONGEST_PAUSE: Duration = Duration::from_secs(10);

/// The number of attempts before the log reports that the chain is still in use. With the pauses they take some
/// minutes.
const UNREPORTED_ATTEMPTS: usize = 30;

/// The number of attempts after which the user of a chain counts as long-lived. They take longer than containerd needs
/// to remove a rejected sandbox, and end before the kubelet's next try.
const ATTEMPTS_UNTIL_HELD: usize = 5;

/// The pause between the later attempts: a container may run for months, and each attempt lists all snapshots.
const LATER_PAUSE: Duration = Duration::from_secs(5 * 60);

/// A snapshotter and an image.
type Key = (String, String);

/// The running replacements, with the number of failed attempts of each.
#[derive(Debug, Default)]
pub(crate) struct Replacements(Arc<Mutex<HashMap<Key, usize>>>);

/// A running replacement, until it is dropped.
#[derive(Debug)]
pub(crate) struct Replacement {
    key: Key,
    replacements: Arc<Mutex<HashMap<Key, usize>>>,
}

impl Replacements {
    /// Begins a replacement of the image's chain; `None` if one is running.
    pub(crate) fn begin(&self, image: &str, snapshotter: &str) -> Option<Replacement> {
        let key = (snapshotter.to_owned(), image.to_owned());
        let mut attempts = self.lock();
        if attempts.contains_key(&key) {
            return None;
        }
        attempts.insert(key.clone(), 0);
        Some(Replacement {
            key,
            replacements: self.0.clone(),
        })
    }

    /// Whether several attempts to replace the chain have failed: its user is not a short-lived one.
    pub(crate) fn is_held(&self, image: &str, snapshotter: &str) -> bool {
        let key = (snapshotter.to_owned(), image.to_owned());
        self.lock()
            .get(&key)
            .is_some_and(|attempts| *attempts >= ATTEMPTS_UNTIL_HELD)
    }

    /// Takes the lock and releases it.
    pub(crate) fn probe_locks(&self) {
        drop(self.lock());
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<Key, usize>> {
        self.0.lock()
    }
}

impl Replacement {
    /// Repeats the attempt, with pauses, until the chain is replaced or need not be replaced any more.
    pub(crate) async fn run<F: Future<Output = Outcome>>(self, attempt: impl Fn() -> F) {
        let (snapshotter, image) = (self.key.0.as_str(), self.key.1.as_str());
        for (n, pause) in retry::pauses_up_to(LONGEST_PAUSE).enumerate() {
            let pause = if n > UNREPORTED_ATTEMPTS {
                LATER_PAUSE
            } else {
                pause
            };
            tokio::time::sleep(pause).await;
            if n == UNREPORTED_ATTEMPTS {
                log::info!(image, snapshotter; "chain that was unpacked on the host is still in use: its containers keep running, new containers are moved onto another chain, and the plugin tries to replace it every {LATER_PAUSE:?}");
            }
            match attempt().await {
                // Another flight has replaced it.
                Ok(Done {
                    action: Action::None,
                    ..
                }) => return,
                Ok(done) => {
                    log::info!(image, snapshotter, state:% = done.found, action:% = done.action; "chain that was unpacked on the host and was in use is replaced");
                    return;
                }
                Err(e) if e.may_pass() => {
                    if let Some(attempts) = self.replacements.lock().get_mut(&self.key) {
                        *attempts = n + 1;
                    }
                    log::debug!(image, snapshotter, error:% = e; "chain could not be replaced yet: the plugin tries again");
                }
                Err(e) => {
                    return log::debug!(image, snapshotter, error:% = e; "chain cannot be replaced: the plugin does not try again");
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
