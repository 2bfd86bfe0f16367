//! Unpacks one layer: prepare, apply, verify, commit; or abort. The steps and their order are those of
//! containerd's own unpacker, so that both can work on one chain at the same time. A layer that containerd is at is
//! left to it: see `other_client`. `prepare` has the first step.
//!
//! The parent is named when the snapshot is prepared, and must exist at that time. If the snapshotter can
//! rebase, the parent is named at the commit instead. The unpack fails if the layer's blob is gone: this file
//! does not know which other content is tried next.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Descriptor, Labels, Mount, Payloads};
use crate::image::{Layer, Manifest, stated_bytes};
use crate::metrics;

use super::content::Content;
use super::decryption;
use crate::unpack::chain::action::Action;
use crate::unpack::schedule::last_look::LastLook;
use crate::unpack::schedule::layer_locks::LayerLock;
use crate::unpack::schedule::limits::Layers;
use crate::unpack::schedule::place::Place;
use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::process_lock::{ProcessLock, process_lock};
use crate::unpack::schedule::progress::Reporter;
use crate::unpack::snapshotter::lease::Lease;
use crate::unpack::snapshotter::{guest_pull, mounts};

/// The time after which an apply is expected to run. An apply whose blob is gone fails sooner.
const REFUSED: Duration = Duration::from_millis(20);

/// The time after which an apply may hang, as on a device that is full: it no longer counts among those that run, so that
/// it holds up no other snapshotter. Of a large layer on a slow disk, another apply runs beside it then.
const HANGS: Duration = Duration::from_secs(5 * 60);

/// The label of a verified layer's blob. Its value is the digest of the uncompressed content.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How a layer was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// By this unpack, from its blob or from content that the snapshotter already had.
    Applied,
    /// By this unpack, from the content of another snapshotter.
    Rebuilt,
    /// It existed: another client unpacked it, or the snapshotter needs no content for it.
    Existed,
}

impl From<Committed> for Action {
    /// Returns the action to report. A layer that another client committed meanwhile counts as unpacked.
    fn from(committed: Committed) -> Self {
        match committed {
            Committed::Applied | Committed::Existed => Self::Unpacked,
            Committed::Rebuilt => Self::Rebuilt,
        }
    }
}

/// The reason why a layer was not committed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The content store does not have the blob. Holds why each fallback failed.
    #[error("its blob is not in the content store")]
    NoBlob(Vec<String>),
    /// The blob is encrypted, and containerd does not decrypt it.
    #[error("it is encrypted: {0}")]
    Encrypted(containerd::Error),
    /// The content has this digest instead of the layer's diff id.
    #[error("it unpacks to {0}")]
    WrongDiffId(String),
    /// The snapshotter asks for the content, although the guest is to pull the image.
    #[error("the snapshotter does not leave it to the guest")]
    NotLeftToGuest,
    /// The parent was removed meanwhile: another client replaces the chain.
    #[error("the layer below it was removed")]
    ParentGone,
    /// Another client has committed this layer and all others of the image.
    #[error("another client has committed the image")]
    AllCommitted,
    /// containerd's metadata has a record of the layer, and the snapshotter has lost it.
    #[error("the snapshotter has lost it")]
    Lost,
    #[error("stopped")]
    Stopped,
}

/// The unpack of one layer.
pub(crate) struct Unpack<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) snapshotter: &'a str,
    pub(crate) lease: &'a Lease,
    /// The image's name.
    pub(crate) image: &'a str,
    pub(crate) manifest: &'a Manifest,
    pub(crate) layer: &'a Layer,
    /// The chain id of the layer below.
    pub(crate) parent: Option<&'a str>,
    pub(crate) labels: &'a Labels,
    /// The guest pulls the image: the snapshotter needs no content.
    pub(crate) is_for_guest: bool,
    /// The locks of the layers, and the semaphore of the applies.
    pub(crate) layers: &'a Layers,
    /// The last look for another client that unpacks the image; `None` if each layer looks.
    pub(crate) last_look: Option<&'a LastLook>,
    pub(crate) reporter: &'a Reporter,
    pub(crate) priority: &'a Priority,
    /// The flight's place among the images that are unpacked at the same time; `None` outside of a flight.
    pub(crate) place: Option<&'a Place<'a>>,
    pub(crate) stop: &'a CancellationToken,
}

/// The locks of one layer: until they are dropped, no other flight and no other process unpacks it.
pub(crate) struct LayerGuard {
    _process: ProcessLock,
    _flight: LayerLock,
}

/// When the parent of a layer is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Join {
    /// By `Prepare`.
    AtPrepare,
    /// By `Commit`. Only for a snapshotter that can rebase.
    AtCommit,
}

/// A snapshot that holds a layer's content and is to be committed.
#[derive(Debug)]
pub(crate) struct Filled {
    key: String,
    join: Join,
    /// Whether the snapshotter had the content, so that no blob was applied.
    staged: bool,
}

/// The outcome of filling a snapshot that has no parent.
#[derive(Debug)]
pub(crate) enum Apart {
    Filled(Filled),
    /// The layer exists already.
    Exists,
    /// The layer needs its parent. Either the blob is gone, and the fallback's content is applied onto the
    /// parent; or the layer's deletions would be lost without it.
    NeedsBelow,
}

impl Unpack<'_> {
    /// Waits for the locks of the layer, against other flights of this process and against other processes.
    pub(crate) async fn lock(&self) -> Result<LayerGuard, Failure> {
        let (snapshotter, chain_id) = (self.snapshotter, &self.layer.chain_id);
        let guard = async {
            let wake = || {
                self.layers.limits.permits.wake();
                self.place.iter().for_each(|place| place.wake());
            };
            let layer_locks = &self.layers.layer_locks;
            let layer_lock = layer_locks.lock(chain_id, self.priority, wake).await;
            LayerGuard {
                _process: process_lock(self.containerd, snapshotter, chain_id).await,
                _flight: layer_lock,
            }
        };
        let guard = self.stop.run_until_cancelled(guard).await;
        guard.ok_or(Failure::Stopped)
    }

    /// Commits the layer under its chain id, with this content. No extraction snapshot remains on any path.
    pub(crate) async fn unpack(&self, content: &Content) -> Result<Committed, Failure> {
        if self.is_committed_by_other_client().await? {
            return Ok(Committed::Existed);
        }
        let Some((key, mounts)) = self.prepare(content, self.parent).await? else {
            return Ok(Committed::Existed);
        };
        let filled = self.fill(key, Join::AtPrepare, mounts, content).await?;
        self.settle(filled, content).await
    }

    /// Fills a snapshot without a parent with the layer's content. The layer below need not exist yet:
    /// [`Unpack::settle`] sets it as the parent.
    pub(crate) async fn fill_apart(&self, content: &Content) -> Result<Apart, Failure> {
        if self.is_committed_by_other_client().await? {
            return Ok(Apart::Exists);
        }
        let Some((key, mut mounts)) = self.prepare(content, None).await? else {
            return Ok(Apart::Exists);
        };
        if self.parent.is_some() && !mounts::are_staged(&mounts) {
            let Some(overlay) = mounts::with_whiteouts(self.snapshotter, &mounts) else {
                self.remove(&key).await;
                return Ok(Apart::NeedsBelow);
            };
            mounts = overlay;
        }
        match self.fill(key, Join::AtCommit, mounts, content).await {
            Ok(filled) => Ok(Apart::Filled(filled)),
            Err(Failure::NoBlob(_) | Failure::Encrypted(_)) => Ok(Apart::NeedsBelow),
            Err(failure) => Err(failure),
        }
    }

    async fn fill(
        &self,
        key: String,
        join: Join,
        mounts: Vec<Mount>,
        content: &Content,
    ) -> Result<Filled, Failure> {
        let staged = mounts::are_staged(&mounts);
        let filled = Filled { key, join, staged };
        if staged {
            return Ok(filled);
        }
        match self.apply(mounts, content).await {
            Ok(()) => Ok(filled),
            Err(failure) => {
                self.abort(filled).await;
                Err(failure)
            }
        }
    }

    /// Commits the filled snapshot onto its parent.
    pub(crate) async fn settle(
        &self,
        filled: Filled,
        content: &Content,
    ) -> Result<Committed, Failure> {
        match self.commit(&filled, content).await {
            Ok(true) => {}
            Ok(false) => {
                self.abort(filled).await;
                return Ok(Committed::Existed);
            }
            Err(failure) => {
                self.abort(filled).await;
                return Err(failure);
            }
        }
        if content.rebuilt_from.is_some() {
            return Ok(Committed::Rebuilt);
        }
        if filled.staged {
            return Ok(Committed::Applied);
        }
        let label = Labels::from([(UNCOMPRESSED.to_owned(), content.diff_id.clone())]);
        let digest = &content.blob.digest;
        match self.containerd.label_blob(digest, label).await {
            // Garbage collection may remove the blob as soon as the layer is committed.
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(Committed::Applied),
        }
    }

    /// Applies the content and verifies it. A blob that was gone may be back already, since another flight has fetched it.
    pub(crate) async fn apply(&self, mounts: Vec<Mount>, content: &Content) -> Result<(), Failure> {
        match self.try_apply(mounts.clone(), content).await {
            Err(Failure::Containerd(e)) if e.is_not_found() => {
                self.try_apply(mounts, content).await
            }
            applied => applied,
        }
    }

    /// Waits for a permit, then applies the content once.
    async fn try_apply(&self, mounts: Vec<Mount>, content: &Content) -> Result<(), Failure> {
        let (blob, throughput) = (&content.blob, &self.layers.throughput);
        let bytes = stated_bytes(blob);
        let payloads = self.payloads(content);
        let apply = async {
            let applying = match self.place {
                Some(place) => Some(place.apply().await),
                None => None,
            };
            let permit = self.layers.limits.permits.acquire(self.priority).await;
            let began = Instant::now();
            let mut apply = pin!(self.containerd.apply(blob, mounts, payloads));
            let mut applied = tokio::time::timeout(REFUSED, apply.as_mut()).await.ok();
            if applied.is_none() {
                self.reporter.not_before(began + throughput.least(bytes));
                applied = tokio::time::timeout(HANGS, apply.as_mut()).await.ok();
            }
            let applied = match applied {
                Some(applied) => applied,
                None => {
                    drop((applying, permit));
                    apply.await
                }
            };
            if applied.is_ok() {
                throughput.measured(bytes, began.elapsed());
            }
            applied
        };
        let applied = match self.stop.run_until_cancelled(apply).await {
            None => return Err(Failure::Stopped),
            Some(Err(e)) if self.is_gone(blob, &e).await => return Err(Failure::NoBlob(vec![])),
            // containerd decrypts the layer if it is configured to, so the apply is always tried first.
            Some(Err(e)) if self.layer.is_encrypted() && !e.is_unreachable() => {
                return Err(Failure::Encrypted(e));
            }
            Some(applied) => applied?,
        };
        if applied != content.diff_id {
            // If a stream processor fails, containerd may take the end of its output for the end of the layer.
            let is_cut_off = applied == guest_pull::NOTHING && content.rebuilt_from.is_none();
            if is_cut_off && self.layer.is_encrypted() {
                let why = "the output of its stream processor is empty";
                let e = containerd::Error::malformed("apply", &blob.digest, why);
                return Err(Failure::Encrypted(e));
            }
            return Err(Failure::WrongDiffId(applied));
        }
        metrics::layer_applied(self.snapshotter, bytes);
        Ok(())
    }

    /// Returns what containerd passes to the program that decrypts the content.
    fn payloads(&self, content: &Content) -> Payloads {
        let is_encrypted = self.layer.is_encrypted() && content.rebuilt_from.is_none();
        match is_encrypted && self.layers.limits.hands_keys_over.load(Ordering::Relaxed) {
            true => decryption::payloads(&content.blob),
            false => Payloads::new(),
        }
    }

    /// Commits the snapshot; `false` if the layer existed, or exists now and it is not known who committed it.
    async fn commit(&self, filled: &Filled, content: &Content) -> Result<bool, Failure> {
        let parent = match filled.join {
            Join::AtPrepare => None,
            Join::AtCommit => self.parent,
        };
        let chain_id = &self.layer.chain_id;
        let (lease, labels) = (self.lease.id(), content.labels(self.labels));
        let committed = self
            .containerd
            .commit(
                lease,
                self.snapshotter,
                chain_id,
                &filled.key,
                parent,
                labels,
            )
            .await;
        match committed {
            Ok(()) => Ok(true),
            Err(e) if e.already_exists() => Ok(false),
            // The answer was lost. If the layer exists, it does not matter who committed it; the caller
            // removes this extraction snapshot if it still exists.
            Err(e) if e.is_unreachable() && self.is_committed().await? => Ok(false),
            Err(e) => Err(self.unless_gone(parent, e).await),
        }
    }

    /// Returns the failure of a call: *NotFound* may mean that the parent was removed.
    pub(super) async fn unless_gone(
        &self,
        parent: Option<&str>,
        error: containerd::Error,
    ) -> Failure {
        match parent {
            Some(parent) if error.is_not_found() => match self.exists(parent).await {
                Ok(true) => error.into(),
                Ok(false) => Failure::ParentGone,
                Err(e) => e.into(),
            },
            _ => error.into(),
        }
    }

    pub(super) async fn is_committed(&self) -> Result<bool, containerd::Error> {
        self.exists(&self.layer.chain_id).await
    }

    pub(super) async fn exists(&self, chain_id: &str) -> Result<bool, containerd::Error> {
        match self.containerd.stat(self.snapshotter, chain_id).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether the apply failed because the blob is gone. The error does not say so in a form that a program
    /// can read, so the blob is looked up.
    async fn is_gone(&self, blob: &Descriptor, error: &containerd::Error) -> bool {
        !error.is_unreachable()
            && matches!(self.containerd.blob(&blob.digest).await, Err(e) if e.is_not_found())
    }

    /// Removes the snapshot instead of committing it.
    pub(crate) async fn abort(&self, filled: Filled) {
        self.remove(&filled.key).await;
    }

    pub(super) async fn remove(&self, key: &str) {
        self.lease
            .remove(self.containerd, self.snapshotter, key)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_highest_action_is_reported() {
        let done = [Action::Relabelled, Action::Unpacked, Action::Anchored];
        assert_eq!(done.into_iter().max(), Some(Action::Unpacked));
        assert!(Action::from(Committed::Rebuilt) > Action::from(Committed::Applied));
    }
}
