//! The time of the last look for another client that unpacks the same image. Small layers take less time than a look.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

/// The time after a look without another client in which the next layers of the image do not look again.
const PAUSE: Duration = Duration::from_millis(50);

/// When the layers of an image last looked for another client in vain.
#[derive(Debug, Default)]
pub(crate) struct LastLook(Mutex<Option<Instant>>);

impl LastLook {
    /// Whether the next layer looks.
    pub(crate) fn is_due(&self) -> bool {
        self.0.lock().is_none_or(|looked| looked.elapsed() >= PAUSE)
    }

    /// Records a look that found no other client.
    pub(crate) fn unseen(&self) {
        *self.0.lock() = Some(Instant::now());
    }
}
