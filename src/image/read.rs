//! Reads an image's manifest for this node, from its record through index, manifest and config.
//!
//! A digest identifies its document, so a manifest that was read once is kept, in few bytes.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{Containerd, Descriptor, Image};

use super::cache::{Cache, Ends};
use super::digest::Digest;
use super::document::{self, Config, Index, Refusal};
use super::manifest::{Manifest, chain, sha256};
use super::media::{Document, is_config};
use super::{Error, Platform};

/// The largest index, manifest or config that is read, in bytes: twice the 4 MiB that registries allow
/// for a manifest.
const MAX_DOCUMENT: u64 = 8 << 20;

/// The limit of nested indexes, with the manifest. Real images nest one index in another. A loop is
/// impossible, since no document contains its own digest, but a long chain is possible.
const MAX_DOCUMENTS: usize = 8;

/// Reads manifests, and remembers them by the digest of the image's target.
#[derive(Debug)]
pub struct Manifests {
    platform: Platform,
    cache: Mutex<Cache>,
}

impl Manifests {
    /// Returns a reader that chooses the manifests for `platform`.
    pub fn new(platform: Platform) -> Self {
        Self {
            platform,
            cache: Mutex::default(),
        }
    }

    /// Returns the manifest of `image` for this node.
    pub async fn read(
        &self,
        containerd: &dyn Containerd,
        image: &Image,
    ) -> Result<Arc<Manifest>, Error> {
        let key = Digest::of(&image.target.digest);
        let known = self.cache().packed(&key);
        if let Some(manifest) = known.and_then(|packed| packed.manifest()) {
            return Ok(Arc::new(manifest));
        }
        let reader = Reader {
            containerd,
            image: &image.name,
            platform: &self.platform,
        };
        let manifest = Arc::new(reader.manifest(image.target.clone()).await?);
        self.cache().insert(key, &manifest);
        Ok(manifest)
    }

    /// Returns the ends of `image`. For a remembered image it takes less time than [`Self::read`].
    pub async fn ends(&self, containerd: &dyn Containerd, image: &Image) -> Result<Ends, Error> {
        let key = Digest::of(&image.target.digest);
        let known = self.cache().ends(&key);
        match known {
            Some(ends) => Ok(ends),
            None => Ok(Ends::of(&*self.read(containerd, image).await?)),
        }
    }

    /// Forgets all manifests except those of these targets.
    pub fn keep(&self, records: &HashSet<&str>) {
        let kept: HashSet<_> = records.iter().map(|digest| Digest::of(digest)).collect();
        self.cache().retain(|target| kept.contains(target));
    }

    /// Forgets all manifests.
    pub fn forget(&self) {
        *self.cache() = Cache::default();
    }

    fn cache(&self) -> MutexGuard<'_, Cache> {
        self.cache.lock()
    }
}

/// The context of one read of one image.
struct Reader<'a> {
    containerd: &'a dyn Containerd,
    image: &'a str,
    platform: &'a Platform,
}

impl Reader<'_> {
    async fn manifest(&self, mut target: Descriptor) -> Result<Manifest, Error> {
        // The index that lists the target without a platform.
        let mut unsaid = None;
        for _ in 0..MAX_DOCUMENTS {
            match Document::of(&target.media_type) {
                Document::Manifest => return self.layers(&target, unsaid.as_deref()).await,
                Document::Index => {
                    let parse = |bytes: &[u8]| Index::parse(bytes, self.platform);
                    let chosen = self.document("index", &target, parse).await?;
                    let entry = chosen.ok_or_else(|| self.no_platform(&target.digest))?;
                    let says_platform = entry.platform().is_some();
                    let next = entry.descriptor();
                    let next = next.map_err(|e| self.malformed("index", &target.digest, &e))?;
                    unsaid = (!says_platform).then_some(target.digest);
                    target = next;
                }
                Document::Schema1 => return Err(self.schema1(&target.digest)),
                Document::Other => {
                    return Err(Error::MediaType {
                        image: self.image.to_owned(),
                        media_type: target.media_type,
                        digest: target.digest,
                    });
                }
            }
        }
        Err(self.malformed("index", &target.digest, "indexes nested too deeply"))
    }

    /// Reads a manifest and its config. `unsaid` is the index that lists the manifest without a platform.
    /// Then the config's platform decides: the config of an attestation or an artifact names none that
    /// runs here.
    async fn layers(&self, target: &Descriptor, unsaid: Option<&str>) -> Result<Manifest, Error> {
        let parse = document::Manifest::parse;
        let manifest = self.document("manifest", target, parse).await?;
        let parts = manifest.into_parts();
        let (config_blob, layers) =
            parts.map_err(|e| self.malformed("manifest", &target.digest, &e))?;
        let config = self.document("config", &config_blob, Config::parse).await;
        let config = config.map_err(|e| self.artifact_or(e, &config_blob))?;
        if let Some(index) = unsaid
            && self.platform.rank(&config.platform()).is_none()
        {
            return Err(self.no_platform(index));
        }
        let diff_ids = config.into_diff_ids();
        if layers.len() != diff_ids.len() {
            let reason = format!(
                "{} layers, but its config {} lists {} diff ids",
                layers.len(),
                config_blob.digest,
                diff_ids.len()
            );
            let malformed = self.malformed("manifest", &target.digest, &reason);
            return Err(self.artifact_or(malformed, &config_blob));
        }
        Ok(Manifest {
            digest: target.digest.clone(),
            config: config_blob.digest,
            layers: chain(layers, diff_ids),
        })
    }

    /// Reads a document and compares it with its descriptor, so that a blob that was truncated or changed
    /// on disk does not decide what is unpacked.
    async fn document<T>(
        &self,
        what: &'static str,
        target: &Descriptor,
        parse: impl FnOnce(&[u8]) -> Result<T, Refusal>,
    ) -> Result<T, Error> {
        let digest = &target.digest;
        let read = self.containerd.read(digest, MAX_DOCUMENT).await;
        let bytes = read.map_err(|source| Error::Containerd {
            image: self.image.to_owned(),
            source,
        })?;
        if digest.starts_with("sha256:") && *digest != sha256(&bytes) {
            return Err(Error::Changed {
                image: self.image.to_owned(),
                what,
                digest: digest.clone(),
                size: bytes.len(),
            });
        }
        parse(&bytes).map_err(|refusal| match refusal {
            Refusal::Schema1 => self.schema1(digest),
            Refusal::Malformed(reason) => self.malformed(what, digest, &reason),
        })
    }

    /// Returns the error for an artifact in place of [`Error::Malformed`], if the config's media type is not
    /// that of an image.
    fn artifact_or(&self, error: Error, config: &Descriptor) -> Error {
        match error {
            Error::Malformed { .. } if !is_config(&config.media_type) => Error::MediaType {
                image: self.image.to_owned(),
                media_type: config.media_type.clone(),
                digest: config.digest.clone(),
            },
            other => other,
        }
    }

    fn malformed(&self, what: &'static str, digest: &str, reason: &str) -> Error {
        Error::Malformed {
            image: self.image.to_owned(),
            what,
            digest: digest.to_owned(),
            reason: reason.to_owned(),
        }
    }

    fn schema1(&self, digest: &str) -> Error {
        Error::Schema1 {
            image: self.image.to_owned(),
            digest: digest.to_owned(),
        }
    }

    fn no_platform(&self, index: &str) -> Error {
        Error::NoPlatform {
            image: self.image.to_owned(),
            platform: self.platform.to_string(),
            digest: index.to_owned(),
        }
    }
}

#[cfg(test)]
mod tests;
