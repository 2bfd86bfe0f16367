//! A layer has to be unpacked and its blob is gone: the means to do without, one after another.
//!
//! It decides which content is tried next; how a content becomes a snapshot is the layer's to know.

use crate::containerd::{Descriptor, Labels};
use crate::image::Layer;

use super::layer::{Committed, Failure, Unpack};
use super::rebuild::{self, Rebuild, SOURCE};

/// The label of a snapshot whose content did not come from the image's own blob: where from instead.
const REBUILT_FROM: &str = "nri-unpack/rebuilt-from";

/// A way to a layer whose blob is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Means {
    /// From overlayfs on this node, exactly as it was unpacked there. Offline, without credentials.
    Rebuild,
}

/// What is done about blobs that are gone: nothing by default.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Missing {
    /// In this order.
    pub means: Vec<Means>,
}

/// What is applied to make a layer.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Content {
    pub(super) blob: Descriptor,
    /// The digest that has to come out.
    pub(super) diff_id: String,
    /// The snapshotter that it was taken from, if it is not the image's own blob.
    pub(super) rebuilt_from: Option<&'static str>,
}

impl Content {
    pub(super) fn of_image(layer: &Layer) -> Self {
        Self {
            blob: layer.blob.clone(),
            diff_id: layer.diff_id.clone(),
            rebuilt_from: None,
        }
    }

    /// A plain tar: what comes out of it is itself.
    fn rebuilt(blob: Descriptor) -> Self {
        Self {
            diff_id: blob.digest.clone(),
            blob,
            rebuilt_from: Some(SOURCE),
        }
    }

    /// The layer's labels, and where it is from.
    pub(super) fn labels(&self, labels: &Labels) -> Labels {
        let mut labels = labels.clone();
        if let Some(source) = self.rebuilt_from {
            labels.insert(REBUILT_FROM.to_owned(), source.to_owned());
        }
        labels
    }
}

impl Missing {
    /// Commits the layer by the first means that does it; the failure says what became of each.
    pub(super) async fn unpack(&self, layer: &Unpack<'_>) -> Result<Committed, Failure> {
        let mut tried = vec![];
        for means in &self.means {
            let outcome = match means {
                Means::Rebuild => rebuilt(layer).await,
            };
            match outcome {
                Ok(committed) => return Ok(committed),
                Err(obstacle) => {
                    let reason = obstacle.reason()?;
                    let chain_id = layer.layer.chain_id.as_str();
                    log::debug!(chain_id, means:% = means, reason = reason.as_str(); "no content by this means");
                    tried.push(format!("{means}: {reason}"));
                }
            }
        }
        Err(Failure::NoBlob(tried))
    }
}

/// Why a means did not do it.
#[derive(Debug, thiserror::Error)]
enum Obstacle {
    #[error(transparent)]
    Rebuild(#[from] rebuild::Failure),
    #[error(transparent)]
    Layer(#[from] Failure),
}

impl Obstacle {
    /// What to say of it before the next means; a failure where no other would do better.
    fn reason(self) -> Result<String, Failure> {
        use rebuild::Failure::{Containerd, Stopped};
        match self {
            Self::Layer(Failure::Stopped) | Self::Rebuild(Stopped) => Err(Failure::Stopped),
            Self::Layer(Failure::Containerd(e)) | Self::Rebuild(Containerd(e))
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
        chain_id: &layer.layer.chain_id,
        is_lowest: layer.parent.is_none(),
        stop: layer.stop,
    };
    let blob = rebuild.blob().await?;
    Ok(layer.unpack(&Content::rebuilt(blob)).await?)
}

impl std::fmt::Display for Means {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rebuild => "rebuild",
        })
    }
}
