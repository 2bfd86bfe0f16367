//! What is known of one snapshotter itself: its capabilities, and whether the guest pulls its images.

use super::capabilities::{Capabilities, CapabilityCache};
use super::findings::Finding;
use crate::containerd::{self, Containerd};
use crate::question::Question;

/// What is known of one snapshotter.
#[derive(Debug)]
pub(crate) struct Facts {
    /// Its name.
    pub(crate) snapshotter: String,
    capabilities: CapabilityCache,
    /// Whether the guest pulls its images, where that had to be found out.
    pub(crate) guest_pulls: Finding,
    /// The probe of it.
    pub(crate) guest_pull_question: Question<Result<bool, containerd::Error>>,
}

impl Facts {
    /// Nothing is known yet.
    pub(crate) fn new(snapshotter: &str) -> Self {
        Self {
            snapshotter: snapshotter.to_owned(),
            capabilities: CapabilityCache::default(),
            guest_pulls: Finding::default(),
            guest_pull_question: Question::default(),
        }
    }

    /// Returns the capabilities. Asks containerd once; after an error the next call asks again.
    pub(crate) async fn capabilities(&self, containerd: &dyn Containerd) -> Capabilities {
        self.capabilities.of(containerd, &self.snapshotter).await
    }

    /// Like [`Self::capabilities`], for a decision that must not be made without an answer.
    pub(crate) async fn capabilities_now(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<Capabilities, containerd::Error> {
        self.capabilities.known(containerd, &self.snapshotter).await
    }

    /// Forgets what was found out, since containerd may have been restarted with another version or configuration.
    pub(crate) fn forget(&self) {
        self.capabilities.forget();
        self.guest_pulls.forget();
    }
}
