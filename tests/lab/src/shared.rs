//! One containerd for the tests of a file that do not mind each other's pods.

use std::sync::{Arc, Weak};

use anyhow::Result;
use tokio::sync::Mutex;

use crate::containerd::Lab;
use crate::options::{Options, Version};

/// A lab in a `static`: the first test that asks starts it, the last one that holds it takes it down.
///
/// It is not kept alive by the `static` itself, which is never dropped. Tests that run one after another may
/// therefore start it again, for half a second each.
#[derive(Debug)]
pub struct Shared {
    version: Version,
    lab: Mutex<Weak<Lab>>,
}

impl Shared {
    /// A lab of this version with its own options, not started yet.
    pub const fn new(version: Version) -> Self {
        Self {
            version,
            lab: Mutex::const_new(Weak::new()),
        }
    }

    /// The lab, running.
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
