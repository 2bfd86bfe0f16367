//! The image behind a layer that is being extracted: found before the pull ends and gives it a name.
//!
//! The kubelet creates a container some milliseconds after its pull has returned, and the image's own
//! event comes hardly earlier. But containerd extracts layers while it pulls, and by then the manifest
//! and the config can be read.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::containerd::{self, Blob, Containerd, Descriptor, Image, Labels};
use crate::image::{Manifest, Manifests, Platform};

/// A pull of many layers tells of each. For as long its chain ids are remembered.
const REMEMBERED: Duration = Duration::from_secs(30);

/// Manifests that are read in search of a layer's, newest first: those of pulls that run at the same
/// time, and some more. The image of an older one has its layers already.
const MAX_READ: usize = 32;

/// The label that says from where a blob was pulled; the registry's host follows, its value is the
/// repository, or several.
const SOURCE: &str = "containerd.io/distribution.source.";

/// A manifest in its current form. One of docker's is read in the same way.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The pulls that go on.
#[derive(Debug)]
pub(super) struct Pulls {
    manifests: Manifests,
    known: Mutex<FoundChains>,
}

/// The chains whose image was found.
#[derive(Debug, Default)]
struct FoundChains {
    since: HashMap<String, Instant>,
    /// Images that were removed so far.
    removals: u64,
}

impl Default for Pulls {
    fn default() -> Self {
        Self {
            manifests: Manifests::new(Platform::of_this_node()),
            known: Mutex::default(),
        }
    }
}

impl Pulls {
    /// The image that has a layer of this chain id, by the name under which it can be pulled.
    /// `None` where there is none, or where it was found already. The layer was heard of after so many
    /// removals of images: the pull that is found by an older one may not be the one that goes on now.
    pub(super) async fn image_of(
        &self,
        containerd: &dyn Containerd,
        chain: &str,
        removals: u64,
    ) -> Result<Option<Image>, containerd::Error> {
        if self.is_known(chain) {
            return Ok(None);
        }
        let mut blobs = containerd.manifests().await?;
        blobs.sort_by_key(|blob| std::cmp::Reverse(blob.created_at));
        for blob in blobs.into_iter().take(MAX_READ) {
            let Some(image) = image(blob) else { continue };
            let Ok(manifest) = self.manifests.read(containerd, &image).await else {
                continue;
            };
            if manifest.layers.iter().any(|layer| layer.chain_id == chain) {
                self.remember(&manifest, removals);
                return Ok(Some(image));
            }
        }
        Ok(None)
    }

    /// An image was removed: when it is pulled again, its layers tell of it like those of a new one.
    pub(super) fn forget(&self) {
        let mut known = self.known();
        known.since.clear();
        known.removals += 1;
    }

    /// How many images were removed so far.
    pub(super) fn removals(&self) -> u64 {
        self.known().removals
    }

    fn is_known(&self, chain: &str) -> bool {
        let mut known = self.known();
        known.since.retain(|_, since| since.elapsed() < REMEMBERED);
        known.since.contains_key(chain)
    }

    fn remember(&self, manifest: &Manifest, removals: u64) {
        let mut known = self.known();
        if known.removals == removals {
            let chains = manifest.layers.iter().map(|layer| layer.chain_id.clone());
            known
                .since
                .extend(chains.map(|chain| (chain, Instant::now())));
        }
    }

    fn known(&self) -> MutexGuard<'_, FoundChains> {
        self.known.lock()
    }
}

/// `None` for what was not pulled but imported.
fn image(blob: Blob) -> Option<Image> {
    let sources = blob.labels.iter();
    let (host, repositories) = sources
        .filter_map(|(key, value)| Some((key.strip_prefix(SOURCE)?, value)))
        .next()?;
    let repository = repositories.split(',').next()?;
    Some(Image {
        name: format!("{host}/{repository}@{}", blob.digest),
        target: Descriptor {
            media_type: MANIFEST.to_owned(),
            digest: blob.digest,
            size: blob.size.try_into().ok()?,
            ..Descriptor::default()
        },
        labels: Labels::new(),
        created_at: blob.created_at,
    })
}
