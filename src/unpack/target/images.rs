//! Reads the images of the store and their manifests for the platform of this node.

use std::collections::HashSet;
use std::sync::Arc;

use crate::containerd::{Containerd, Image};
use crate::image::{self, Manifest, Manifests, Platform};
use crate::unpack::chain::error::Error;

/// Reads images, for one engine.
pub(crate) struct Images {
    containerd: Arc<dyn Containerd>,
    manifests: Manifests,
}

impl Images {
    pub(crate) fn new(containerd: Arc<dyn Containerd>) -> Self {
        Self {
            containerd,
            manifests: Manifests::new(Platform::of_this_node()),
        }
    }

    /// Forgets the documents of all images but these, given by the digests that their records point at.
    pub(crate) fn keep(&self, records: &HashSet<&str>) {
        self.manifests.keep(records);
    }

    /// Returns the name for an image's labels, found by any reference to the image.
    pub(crate) async fn best_name(&self, reference: &str) -> Option<String> {
        let image = image::find(self.containerd(), reference).await.ok()?;
        let names = self.names(&image).await.ok()?;
        image::name_for_labels(None, &names)
    }

    /// Reads an image's manifest for the platform of this node.
    pub(crate) async fn manifest(&self, image: &Image) -> Result<Arc<Manifest>, Error> {
        Ok(self.manifests.read(self.containerd(), image).await?)
    }

    /// Returns the chain ids of all other images.
    pub(crate) async fn others(&self, manifest: &Manifest) -> Result<HashSet<String>, Error> {
        let mut others = HashSet::new();
        for image in self.all().await? {
            let other = self.readable(&image).await?;
            let other = other.filter(|other| other.config != manifest.config);
            others.extend(other.and_then(|other| other.chain_id().map(str::to_owned)));
        }
        Ok(others)
    }

    /// Reads an image's manifest; `None` if the image is broken or has no manifest for this node. An error if containerd
    /// does not answer, since the image may be fine then.
    pub(crate) async fn readable(&self, image: &Image) -> Result<Option<Arc<Manifest>>, Error> {
        match self.manifests.read(self.containerd(), image).await {
            Ok(manifest) => Ok(Some(manifest)),
            Err(image::Error::Containerd { image, source }) if !source.is_not_found() => {
                Err(image::Error::Containerd { image, source }.into())
            }
            Err(_) => Ok(None),
        }
    }

    /// Returns [`Error::Removed`] in place of this error if the image was removed: its documents may have been collected
    /// while they were read.
    pub(crate) async fn unless_removed(&self, error: Error) -> Error {
        if let Error::Image(image::Error::Containerd { image, source }) = &error
            && source.is_not_found()
            && matches!(self.containerd().image(image).await, Err(e) if e.is_not_found())
        {
            return Error::Removed(image.clone());
        }
        error
    }

    /// Returns all names of an image's target. The image's own name is one of them, even if it was removed meanwhile.
    pub(crate) async fn names(&self, image: &Image) -> Result<Vec<String>, Error> {
        let images = self.all().await?;
        Ok(image::names_of(image, &images))
    }

    pub(crate) async fn all(&self) -> Result<Vec<Image>, Error> {
        let images = self.containerd.images().await;
        images.map_err(|source| {
            let image = "(all images)".to_owned();
            Error::Image(image::Error::Containerd { image, source })
        })
    }

    pub(crate) fn containerd(&self) -> &dyn Containerd {
        self.containerd.as_ref()
    }
}
