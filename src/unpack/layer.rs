//! One layer: prepare, apply, verify, commit; or abort. The steps and their order are those of
//! containerd's own unpacker, so that both can work on one chain at the same time.

use tokio_util::sync::CancellationToken;

use crate::containerd::{self, Containerd, Labels, Mount};
use crate::image::Layer;

use super::lease::Lease;

/// *AlreadyExists* without the chain id being there is somebody else in between; containerd's own
/// unpacker tries as often.
const PREPARE_TRIES: usize = 3;

/// The layer's blob, once its content has been verified, carries the digest of what is in it.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// How a layer came to be committed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Committed {
    /// By us, just now.
    Applied,
    /// It was there: unpacked by somebody else, or the snapshotter needs no content for it.
    Existed,
}

/// Why a layer was not committed.
#[derive(Debug)]
pub(super) enum Failure {
    Containerd(containerd::Error),
    /// The content store does not have the blob.
    NoBlob,
    /// The blob is encrypted, and containerd does not decrypt it.
    Encrypted(containerd::Error),
    /// The digest that came out.
    WrongDiffId(String),
    Stopped,
}

impl From<containerd::Error> for Failure {
    fn from(error: containerd::Error) -> Self {
        Self::Containerd(error)
    }
}

/// What it takes to unpack one layer.
pub(super) struct Unpack<'a> {
    pub(super) containerd: &'a dyn Containerd,
    pub(super) snapshotter: &'a str,
    pub(super) lease: &'a Lease,
    pub(super) layer: &'a Layer,
    /// The chain id below.
    pub(super) parent: Option<&'a str>,
    pub(super) labels: &'a Labels,
    pub(super) stop: &'a CancellationToken,
}

impl Unpack<'_> {
    /// Commits the layer under its chain id. Whatever happens, no extraction snapshot stays.
    pub(super) async fn run(&self) -> Result<Committed, Failure> {
        let Some((key, mounts)) = self.prepare().await? else {
            return Ok(Committed::Existed);
        };
        let outcome = self.fill(&key, mounts).await;
        if !matches!(outcome, Ok(Committed::Applied)) {
            self.abort(&key).await;
        }
        outcome
    }

    /// An active snapshot to unpack into; `None` where the layer turns out to be there already.
    async fn prepare(&self) -> Result<Option<(String, Vec<Mount>)>, Failure> {
        let chain_id = &self.layer.chain_id;
        let mut taken = None;
        for _ in 0..PREPARE_TRIES {
            let key = self.lease.extraction_key(chain_id);
            let labels = self.labels.clone();
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
                    taken = Some(e);
                }
                Err(e) => {
                    // An answer that got lost leaves the snapshot made.
                    self.abort(&key).await;
                    return Err(e.into());
                }
            }
        }
        Err(taken.map_or(Failure::Stopped, Failure::Containerd))
    }

    async fn fill(&self, key: &str, mounts: Vec<Mount>) -> Result<Committed, Failure> {
        let blob = &self.layer.blob;
        let apply = self.containerd.apply(blob, mounts);
        let applied = match self.stop.run_until_cancelled(apply).await {
            None => return Err(Failure::Stopped),
            Some(Err(e)) if self.blob_is_gone(&e).await => return Err(Failure::NoBlob),
            // containerd can decrypt where it is set up for it, so it is asked first.
            Some(Err(e)) if self.layer.is_encrypted() && !e.is_unreachable() => {
                return Err(Failure::Encrypted(e));
            }
            Some(applied) => applied?,
        };
        if applied != self.layer.diff_id {
            return Err(Failure::WrongDiffId(applied));
        }
        let labels = self.labels.clone();
        let committed = self
            .containerd
            .commit(
                self.lease.id(),
                self.snapshotter,
                &self.layer.chain_id,
                key,
                labels,
            )
            .await;
        match committed {
            Ok(()) => {}
            Err(e) if e.already_exists() => return Ok(Committed::Existed),
            // The answer got lost. If the layer is there, by us or by somebody else, nothing is lost;
            // should our key still be there, it is taken away.
            Err(e) if e.is_unreachable() && self.is_committed().await? => {
                return Ok(Committed::Existed);
            }
            Err(e) => return Err(e.into()),
        }
        let label = Labels::from([(UNCOMPRESSED.to_owned(), applied)]);
        match self.containerd.label_blob(&blob.digest, label).await {
            // The blob may be let go of as soon as the layer stands.
            Err(e) if !e.is_not_found() => Err(e.into()),
            _ => Ok(Committed::Applied),
        }
    }

    async fn is_committed(&self) -> Result<bool, containerd::Error> {
        match self
            .containerd
            .stat(self.snapshotter, &self.layer.chain_id)
            .await
        {
            Ok(_) => Ok(true),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(e),
        }
    }

    /// A failed apply does not say in a way that a program can read what it did not find.
    async fn blob_is_gone(&self, error: &containerd::Error) -> bool {
        !error.is_unreachable()
            && matches!(
                self.containerd.blob(&self.layer.blob.digest).await,
                Err(e) if e.is_not_found()
            )
    }

    /// Takes the extraction snapshot away. What cannot be removed now is left to the sweep, with the
    /// lease, under which the sweep finds it: garbage collection must not have it, since that would
    /// leave its parent unremovable for good.
    async fn abort(&self, key: &str) {
        match self.containerd.remove(self.snapshotter, key).await {
            Err(e) if !e.is_not_found() => {
                self.lease.keep();
                log::warn!(snapshotter = self.snapshotter, key, error:% = e; "extraction snapshot not removed yet");
            }
            _ => {}
        }
    }
}
