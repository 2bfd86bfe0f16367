//! Tries to create a pod: the kubelet tries again, and each failure needs a kill that explains it.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::Image;
use tokio::time::Instant;

use super::{Counts, Kills};
use crate::guest_pull::NYDUS;
use crate::pods::Pods;
use crate::support::PATIENCE;

/// The kubelet retries; a killed containerd takes some seconds to return.
pub(super) const BETWEEN_TRIES: Duration = Duration::from_millis(500);

/// The prefix of the plugin's own errors.
const REJECTION: &str = "nri-unpack:";

impl Pods {
    /// Pulls an image, creates a pod and a container of it, and removes them. A try fails only because of a kill; the
    /// plugin rejects one only where it does not reach the snapshotter.
    pub(crate) async fn create(
        &mut self,
        image: &Image,
        kills: &Kills,
        counts: &mut Counts,
    ) -> Result<()> {
        let what = format!("{} on «{}»", image.name(), self.handler);
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let begun = kills.begin();
            let (cause, failure) = match self.try_once(image).await {
                Ok(true) => {
                    counts.made += 1;
                    return Ok(());
                }
                Ok(false) => {
                    ensure!(self.handler == NYDUS, "{what}: files differ from the image");
                    let cause = kills.of_host_unpack(&begun, self.handler);
                    (cause, "unpacked on the host".to_owned())
                }
                Err(error) => {
                    let cause = match error.message().contains(REJECTION) {
                        true => kills.of_rejection(&begun, self.handler),
                        false => kills.of_error(&begun, self.handler, &error),
                    };
                    (cause, error.message().to_owned())
                }
            };
            println!("{what}: {cause:?} killed: {failure}");
            let cause = cause.with_context(|| format!("{what}: no kill explains: {failure}"))?;
            *counts.failed.entry(cause).or_default() += 1;
            tokio::time::sleep(BETWEEN_TRIES).await;
        }
        anyhow::bail!("{what}: no pod within {PATIENCE:?}")
    }
}
