//! Finds the image of a request: by its name, or by the chain that a container is based on.

use crate::containerd::Image;
use crate::image::{self, MAX_LAYERS};

use super::images::Images;
use super::request::{Request, Want};
use super::store_images::RequestImages;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::is_proxied;
use crate::unpack::chain::state::State;

/// containerd's label for the user ids of a container's user namespace.
const UID_MAPPING: &str = "containerd.io/snapshot/uidmapping";

/// The image of a request, and how it was found.
pub(crate) struct Found {
    pub(crate) image: Image,
    /// The name in the request.
    pub(crate) requested: Option<String>,
    /// The container is based on a copy of the image's chain.
    pub(crate) is_copied: bool,
}

impl Images {
    /// Finds the image of a request.
    pub(crate) async fn find(
        &self,
        request: &Request,
        list: &RequestImages,
    ) -> Result<Found, Error> {
        let named = |image, requested: &String| Found {
            image,
            requested: Some(requested.clone()),
            is_copied: false,
        };
        let (key, chain, name) = match &request.want {
            Want::Image(name) => {
                return Ok(named(image::find(self.containerd(), name).await?, name));
            }
            // The record that the pull makes for the same target has the requested name.
            Want::Arriving(image) => {
                return Ok(Found {
                    image: image.clone(),
                    requested: None,
                    is_copied: false,
                });
            }
            Want::Container {
                key, chain, name, ..
            } => (key, chain, name),
            Want::Sandbox { key, chain } => (key, chain, &None),
            Want::Volume { image: target, .. } => {
                let mut images = self.all(list).await?.iter();
                let image = images.find(|image| image.target.digest == *target);
                let image = image
                    .cloned()
                    .ok_or_else(|| image::Error::NotFound(target.clone()))?;
                let requested = image.name.clone();
                return Ok(named(image, &requested));
            }
        };
        let found = |image, is_copied| Found {
            image,
            requested: name.clone(),
            is_copied,
        };
        if let Some(image) = self.of_chain(chain, name.as_deref(), list).await? {
            return Ok(found(image, false));
        }
        let original = self.original(&request.snapshotter, key, chain).await?;
        if let Some(original) = &original
            && let Some(image) = self.of_chain(original, name.as_deref(), list).await?
        {
            log::debug!(container = key.as_str(), copy = chain.as_str(), image = image.name.as_str(); "container is based on a copy of its image's chain, made for a user namespace");
            return Ok(found(image, true));
        }
        let state = self
            .state_without_image(&request.snapshotter, chain)
            .await?;
        Err(Error::NoImage {
            chain: chain.clone(),
            key: key.clone(),
            snapshotter: request.snapshotter.clone(),
            state,
            is_copied: original.is_some(),
            foreign: self.foreign(name.as_deref()).await?,
        })
    }

    /// Returns the state of a chain that belongs to no image, as far as its snapshots show it: ready if the guest pulls
    /// it, mixed if it is broken; else `None`.
    async fn state_without_image(
        &self,
        snapshotter: &str,
        chain: &str,
    ) -> Result<Option<State>, Error> {
        let mut has_host_layer = false;
        // As many steps as a chain has layers: an answer may describe a snapshot that is below itself.
        let mut next = Some(chain.to_owned());
        for _ in 0..MAX_LAYERS {
            let Some(name) = next else {
                break;
            };
            let layer = match self.containerd().stat(snapshotter, &name).await {
                Ok(layer) => layer,
                Err(e) if e.is_not_found() => return Ok(None),
                Err(source) => {
                    return Err(Error::Containerd {
                        image: format!("with the chain {chain}"),
                        snapshotter: snapshotter.to_owned(),
                        source,
                    });
                }
            };
            match is_proxied(&layer.labels) {
                true if has_host_layer => return Ok(Some(State::Mixed)),
                true => return Ok(Some(State::Ready)),
                false => has_host_layer = true,
            }
            next = layer.parent;
        }
        Ok(None)
    }

    /// Returns the image's name if the node has the image only for another platform: it was pulled for a runtime handler
    /// of that platform.
    async fn foreign(&self, name: Option<&str>) -> Result<Option<String>, Error> {
        let Some(name) = name else {
            return Ok(None);
        };
        let image = match image::find(self.containerd(), name).await {
            Ok(image) => image,
            Err(image::Error::NotFound(_) | image::Error::Ambiguous(_)) => return Ok(None),
            Err(e) => return Err(e.into()),
        };
        Ok(match self.manifest(&image).await {
            Err(Error::Image(image::Error::NoPlatform { .. })) => Some(image.name),
            Err(Error::Image(image::Error::Containerd { source, .. })) if source.is_not_found() => {
                Some(image.name)
            }
            _ => None,
        })
    }

    /// Returns the chain that `chain` is a copy of, if it is a copy for the user namespace of the container `key`.
    /// Where the snapshotter does not map ids, containerd copies the files of the image with other owners: into a
    /// committed snapshot on top of the image's chain, with a name of its own (1.7: the chain id, the uid and the gid;
    /// 2.x: a digest of these). The container's own snapshot has a label with the mapping.
    async fn original(
        &self,
        snapshotter: &str,
        key: &str,
        chain: &str,
    ) -> Result<Option<String>, Error> {
        let stat = async |name| match self.containerd().stat(snapshotter, name).await {
            Ok(snapshot) => Ok(Some(snapshot)),
            Err(e) if e.is_not_found() => Ok(None),
            Err(source) => Err(Error::Containerd {
                image: format!("of container {key}"),
                snapshotter: snapshotter.to_owned(),
                source,
            }),
        };
        let own = stat(key).await?;
        if !own.is_some_and(|own| own.labels.contains_key(UID_MAPPING)) {
            return Ok(None);
        }
        Ok(stat(chain).await?.and_then(|copy| copy.parent))
    }

    /// Returns the image with the chain id `chain`: the image with this name if it has that chain, else any.
    async fn of_chain(
        &self,
        chain: &str,
        name: Option<&str>,
        list: &RequestImages,
    ) -> Result<Option<Image>, Error> {
        if let Some(name) = name {
            match image::find(self.containerd(), name).await {
                Ok(image) if self.has_chain(&image, chain).await? => return Ok(Some(image)),
                Ok(_) | Err(image::Error::NotFound(_) | image::Error::Ambiguous(_)) => {}
                Err(e) => return Err(e.into()),
            }
        }
        for image in self.all(list).await? {
            if self.has_chain(image, chain).await? {
                return Ok(Some(image.clone()));
            }
        }
        Ok(None)
    }

    async fn has_chain(&self, image: &Image, chain: &str) -> Result<bool, Error> {
        let ends = self.ends(image).await?;
        Ok(ends.is_some_and(|ends| ends.chain.as_deref() == Some(chain)))
    }
}
