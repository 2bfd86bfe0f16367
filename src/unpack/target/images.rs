//! Reads the images of the store and their manifests for the platform of this node.

use std::collections::HashSet;
use std::sync::Arc;

use futures::stream::{self, StreamExt};

use super::store_images::{RequestImages, StoreImages};
use crate::containerd::{Containerd, Image};
use crate::image::{self, Ends, Manifest, Manifests, Platform};
use crate::unpack::chain::error::Error;

/// The number of manifests that are read at the same time: enough to hide the round trips, few enough for other clients.
const PARALLEL_READS: usize = 8;

/// Reads images, for one engine.
pub(crate) struct Images {
    containerd: Arc<dyn Containerd>,
    manifests: Manifests,
    store: StoreImages,
}

impl Images {
    pub(crate) fn new(containerd: Arc<dyn Containerd>) -> Self {
        Self {
            containerd,
            manifests: Manifests::new(Platform::of_this_node()),
            store: StoreImages::default(),
        }
    }

    /// Forgets the documents of all images but these, given by the digests that their records point at.
    pub(crate) fn keep(&self, records: &HashSet<&str>) {
        self.manifests.keep(records);
    }

    /// Returns the name for an image's labels, found by any reference to the image.
    pub(crate) async fn best_name(&self, reference: &str) -> Option<String> {
        let image = image::find(self.containerd(), reference).await.ok()?;
        let list = RequestImages::default();
        let names = self.names(&image, &list).await.ok()?;
        image::name_for_labels(None, &names)
    }

    /// Reads an image's manifest for the platform of this node.
    pub(crate) async fn manifest(&self, image: &Image) -> Result<Arc<Manifest>, Error> {
        Ok(self.manifests.read(self.containerd(), image).await?)
    }

    /// Reads the manifests of many images, several at the same time.
    pub(crate) async fn read_ahead(&self, images: impl Iterator<Item = &Image>) {
        let images = stream::iter(images);
        let read = images.for_each_concurrent(PARALLEL_READS, async |image| {
            // The caller that needs the manifest gets the error.
            let _ = self.manifests.ends(self.containerd(), image).await;
        });
        read.await;
    }

    /// Returns the chain ids of all other images.
    pub(crate) async fn others(
        &self,
        manifest: &Manifest,
        list: &RequestImages,
    ) -> Result<HashSet<String>, Error> {
        let mut others = HashSet::new();
        for image in self.all(list).await? {
            let other = self.ends(image).await?;
            let other = other.filter(|other| other.config != manifest.config);
            others.extend(other.and_then(|other| other.chain));
        }
        Ok(others)
    }

    /// Reads an image's manifest; `None` if the image is broken or has no manifest for this node. An error if containerd
    /// does not answer, since the image may be fine then.
    pub(crate) async fn readable(&self, image: &Image) -> Result<Option<Arc<Manifest>>, Error> {
        unless_broken(self.manifests.read(self.containerd(), image).await)
    }

    /// Like [`Self::readable`], where the config and the top of the chain are enough.
    pub(crate) async fn ends(&self, image: &Image) -> Result<Option<Ends>, Error> {
        unless_broken(self.manifests.ends(self.containerd(), image).await)
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
    pub(crate) async fn names(
        &self,
        image: &Image,
        list: &RequestImages,
    ) -> Result<Vec<String>, Error> {
        Ok(image::names_of(image, self.all(list).await?))
    }

    /// Returns the same without a list of all images, unless the request has read it. Takes a call of its own, where
    /// other requests share a list: for a request that a hook waits for.
    pub(crate) async fn names_at_once(
        &self,
        image: &Image,
        list: &RequestImages,
    ) -> Result<Vec<String>, Error> {
        if let Some(all) = list.read() {
            return Ok(image::names_of(image, all));
        }
        let of_target = self.containerd().images_of(&image.target.digest).await;
        let of_target = of_target.map_err(|source| image::Error::Containerd {
            image: image.name.clone(),
            source,
        })?;
        Ok(image::names_of(image, &of_target))
    }

    /// Returns all image records. They are read once for each request.
    pub(crate) async fn all<'a>(&self, list: &'a RequestImages) -> Result<&'a [Image], Error> {
        let images = list.get(&self.store, self.containerd()).await;
        images.map_err(|source| {
            let image = "(all images)".to_owned();
            Error::Image(image::Error::Containerd { image, source })
        })
    }

    pub(crate) fn containerd(&self) -> &dyn Containerd {
        self.containerd.as_ref()
    }
}

fn unless_broken<T>(read: Result<T, image::Error>) -> Result<Option<T>, Error> {
    match read {
        Ok(read) => Ok(Some(read)),
        Err(image::Error::Containerd { image, source }) if !source.is_not_found() => {
            Err(image::Error::Containerd { image, source }.into())
        }
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;

    /// Two records of one image, another image with the same layers, and one that was removed.
    #[tokio::test]
    async fn the_names_of_an_image_do_not_depend_on_how_they_are_read() {
        let fake = Arc::new(Fake::default());
        let mut images = ["r.example/b:1", "r.example/c:1", "r.example/d:1"]
            .map(|name| fake.image(name, 2))
            .to_vec();
        for name in ["r.example/a:1", "r.example/e:1"] {
            images.push(fake.tag(name, images[0].target.clone()));
        }
        fake.untag("r.example/d:1");
        let reader = Images::new(fake.clone());
        for image in &images {
            let (whole, none) = (RequestImages::default(), RequestImages::default());
            let listed = reader.names(image, &whole).await.unwrap();
            fake.calls();
            assert_eq!(reader.names_at_once(image, &none).await.unwrap(), listed);
            assert_eq!(fake.calls(), ["list images of"]);
            assert_eq!(reader.names_at_once(image, &whole).await.unwrap(), listed);
            assert!(fake.calls().is_empty());
        }
    }

    #[tokio::test]
    async fn manifests_that_were_read_ahead_are_not_read_again() {
        let fake = Arc::new(Fake::default());
        let names = ["r.example/a:1", "r.example/b:1", "r.example/gone:1"];
        let images = names.map(|name| fake.image(name, 2));
        fake.discard(&images[2].target.digest);
        let reader = Images::new(fake.clone());
        reader.read_ahead(images.iter()).await;
        assert_eq!(fake.subjects("read blob").len(), 5);
        fake.calls();
        for (image, is_readable) in images.iter().zip([true, true, false]) {
            assert_eq!(reader.readable(image).await.unwrap().is_some(), is_readable);
        }
        assert_eq!(fake.subjects("read blob").len(), 1);
    }
}
