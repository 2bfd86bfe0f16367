//! Looks at images and at what a snapshotter has of them, for the command line, the doctor and the choice of what
//! to unpack ahead. Changes nothing.

use crate::containerd::Image;

use super::engine::Engine;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::plan::{Planned, plan, spelled_out};
use crate::unpack::chain::state::State;
use crate::unpack::flight::removal::unless_removed;
use crate::unpack::snapshotter::listing::Listing;
use crate::unpack::target::stuck;

/// How an image stands in a snapshotter, for the command line.
#[derive(Clone, Debug)]
pub struct ImageStatus {
    /// Of this platform.
    pub manifest: String,
    /// The word for it.
    pub state: State,
    /// It is left to containerd, and so needs no labels.
    pub left_out: bool,
    /// Layers of the image.
    pub layers: usize,
    /// Of them, those that are committed with their labels.
    pub ready_layers: usize,
    /// Of them, those that are committed.
    pub committed: usize,
}

impl Engine {
    /// What a snapshotter has now.
    pub async fn list(&self, snapshotter: &str) -> Result<Listing, crate::containerd::Error> {
        Listing::read(self.containerd.as_ref(), snapshotter).await
    }

    /// How the image of these names stands in a snapshotter. Changes nothing.
    pub async fn look(
        &self,
        image: &Image,
        names: &[String],
        listing: &Listing,
    ) -> Result<ImageStatus, Error> {
        let seen = self.resolver.target_in(image, names, listing).await;
        let (target, left_out) = match seen {
            Ok(seen) => seen,
            Err(e) => return Err(unless_removed(self.containerd.as_ref(), e).await),
        };
        let status = target.look_in(listing);
        let mut state = status.state(&target.rules);
        // One that leaves images to the guest needs no blob, and may not have shown yet that it does.
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

    /// What an [`Engine::ensure`] would do for an image, in this order; nothing for one that is left
    /// out. Changes nothing.
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

    /// The layers of an image that a snapshotter does not have: each one's position from the bottom
    /// and its chain id.
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

    /// The chain ids of an image's layers, bottom first.
    pub async fn chain(&self, image: &Image) -> Result<Vec<String>, Error> {
        let manifest = self.resolver.images.manifest(image).await?;
        let layers = manifest.layers.iter();
        Ok(layers.map(|layer| layer.chain_id.clone()).collect())
    }

    /// The images that have the layer `chain` and that containerd cannot unpack by itself in a
    /// snapshotter, the newest first.
    pub async fn stuck_at(&self, snapshotter: &str, chain: &str) -> Result<Vec<Image>, Error> {
        stuck::with_layer(&self.resolver.images, snapshotter, chain).await
    }

    /// Whether containerd cannot unpack this image by itself in a snapshotter: a blob is gone, will be
    /// collected, or is encrypted.
    pub async fn is_stuck(&self, snapshotter: &str, image: &Image) -> Result<bool, Error> {
        stuck::is(&self.resolver.images, snapshotter, image).await
    }
}
