//! Finds the image of a layer that is being extracted, before the pull ends and makes the image's record.
//!
//! The kubelet creates a container some milliseconds after its pull has returned, and the image's own
//! event comes only a few milliseconds earlier. But containerd extracts layers during the pull, and at that time
//! the manifest and the config can be read already.

use std::collections::HashMap;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::containerd::{self, Blob, Containerd, Descriptor, Image, Labels};
use crate::image::{Manifest, Manifests, Platform};

/// How long the chain ids of a found image are remembered: a pull sends one event for each layer.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The limit of manifests that are read in search of a layer, newest first: enough for the pulls that run at the
/// same time, and some more. The image of an older manifest has its layers already.
const MAX_READ: usize = 32;

/// The prefix of the label that names the source of a blob. The registry's host follows; the value is the
/// repository, or several, separated by commas.
const SOURCE: &str = "containerd.io/distribution.source.";

/// The media type of an OCI manifest. Docker's manifests are read in the same way.
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// The pulls that are running.
#[derive(Debug)]
pub(super) struct Pulls {
    manifests: Manifests,
    found_chains: Mutex<FoundChains>,
}

/// The chain ids whose image was found.
#[derive(Debug, Default)]
struct FoundChains {
    since: HashMap<String, Instant>,
    /// The number of images that were removed so far.
    removals: u64,
}

impl Default for Pulls {
    fn default() -> Self {
        Self {
            manifests: Manifests::new(Platform::of_this_node()),
            found_chains: Mutex::default(),
        }
    }
}

impl Pulls {
    /// Returns the image that has a layer of this chain id, by the name under which it can be pulled; `None` if there
    /// is no such image, or if it was found already. `removals` is the number of removed images when the layer's
    /// event came: if more were removed since, the chain ids are not remembered, since the image may be pulled again.
    pub(super) async fn image_of(
        &self,
        containerd: &dyn Containerd,
        chain: &str,
        removals: u64,
    ) -> Result<Option<Image>, containerd::Error> {
        if self.is_known(chain) {
            return Ok(None);
        }
        for image in newest(containerd).await? {
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

    /// Forgets all manifests and chain ids when an image was removed: when it is pulled again, it is found again by its
    /// layers.
    pub(super) fn forget(&self) {
        self.manifests.forget();
        let mut found_chains = self.found_chains();
        found_chains.since.clear();
        found_chains.removals += 1;
    }

    /// Returns the number of images that were removed so far.
    pub(super) fn removals(&self) -> u64 {
        self.found_chains().removals
    }

    fn is_known(&self, chain: &str) -> bool {
        let mut found_chains = self.found_chains();
        found_chains
            .since
            .retain(|_, since| since.elapsed() < REMEMBERED);
        found_chains.since.contains_key(chain)
    }

    fn remember(&self, manifest: &Manifest, removals: u64) {
        let mut found_chains = self.found_chains();
        if found_chains.removals == removals {
            let chains = manifest.layers.iter().map(|layer| layer.chain_id.clone());
            found_chains
                .since
                .extend(chains.map(|chain| (chain, Instant::now())));
        }
    }

    fn found_chains(&self) -> MutexGuard<'_, FoundChains> {
        self.found_chains.lock()
    }
}

/// Returns the images of the newest manifests, at most [`MAX_READ`], the newest first.
async fn newest(containerd: &dyn Containerd) -> Result<Vec<Image>, containerd::Error> {
    let keep_newest = |images: &mut Vec<Image>| {
        images.sort_by_key(|image| std::cmp::Reverse(image.created_at));
        images.truncate(MAX_READ);
    };
    let mut images = Vec::new();
    let each = &mut |blob| {
        images.extend(image(blob));
        if images.len() == 2 * MAX_READ {
            keep_newest(&mut images);
        }
    };
    containerd.manifests(each).await?;
    keep_newest(&mut images);
    Ok(images)
}

/// Returns the image of a manifest's blob; `None` if it was not pulled but imported.
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
