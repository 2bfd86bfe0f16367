//! Prepares the snapshot that a layer is unpacked into. A `Prepare` with labels may wait for a registry that does not
//! answer; it is left when another client has committed the layer meanwhile.

use std::pin::pin;
use std::time::Duration;

use tokio::time::Instant;

use crate::containerd::{self, Labels, Mount, Resource};
use crate::image::{self, IMAGE_REF};

use super::content::Content;
use super::unpack::{Failure, Unpack};

/// The number of attempts to prepare a snapshot. *AlreadyExists* although the chain id does not exist, or
/// *NotFound* although the parent exists, means that another client unpacks or removes the chain at the same
/// time. containerd's own unpacker tries three times without a pause; a replacement by another process takes
/// longer.
const TRIES: u32 = 5;

/// The pause before the second attempt. It doubles before each further one.
const PAUSE: Duration = Duration::from_millis(10);

/// How long a stopped unpack waits for a `Prepare` that is running: well within the time that the daemon
/// has for its own cleanup.
const LAST: Duration = Duration::from_secs(5);

/// The time after which a `Prepare` runs long, and it is looked whether another client has committed the layer.
const FIRST_LOOK: Duration = Duration::from_millis(300);

/// The same if it may wait for a registry that did not answer before. A `Prepare` of a layer that exists is answered
/// sooner.
const FIRST_LOOK_IF_SILENT: Duration = Duration::from_millis(50);

/// The time between further looks.
const LOOK: Duration = Duration::from_millis(200);

/// The time after which a registry that a `Prepare` waits for counts as silent.
const SILENT: Duration = Duration::from_secs(1);

/// What became of a call of `Prepare`.
enum Prepared {
    Answered(Result<Vec<Mount>, containerd::Error>),
    /// The unpack was stopped first.
    Stopped,
    /// Another client has committed the layer first.
    Committed,
}

impl Unpack<'_> {
    /// Prepares an active snapshot to unpack into; `None` if the layer exists already.
    pub(super) async fn prepare(
        &self,
        content: &Content,
        parent: Option<&str>,
    ) -> Result<Option<(String, Vec<Mount>)>, Failure> {
        let chain_id = &self.layer.chain_id;
        let mut last = None;
        for n in 0..TRIES {
            if n > 0 {
                tokio::time::sleep(PAUSE * 2_u32.pow(n - 1)).await;
            }
            let key = self.lease.extraction_key(chain_id);
            let labels = content.labels(self.labels);
            let prepared = match self.try_prepare(&key, parent, labels).await {
                Prepared::Answered(prepared) => prepared,
                Prepared::Stopped => {
                    self.remove(&key).await;
                    return Err(Failure::Stopped);
                }
                Prepared::Committed => {
                    log::debug!(image = self.image, snapshotter = self.snapshotter, chain_id = chain_id.as_str(); "another client has committed the layer, for which the snapshotter did not answer yet: the plugin does not wait for the answer");
                    self.remove(&key).await;
                    // The snapshotter may still make the snapshot.
                    self.lease.remove_later(self.snapshotter, key);
                    return Ok(None);
                }
            };
            match prepared {
                Ok(_) if self.is_for_guest => {
                    self.remove(&key).await;
                    return Err(Failure::NotLeftToGuest);
                }
                Ok(mounts) => return Ok(Some((key, mounts))),
                Err(e) if e.already_exists() => {
                    if self.is_committed().await? {
                        return Ok(None);
                    }
                    last = Some(e);
                }
                Err(e) => {
                    // If only the answer was lost, the snapshot exists.
                    self.remove(&key).await;
                    match self.unless_gone(parent, e).await {
                        // The client that removed the parent may have made it again since.
                        Failure::Containerd(e) if e.is_not_found() => last = Some(e),
                        failure => return Err(failure),
                    }
                }
            }
        }
        let Some(last) = last else {
            return Err(Failure::Stopped);
        };
        if last.already_exists() && self.is_lost().await? {
            return Err(Failure::Lost);
        }
        Err(Failure::Containerd(last))
    }

    /// Whether the snapshotter has lost the layer. `Prepare` has put its record under the lease, which would keep it: it is
    /// taken out.
    async fn is_lost(&self) -> Result<bool, containerd::Error> {
        let (snapshotter, chain_id) = (self.snapshotter, &self.layer.chain_id);
        let is_lost = self.containerd.has_record(snapshotter, chain_id).await?;
        if is_lost {
            let record = Resource::snapshot(snapshotter, chain_id);
            self.containerd.release(self.lease.id(), record).await?;
        }
        Ok(is_lost)
    }

    /// Calls `Prepare`, until the unpack is stopped or another client has committed the layer.
    async fn try_prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Prepared {
        let prepared = self.await_prepare(key, parent, labels).await;
        self.reporter.stalls(false);
        prepared
    }

    async fn await_prepare(&self, key: &str, parent: Option<&str>, labels: Labels) -> Prepared {
        let registry = self.registry(&labels).await;
        let silent = &self.layers.silent_registries;
        let is_silent = registry
            .as_ref()
            .is_some_and(|registry| silent.has(registry));
        // Since when the snapshotter answers other calls, but not this one.
        let mut answers_since = Instant::now();
        let id = self.lease.id();
        let prepare = self
            .containerd
            .prepare(id, self.snapshotter, key, parent, labels);
        let mut prepare = pin!(prepare);
        let mut pause = match is_silent {
            true => FIRST_LOOK_IF_SILENT,
            false => FIRST_LOOK,
        };
        loop {
            let look = async {
                tokio::time::sleep(pause).await;
                let asked = Instant::now();
                (self.is_committed().await, asked.elapsed())
            };
            tokio::select! {
                biased;
                () = self.stop.cancelled() => {
                    // If containerd makes the snapshot after the removal, it remains: the lease is kept, so that the
                    // sweep removes it.
                    if tokio::time::timeout(LAST, prepare).await.is_err() {
                        self.lease.keep();
                    }
                    return Prepared::Stopped;
                }
                answer = prepare.as_mut() => return Prepared::Answered(answer),
                (committed, took) = look => {
                    // If the look was not answered in time either, the snapshotter hangs.
                    if committed.is_err() || took >= SILENT {
                        answers_since = Instant::now();
                    }
                    if let Some(registry) = &registry
                        && answers_since.elapsed() >= SILENT
                    {
                        silent.found(self.snapshotter, registry);
                    }
                    // An error counts as `false`: `Prepare` reports what does not work.
                    if committed.unwrap_or(false) {
                        return Prepared::Committed;
                    }
                    if is_silent {
                        self.reporter.stalls(true);
                    }
                }
            }
            pause = LOOK;
        }
    }

    /// Returns the registry that the snapshotter may ask for a layer with these labels.
    async fn registry(&self, labels: &Labels) -> Option<String> {
        let name = labels.get(IMAGE_REF).filter(|_| !self.is_for_guest)?;
        let capabilities = self.layers.facts.capabilities(self.containerd).await;
        let repository = image::repository(name).filter(|_| capabilities.is_proxy)?;
        let (registry, _) = repository.split_once('/')?;
        Some(registry.to_owned())
    }
}
