//! One containerd for several tests whose pods do not interfere.

use std::sync::{Arc, Weak};

use anyhow::Result;
use tokio::sync::Mutex;

use crate::containerd::Lab;
use crate::options::{Options, Version};

/// A lab in a `static`: the first test that needs it starts it, and it ends when the last user drops it.
///
/// The `static` holds no strong reference, because it is never dropped. Sequential tests may therefore start
/// the lab several times, for half a second each.
#[derive(Debug)]
pub struct Shared {
    version: Version,
    lab: Mutex<Weak<Lab>>,
}

impl Shared {
    /// Returns a lab of this version with its default options, not started.
    pub const fn new(version: Version) -> Self {
        Self {
            version,
            lab: Mutex::const_new(Weak::new()),
        }
    }

    /// Returns the running lab.
    ///
    /// # Errors
    /// If it does not start.
    pub async fn get(&self) -> Result<Arc<Lab>> {
        let mut running = self.lab.lock().await;
        if let Some(lab) = running.upgrade() {
            return Ok(lab);
        }
        let lab = Arc::new(Lab::start_with(self.version, Options::new(self.version)).await?);
        *running = Arc::downgrade(&lab);
        Ok(lab)
    }
}
