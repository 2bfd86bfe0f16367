//! Reads the status of images in a snapshotter, for the commands, `doctor`, and the choice of what to unpack ahead.
//! Changes nothing.

use crate::containerd::Image;

use super::engine::Engine;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::plan::{Planned, plan, spelled_out};
use crate::unpack::chain::state::State;
use crate::unpack::flight::removal::unless_removed;
use crate::unpack::snapshotter::listing::Listing;
use crate::unpack::target::stuck;

/// The status of an image in a snapshotter.
#[derive(Clone, Debug)]
pub struct ImageStatus {
    /// The digest of the manifest for this platform.
    pub manifest: String,
    /// The state of the image's chain.
    pub state: State,
    /// The image is excluded, and so needs no labels.
    pub left_out: bool,
    /// Layers of the image.
    pub layers: usize,
    /// Layers that are committed with their labels.
    pub ready_layers: usize,
    /// Layers that are committed.
    pub committed: usize,
}

impl Engine {
    /// Reads all snapshots of a snapshotter, and all blobs.
    pub async fn list(&self, snapshotter: &str) -> Result<Listing, crate::containerd::Error> {
        Listing::read(self.containerd.as_ref(), snapshotter).await
    }

    /// Returns the status of the image with these names, from a listing.
    pub async fn look(
        &self,
        image: &Image,
        names: &[String],
        listing: &Listing,
    ) -> Result<ImageStatus, Error> {
        let resolved = self.resolver.target_in(image, names, listing).await;
        let (target, left_out) = match resolved {
            Ok(resolved) => resolved,
            Err(e) => return Err(unless_removed(self.containerd.as_ref(), e).await),
        };
        let status = target.look_in(listing);
        let mut state = status.state(&target.rules);
        // With guest pull no blob is needed. It may be in use although no snapshot shows it yet.
        let may_proxy =
            target.leaves_to_guest || self.resolver.profile(&listing.snapshotter).may_proxy;
        let needs_blobs = !left_out && !may_proxy;
        if matches!(state, State::Missing | State::Partial)
            && needs_blobs
            && !target.has_blobs_in(listing, &status)
        {
            state = State::Unavailable;
        }
        Ok(ImageStatus {
            manifest: target.manifest.digest.clone(),
            state,
            left_out,
            layers: status.layers.len(),
            ready_layers: status.ready_layers(&target.rules),
            committed: status.committed(),
        })
    }

    /// Returns the steps that [`Engine::ensure`] would run for an image, in order; none for an excluded image.
    pub async fn planned(
        &self,
        image: &Image,
        names: &[String],
        listing: &Listing,
    ) -> Result<Vec<Planned>, Error> {
        let (target, left_out) = self.resolver.target_in(image, names, listing).await?;
        if left_out {
            return Ok(vec![]);
        }
        let status = target.look_in(listing);
        if let Some(refused) = target.refused(&status) {
            return Err(refused);
        }
        let steps = plan(&status, &target.rules);
        Ok(spelled_out(&steps, &target.manifest.layers))
    }

    /// Returns the missing layers of an image: the position of each, from 0 at the bottom, and its chain id.
    pub async fn missing_layers(
        &self,
        image: &Image,
        listing: &Listing,
    ) -> Result<Vec<(usize, String)>, Error> {
        let (target, _) = self.resolver.target_in(image, &[], listing).await?;
        let layers = target.manifest.layers.iter().enumerate();
        let missing = layers.filter(|(_, layer)| listing.snapshot(&layer.chain_id).is_none());
        Ok(missing
            .map(|(i, layer)| (i, layer.chain_id.clone()))
            .collect())
    }

    /// Returns the chain ids of an image's layers, bottom first.
    pub async fn chain(&self, image: &Image) -> Result<Vec<String>, Error> {
        let manifest = self.resolver.images.manifest(image).await?;
        let layers = manifest.layers.iter();
        Ok(layers.map(|layer| layer.chain_id.clone()).collect())
    }

    /// Returns the images that have the layer `chain` and that containerd cannot unpack by itself in a snapshotter, the
    /// newest first.
    pub async fn stuck_at(&self, snapshotter: &str, chain: &str) -> Result<Vec<Image>, Error> {
        stuck::with_layer(&self.resolver.images, snapshotter, chain).await
    }

    /// Returns whether containerd cannot unpack this image by itself in a snapshotter: a blob is gone, will be collected,
    /// or is encrypted.
    pub async fn is_stuck(&self, snapshotter: &str, image: &Image) -> Result<bool, Error> {
        stuck::is(&self.resolver.images, snapshotter, image).await
    }
}
