//! Unpacks one layer: prepare, apply, verify, commit; or abort. The steps and their order are those of containerd's own
//! unpacker, so that both can work on one chain at the same time.
//!
//! `Prepare` names the parent, which has to be committed at that time. In a snapshotter that can rebase, `Commit` names
//! it instead. The unpack fails if the layer's blob is gone; [`super::fallback`] tries other content.

use std::pin::pin;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Descriptor, Labels, Mount, Payloads};
use crate::image::{Layer, Manifest};
use crate::metrics;

use super::content::Content;
use super::decryption;
use crate::unpack::chain::action::Action;
use crate::unpack::schedule::layer_locks::LayerLock;
use crate::unpack::schedule::limits::Layers;
use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::process_lock::{ProcessLock, process_lock};
use crate::unpack::schedule::progress::Reporter;
use crate::unpack::snapshotter::lease::Lease;
use crate::unpack::snapshotter::{guest_pull, mounts};

/// Attempts of `Prepare`. *AlreadyExists* without a snapshot of that chain id, or *NotFound* although the parent is
/// there, means that another client unpacks or removes the chain at the same time. containerd's own unpacker tries three
/// times without a pause; a replacement by another process takes longer.
const PREPARE_TRIES: u32 = 5;

/// The pause before the second attempt. It doubles with each further one.
const PREPARE_PAUSE: Duration = Duration::from_millis(10);

/// How long a stopped unpack waits for a running `Prepare`: well within the time that the daemon has for its
/// shutdown.
const LAST_PREPARE: Duration = Duration::from_secs(5);

/// An apply without its blob fails within this time.
const REFUSED: Duration = Duration::from_millis(20);

/// containerd's label on a layer's blob, set after its content was verified: the digest of the uncompressed content.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How a layer was committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Committed {
    /// By this unpack, from its blob or from content that the snapshotter had.
    Applied,
    /// By this unpack, from a layer of another snapshotter.
    Rebuilt,
    /// Before: by another client, or by a snapshotter that needs no content for it.
    Existed,
}

impl From<Committed> for Action {
    /// A layer that another client committed meanwhile counts as unpacked.
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
    /// The content store does not have the blob. Holds the result of each other source that was tried.
    #[error("its blob is not in the content store")]
    NoBlob(Vec<String>),
    /// The blob is encrypted, and containerd does not decrypt it.
    #[error("it is encrypted: {0}")]
    Encrypted(containerd::Error),
    /// The content has another digest than the diff id: this one.
    #[error("it unpacks to {0}")]
    WrongDiffId(String),
    /// The parent was removed meanwhile: another client replaces the chain.
    #[error("the layer below it was removed")]
    ParentGone,
    #[error("stopped")]
    Stopped,
}

/// The inputs of one layer's unpack.
pub(crate) struct Unpack<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) snapshotter: &'a str,
    pub(crate) lease: &'a Lease,
    /// The name that the image goes by.
    pub(crate) image: &'a str,
    pub(crate) manifest: &'a Manifest,
    pub(crate) layer: &'a Layer,
    /// The chain id below.
    pub(crate) parent: Option<&'a str>,
    pub(crate) labels: &'a Labels,
    /// Who is at which layer, and where an apply waits for its turn.
    pub(crate) layers: &'a Layers,
    pub(crate) reporter: &'a Reporter,
    pub(crate) priority: &'a Priority,
    pub(crate) stop: &'a CancellationToken,
}

/// A layer that is unpacked here only, until this is dropped.
pub(crate) struct Turn {
    _process: ProcessLock,
    _flight: LayerLock,
}

/// When the parent of a layer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Join {
    /// At once.
    AtPrepare,
    /// At the end. Only for a snapshotter that can rebase.
    AtCommit,
}

/// A snapshot that holds a layer's content and is to be committed.
#[derive(Debug)]
pub(crate) struct Filled {
    key: String,
    join: Join,
    /// The snapshotter had the content: no blob was applied.
    staged: bool,
}

/// What came of filling a snapshot without the layer below.
#[derive(Debug)]
pub(crate) enum Apart {
    Filled(Filled),
    /// The layer is there already.
    Exists,
    /// It takes the layer below: the blob is gone, and what takes its place is applied onto that; or
    /// what the layer deletes would be lost.
    NeedsBelow,
}

impl Unpack<'_> {
    /// Keeps the other flights of this process, and other processes, from the layer while it is unpacked.
    pub(crate) async fn lock(&self) -> Result<Turn, Failure> {
        let (snapshotter, chain_id) = (self.snapshotter, &self.layer.chain_id);
        let turn = async {
            let wake = || self.layers.permits.wake();
            let layer_locks = &self.layers.layer_locks;
            let layer_lock = layer_locks
                .lock(snapshotter, chain_id, self.priority, wake)
                .await;
            Turn {
                _process: process_lock(self.containerd, snapshotter, chain_id).await,
                _flight: layer_lock,
            }
        };
        let turn = self.stop.run_until_cancelled(turn).await;
        turn.ok_or(Failure::Stopped)
    }

    /// Commits the layer under its chain id, with this content. No extraction snapshot stays, on any path.
    pub(crate) async fn unpack(&self, content: &Content) -> Result<Committed, Failure> {
        let Some((key, mounts)) = self.prepare(content, self.parent).await? else {
            return Ok(Committed::Existed);
        };
        let filled = self.fill(key, Join::AtPrepare, mounts, content).await?;
        self.settle(filled, content).await
    }

    /// The layer's content in a snapshot of its own, for [`Unpack::settle`] to put it onto the layer
    /// below, which need not be there yet.
    pub(crate) async fn fill_apart(&self, content: &Content) -> Result<Apart, Failure> {
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

    /// Commits it, onto the layer below.
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
            // The blob may be let go of as soon as the layer stands.
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(Committed::Applied),
        }
    }

    /// An active snapshot to unpack into; `None` where the layer turns out to be there already.
    async fn prepare(
        &self,
        content: &Content,
        parent: Option<&str>,
    ) -> Result<Option<(String, Vec<Mount>)>, Failure> {
        let chain_id = &self.layer.chain_id;
        let mut last = None;
        for n in 0..PREPARE_TRIES {
            if n > 0 {
                tokio::time::sleep(PREPARE_PAUSE * 2_u32.pow(n - 1)).await;
            }
            let key = self.lease.extraction_key(chain_id);
            let labels = content.labels(self.labels);
            let Some(prepared) = self.try_prepare(&key, parent, labels).await else {
                self.remove(&key).await;
                return Err(Failure::Stopped);
            };
            match prepared {
                Ok(mounts) => return Ok(Some((key, mounts))),
                Err(e) if e.already_exists() => {
                    if self.is_committed().await? {
                        return Ok(None);
                    }
                    last = Some(e);
                }
                Err(e) => {
                    // If only the answer is lost, the snapshot was made.
                    self.remove(&key).await;
                    match self.unless_gone(parent, e).await {
                        // The client that removed the parent may have committed it again.
                        Failure::Containerd(e) if e.is_not_found() => last = Some(e),
                        failure => return Err(failure),
                    }
                }
            }
        }
        Err(last.map_or(Failure::Stopped, Failure::Containerd))
    }

    /// `None` where everything stops first.
    async fn try_prepare(
        &self,
        key: &str,
        parent: Option<&str>,
        labels: Labels,
    ) -> Option<Result<Vec<Mount>, containerd::Error>> {
        let id = self.lease.id();
        let prepare = self
            .containerd
            .prepare(id, self.snapshotter, key, parent, labels);
        let mut prepare = pin!(prepare);
        let prepared = self.stop.run_until_cancelled(prepare.as_mut()).await;
        // What containerd makes after it was taken away would stay: then the sweep will have it.
        if prepared.is_none() && tokio::time::timeout(LAST_PREPARE, prepare).await.is_err() {
            self.lease.keep();
        }
        prepared
    }

    /// Applies the content and verifies it, in its turn.
    pub(crate) async fn apply(&self, mounts: Vec<Mount>, content: &Content) -> Result<(), Failure> {
        let (blob, throughput) = (&content.blob, &self.layers.throughput);
        let bytes: u64 = blob.size.try_into().unwrap_or_default();
        let payloads = self.payloads(content);
        let apply = async {
            let _place = self.layers.permits.acquire(self.priority).await;
            let began = Instant::now();
            let mut apply = pin!(self.containerd.apply(blob, mounts, payloads));
            let applied = match tokio::time::timeout(REFUSED, apply.as_mut()).await {
                Ok(applied) => applied,
                Err(_) => {
                    let least = throughput.least(self.snapshotter, bytes);
                    self.reporter.not_before(began + least);
                    apply.await
                }
            };
            if applied.is_ok() {
                throughput.measured(self.snapshotter, bytes, began.elapsed());
            }
            applied
        };
        let applied = match self.stop.run_until_cancelled(apply).await {
            None => return Err(Failure::Stopped),
            Some(Err(e)) if self.is_gone(blob, &e).await => return Err(Failure::NoBlob(vec![])),
            // containerd can decrypt where it is set up for it, so it is asked first.
            Some(Err(e)) if self.layer.is_encrypted() && !e.is_unreachable() => {
                return Err(Failure::Encrypted(e));
            }
            Some(applied) => applied?,
        };
        if applied != content.diff_id {
            // containerd may take the end of a stream processor that has failed for the end of the layer.
            let is_cut_off = applied == guest_pull::NOTHING && content.rebuilt_from.is_none();
            if is_cut_off && self.layer.is_encrypted() {
                let why = "its stream processor has given nothing";
                let e = containerd::Error::malformed("apply", &blob.digest, why);
                return Err(Failure::Encrypted(e));
            }
            return Err(Failure::WrongDiffId(applied));
        }
        metrics::layer_applied(self.snapshotter, bytes);
        Ok(())
    }

    /// What the program that decrypts the content is handed.
    fn payloads(&self, content: &Content) -> Payloads {
        let is_encrypted = self.layer.is_encrypted() && content.rebuilt_from.is_none();
        match is_encrypted && self.layers.hands_keys_over.load(Ordering::Relaxed) {
            true => decryption::payloads(&content.blob),
            false => Payloads::new(),
        }
    }

    /// `false` where it was there, or came to be there in a way that is not known.
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
            // The answer is lost. If the layer is there, this unpack or another client has committed it. The
            // extraction snapshot is removed if it is still there.
            Err(e) if e.is_unreachable() && self.is_committed().await? => Ok(false),
            Err(e) => Err(self.unless_gone(parent, e).await),
        }
    }

    /// What a call has failed on: perhaps on the layer below, which it was given and did not find.
    async fn unless_gone(&self, parent: Option<&str>, error: containerd::Error) -> Failure {
        match parent {
            Some(parent) if error.is_not_found() => match self.stands(parent).await {
                Ok(true) => error.into(),
                Ok(false) => Failure::ParentGone,
                Err(e) => e.into(),
            },
            _ => error.into(),
        }
    }

    async fn is_committed(&self) -> Result<bool, containerd::Error> {
        self.stands(&self.layer.chain_id).await
    }

    async fn stands(&self, chain_id: &str) -> Result<bool, containerd::Error> {
        match self.containerd.stat(self.snapshotter, chain_id).await {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A failed apply does not say in a way that a program can read what it did not find.
    async fn is_gone(&self, blob: &Descriptor, error: &containerd::Error) -> bool {
        !error.is_unreachable()
            && matches!(self.containerd.blob(&blob.digest).await, Err(e) if e.is_not_found())
    }

    /// Removes the extraction snapshot.
    pub(crate) async fn abort(&self, filled: Filled) {
        self.remove(&filled.key).await;
    }

    async fn remove(&self, key: &str) {
        self.lease
            .remove(self.containerd, self.snapshotter, key)
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_action_that_says_most_is_reported() {
        let done = [Action::Relabelled, Action::Unpacked, Action::Anchored];
        assert_eq!(done.into_iter().max(), Some(Action::Unpacked));
        assert!(Action::from(Committed::Rebuilt) > Action::from(Committed::Applied));
    }
}
