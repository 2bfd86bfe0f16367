//! One layer: prepare, apply, verify, commit; or abort. The steps and their order are those of
//! containerd's own unpacker, so that both can work on one chain at the same time.
//!
//! Where the layer's blob turns out to be gone, [`Missing`] finds another content.

use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Descriptor, Labels, Mount};
use crate::image::{Layer, Manifest};

use super::lease::Lease;
use super::missing::{Content, Missing};

/// *AlreadyExists* without the chain id being there, or *NotFound* although the layer below is, is
/// somebody else in between; containerd's own unpacker tries as often.
const PREPARE_TRIES: usize = 3;

/// The layer's blob, once its content has been verified, carries the digest of what is in it.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How a layer came to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Committed {
    /// By us, just now.
    Applied,
    /// By us, from what another snapshotter has.
    Rebuilt,
    /// It was there: unpacked by somebody else, or the snapshotter needs no content for it.
    Existed,
}

/// Why a layer was not committed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    #[error(transparent)]
    Containerd(#[from] containerd::Error),
    /// The content store does not have the blob; with what became of each means to do without.
    #[error("its blob is not in the content store")]
    NoBlob(Vec<String>),
    /// The blob is encrypted, and containerd does not decrypt it.
    #[error("it is encrypted: {0}")]
    Encrypted(containerd::Error),
    /// The digest that came out.
    #[error("it unpacks to {0}")]
    WrongDiffId(String),
    /// The layer below was taken away meanwhile: somebody else replaces the chain.
    #[error("the layer below it was taken away")]
    ParentGone,
    #[error("stopped")]
    Stopped,
}

/// What it takes to unpack one layer.
pub(super) struct Unpack<'a> {
    pub(super) containerd: &'a dyn Containerd,
    pub(super) snapshotter: &'a str,
    pub(super) lease: &'a Lease,
    /// The name that the image goes by.
    pub(super) image: &'a str,
    pub(super) manifest: &'a Manifest,
    pub(super) layer: &'a Layer,
    /// The chain id below.
    pub(super) parent: Option<&'a str>,
    pub(super) labels: &'a Labels,
    /// What is done where the blob is gone.
    pub(super) missing: &'a Missing,
    pub(super) stop: &'a CancellationToken,
}

impl Unpack<'_> {
    /// Commits the layer under its chain id. Whatever happens, no extraction snapshot stays.
    pub(super) async fn run(&self) -> Result<Committed, Failure> {
        match self.unpack(&Content::of_image(self.layer)).await {
            Err(Failure::NoBlob(_)) => self.missing.unpack(self).await,
            outcome => outcome,
        }
    }

    /// The same with this content.
    pub(super) async fn unpack(&self, content: &Content) -> Result<Committed, Failure> {
        let Some((key, mounts)) = self.prepare(content).await? else {
            return Ok(Committed::Existed);
        };
        let outcome = self.fill(&key, mounts, content).await;
        if matches!(outcome, Ok(Committed::Existed) | Err(_)) {
            self.abort(&key).await;
        }
        outcome
    }

    /// An active snapshot to unpack into; `None` where the layer turns out to be there already.
    async fn prepare(&self, content: &Content) -> Result<Option<(String, Vec<Mount>)>, Failure> {
        let chain_id = &self.layer.chain_id;
        let mut last = None;
        for _ in 0..PREPARE_TRIES {
            let key = self.lease.extraction_key(chain_id);
            let labels = content.labels(self.labels);
            let id = self.lease.id();
            let prepare = self
                .containerd
                .prepare(id, self.snapshotter, &key, self.parent, labels);
            let Some(prepared) = self.stop.run_until_cancelled(prepare).await else {
                self.abort(&key).await;
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
                    // An answer that got lost leaves the snapshot made.
                    self.abort(&key).await;
                    if !e.is_not_found() {
                        return Err(e.into());
                    }
                    if self.parent_is_gone().await? {
                        return Err(Failure::ParentGone);
                    }
                    // Whoever has taken the layer below away may have made it anew since.
                    last = Some(e);
                }
            }
        }
        Err(last.map_or(Failure::Stopped, Failure::Containerd))
    }

    async fn fill(
        &self,
        key: &str,
        mounts: Vec<Mount>,
        content: &Content,
    ) -> Result<Committed, Failure> {
        let blob = &content.blob;
        let apply = self.containerd.apply(blob, mounts);
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
            return Err(Failure::WrongDiffId(applied));
        }
        if !self.commit(key, content).await? {
            return Ok(Committed::Existed);
        }
        if content.rebuilt_from.is_some() {
            return Ok(Committed::Rebuilt);
        }
        let label = Labels::from([(UNCOMPRESSED.to_owned(), applied)]);
        match self.containerd.label_blob(&blob.digest, label).await {
            // The blob may be let go of as soon as the layer stands.
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(Committed::Applied),
        }
    }

    /// `false` where it was there, or came to be there in a way that is not known.
    async fn commit(&self, key: &str, content: &Content) -> Result<bool, containerd::Error> {
        let chain_id = &self.layer.chain_id;
        let (lease, labels) = (self.lease.id(), content.labels(self.labels));
        let committed = self
            .containerd
            .commit(lease, self.snapshotter, chain_id, key, labels)
            .await;
        match committed {
            Ok(()) => Ok(true),
            Err(e) if e.already_exists() => Ok(false),
            // The answer got lost. If the layer is there, by us or by somebody else, nothing is lost;
            // should our key still be there, it is taken away.
            Err(e) if e.is_unreachable() && self.is_committed().await? => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// Whether it is the layer below that was not found.
    async fn parent_is_gone(&self) -> Result<bool, containerd::Error> {
        match self.parent {
            None => Ok(false),
            Some(parent) => Ok(!self.stands(parent).await?),
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

    /// Takes the extraction snapshot away.
    async fn abort(&self, key: &str) {
        self.lease
            .remove(self.containerd, self.snapshotter, key)
            .await;
    }
}
