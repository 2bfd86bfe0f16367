//! What the layers of an image know of another client that unpacks it at the same time. A small layer takes less time than
//! a look for the other client, so not each layer looks.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The time after a look that found no other client in which the next layers of the image do not look again.
const PAUSE: Duration = Duration::from_millis(50);

/// The last look for another client.
#[derive(Debug, Default)]
pub(crate) struct LastLook(Mutex<Looks>);

#[derive(Debug, Default)]
struct Looks {
    /// When the last look found no other client.
    found_none: Option<Instant>,
    /// Whether a look has found one.
    has_found: bool,
}

impl LastLook {
    /// Whether the next layer looks.
    pub(crate) fn is_due(&self) -> bool {
        let looked = self.0.lock().found_none;
        looked.is_none_or(|looked| looked.elapsed() >= PAUSE)
    }

    /// Whether another client was found.
    pub(crate) fn has_found(&self) -> bool {
        self.0.lock().has_found
    }

    /// Records a look that found another client.
    pub(crate) fn found(&self) {
        let mut looks = self.0.lock();
        looks.has_found = true;
        looks.found_none = None;
    }

    /// Records a look that found no other client.
    pub(crate) fn found_none(&self) {
        self.0.lock().found_none = Some(Instant::now());
    }
}
