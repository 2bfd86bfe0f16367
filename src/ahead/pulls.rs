//! Finds the image of a layer that is being extracted, before the pull ends and makes the image's record.
//!
//! The kubelet creates a container some milliseconds after its pull has returned, and the image's own
//! event comes only a few milliseconds earlier. But containerd extracts layers during the pull, and at that time
//! the manifest and the config can be read already.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::containerd::{self, Blob, Containerd, Descriptor, Image, Labels};
use crate::image::{self, Manifest, Manifests, Platform};
use crate::question::Question;

/// How long the chain ids of a found image are remembered: a pull sends one event for each layer.
const REMEMBERED: Duration = Duration::from_secs(30);

/// The limit of manifests that are read in search of a layer, newest first: enough for the pulls that run at the
/// same time, and some more. The image of an older manifest has its layers already.
const MAX_READ: usize = 32;

/// The limit of manifests that are remembered as unreadable. Beyond it all are read once more.
const MAX_UNREADABLE: usize = 1024;

/// The least pause between a search that found nothing and the next list of all manifests, as a multiple of the time that
/// the list took. An import has an event for each layer, and none of its images is found.
const REST: u32 = 10;

/// The longest such pause: the image of another pull may come meanwhile, and must not be found much later.
const LONGEST_REST: Duration = Duration::from_millis(200);

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
    newest: Question<Result<Arc<[Image]>, containerd::Error>>,
    /// No list begins before this time.
    rests_until: Mutex<Option<Instant>>,
    /// The digests of manifests that cannot be used, however often they are read.
    unreadable: Mutex<HashSet<String>>,
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
            newest: Question::default(),
            rests_until: Mutex::default(),
            unreadable: Mutex::default(),
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
        let mut listed_in = Duration::ZERO;
        let list = async {
            let rests_until = *self.rests_until.lock();
            if let Some(until) = rests_until {
                tokio::time::sleep_until(until).await;
            }
            let began = Instant::now();
            let images = newest(containerd).await;
            listed_in = began.elapsed();
            images.map(Arc::from)
        };
        let images = self.newest.ask(list).await?;
        if self.is_known(chain) {
            // Another search has found it meanwhile.
            return Ok(None);
        }
        for image in images.iter() {
            let Some(manifest) = self.readable(containerd, image).await else {
                continue;
            };
            if manifest.layers.iter().any(|layer| layer.chain_id == chain) {
                self.remember(&manifest, removals);
                return Ok(Some(image.clone()));
            }
        }
        // Another search has read the list where this took no time.
        if !listed_in.is_zero() {
            let pause = (listed_in * REST).min(LONGEST_REST);
            *self.rests_until.lock() = Some(Instant::now() + pause);
        }
        Ok(None)
    }

    /// Reads a manifest; `None` if it cannot be read. One that is broken, or not for this node, is not read again.
    async fn readable(&self, containerd: &dyn Containerd, image: &Image) -> Option<Arc<Manifest>> {
        let digest = &image.target.digest;
        if self.unreadable.lock().contains(digest) {
            return None;
        }
        match self.manifests.read(containerd, image).await {
            Ok(manifest) => Some(manifest),
            // It may be readable later: its config may not be there yet.
            Err(image::Error::Containerd { .. }) => None,
            Err(_) => {
                let mut unreadable = self.unreadable.lock();
                if unreadable.len() >= MAX_UNREADABLE {
                    unreadable.clear();
                }
                unreadable.insert(digest.clone());
                None
            }
        }
    }

    /// Forgets all manifests and chain ids when an image was removed: when it is pulled again, it is found again by its
    /// layers.
    pub(super) fn forget(&self) {
        self.manifests.forget();
        self.unreadable.lock().clear();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;

    const LIST: &str = "list manifests of";

    /// Labels a manifest as pulled.
    async fn pulled(fake: &Fake, digest: &str) {
        let source = Labels::from([(format!("{SOURCE}r.example"), "app".to_owned())]);
        fake.label_blob(digest, source).await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn searches_that_find_nothing_share_lists_and_read_nothing_again() {
        let (fake, pulls) = (Fake::default(), Pulls::default());
        let image = fake.image("r.example/app:1", 2);
        let config = br#"{"schemaVersion":2,"layers":[]}"#;
        let broken = fake.document(MANIFEST, config);
        for digest in [&image.target.digest, &broken.digest] {
            pulled(&fake, digest).await;
        }
        fake.slow(LIST, Duration::from_millis(10));
        fake.calls();
        // An import of 60 layers, one each 20 ms.
        let began = Instant::now();
        let searches = (0..60).map(async |n| {
            tokio::time::sleep(Duration::from_millis(20) * n).await;
            let chain = format!("sha256:{n}");
            pulls.image_of(&fake, &chain, 0).await.unwrap()
        });
        let found = futures::future::join_all(searches).await;
        assert!(found.iter().all(Option::is_none));
        let lists = fake.subjects(LIST).len();
        assert!(lists < 15, "{lists} lists in {:?}", began.elapsed());
        // The manifest and the config of the one, and the manifest of the other.
        assert_eq!(fake.subjects("read blob").len(), 3);

        // Afterwards the image of a pull is found.
        let manifest = pulls.manifests.read(&fake, &image).await.unwrap();
        let chain = &manifest.layers[0].chain_id;
        let found = pulls.image_of(&fake, chain, 0).await.unwrap();
        assert_eq!(found.unwrap().target.digest, image.target.digest);
    }
}
