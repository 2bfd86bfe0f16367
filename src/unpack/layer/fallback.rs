//! The fallbacks for a layer whose blob is gone, tried one after another.
//!
//! This file decides which content is tried next; it does not know how content becomes a snapshot.

use tokio::sync::Mutex;

use crate::containerd;
use crate::image;

use super::content::Content;
use super::pull::{self, Pull, Registries};
use super::rebuild::{self, Rebuild};
use super::unpack::{Committed, Failure, Unpack};
use crate::unpack::snapshotter::guest_pull::chain_id_of;

/// A source of the content of a layer whose blob is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FallbackSource {
    /// overlayfs on this node, exactly as the layer was unpacked there. Needs no network and no credentials.
    Rebuild,
    /// The image's registry. Needs containerd 2.1 or later.
    Pull,
}

/// The configured fallbacks for blobs that are gone. There are none by default.
#[derive(Debug, Default)]
pub struct ContentFallback {
    means: Vec<FallbackSource>,
    registries: Registries,
    /// Allows one fetch at a time: a fetch changes a manifest's labels and restores them.
    fetching: Mutex<()>,
}

impl ContentFallback {
    /// Returns these fallbacks, to be tried in this order.
    pub fn new(means: Vec<FallbackSource>, registries: Registries) -> Self {
        Self {
            means,
            registries,
            fetching: Mutex::default(),
        }
    }

    /// Commits the layer from the image's blob, or else from the first fallback that succeeds. The failure
    /// says why each fallback failed.
    pub(crate) async fn unpack(&self, layer: &Unpack<'_>) -> Result<Committed, Failure> {
        match layer.unpack(&Content::of_image(layer.layer)).await {
            Err(Failure::NoBlob(_)) => self.unpack_by(layer, &self.means).await,
            Err(Failure::Encrypted(e)) => self.rebuild_encrypted(layer, e).await,
            outcome => outcome,
        }
    }

    /// Rebuilds an encrypted layer that containerd failed to decrypt. `error` is why it failed. A fetch of the
    /// blob would not help.
    async fn rebuild_encrypted(
        &self,
        layer: &Unpack<'_>,
        error: containerd::Error,
    ) -> Result<Committed, Failure> {
        if !self.means.contains(&FallbackSource::Rebuild) {
            return Err(Failure::Encrypted(error));
        }
        match self.unpack_by(layer, &[FallbackSource::Rebuild]).await {
            Err(Failure::NoBlob(_)) => Err(Failure::Encrypted(error)),
            outcome => outcome,
        }
    }

    async fn unpack_by(
        &self,
        layer: &Unpack<'_>,
        means: &[FallbackSource],
    ) -> Result<Committed, Failure> {
        let mut tried = vec![];
        for means in means {
            let outcome = match means {
                FallbackSource::Rebuild => rebuilt(layer).await,
                FallbackSource::Pull => self.pulled(layer).await,
            };
            match outcome {
                Ok(committed) => return Ok(committed),
                Err(obstacle) => {
                    let reason = obstacle.reason()?;
                    let chain_id = layer.layer.chain_id.as_str();
                    log::debug!(chain_id, means:% = means, reason = reason.as_str(); "fallback for a missing layer blob failed: the plugin tries the next one, if any");
                    tried.push(format!("{means}: {reason}"));
                }
            }
        }
        Err(Failure::NoBlob(tried))
    }

    async fn pulled(&self, layer: &Unpack<'_>) -> Result<Committed, Obstacle> {
        let labelled = layer.labels.get(image::IMAGE_REF);
        let names = labelled.map(String::as_str).into_iter();
        let names: Vec<_> = names.chain([layer.image]).collect();
        let pull = Pull {
            containerd: layer.containerd,
            lease: layer.lease,
            registries: &self.registries,
            manifest: layer.manifest,
            names: &names,
            stop: layer.stop,
        };
        let fetching = self.fetching.lock();
        let fetching = layer.stop.run_until_cancelled(fetching).await;
        let fetching = fetching.ok_or(Failure::Stopped)?;
        pull.blob(&layer.layer.blob.digest).await?;
        drop(fetching);
        Ok(layer.unpack(&Content::of_image(layer.layer)).await?)
    }
}

/// Why a fallback failed.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error(transparent)]
    Rebuild(#[from] rebuild::Failure),
    #[error(transparent)]
    Pull(#[from] pull::Failure),
    #[error(transparent)]
    Layer(#[from] Failure),
}

impl Obstacle {
    /// Returns the reason to report before the next fallback is tried; a failure if no other fallback can
    /// succeed.
    fn reason(self) -> Result<String, Failure> {
        match self {
            Self::Layer(Failure::Stopped)
            | Self::Pull(pull::Failure::Stopped)
            | Self::Rebuild(rebuild::Failure::Stopped) => Err(Failure::Stopped),
            Self::Layer(
                failure @ (Failure::ParentGone | Failure::AllCommitted | Failure::Lost),
            ) => Err(failure),
            // A pull is left out: there, the registry may be what does not answer.
            Self::Layer(Failure::Containerd(e))
            | Self::Rebuild(rebuild::Failure::Containerd(e))
                if e.is_unreachable() =>
            {
                Err(e.into())
            }
            other => Ok(other.to_string()),
        }
    }
}

async fn rebuilt(layer: &Unpack<'_>) -> Result<Committed, Obstacle> {
    let rebuild = Rebuild {
        containerd: layer.containerd,
        lease: layer.lease,
        chain_id: chain_id_of(&layer.layer.chain_id),
        is_lowest: layer.parent.is_none(),
        stop: layer.stop,
    };
    let blob = rebuild.blob().await?;
    Ok(layer.unpack(&Content::rebuilt(blob)).await?)
}

impl std::fmt::Display for FallbackSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rebuild => "rebuild",
            Self::Pull => "pull",
        })
    }
}
