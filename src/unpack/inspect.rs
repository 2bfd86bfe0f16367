//! Reads the status of images in a snapshotter, for the commands, `doctor`, and the choice of what to unpack ahead.
//! Changes nothing.

use crate::containerd::Image;
use crate::image::Layer;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::plan::{Planned, plan, spelled_out};
use crate::unpack::chain::state::State;
use crate::unpack::snapshotter::facts::Facts;
use crate::unpack::snapshotter::listing::Listing;
use crate::unpack::target::resolve::Resolver;

/// The status of an image in a snapshotter.
#[derive(Clone, Debug)]
pub struct ImageStatus {
    /// The digest of the manifest for this platform.
    pub manifest: String,
    /// The chain id of the top layer; `None` for an image without layers.
    pub chain: Option<String>,
    /// The state of the image's chain.
    pub state: State,
    /// Labels name the image by its digest, as during its pull, although it has another name.
    pub has_name_of_pull: bool,
    /// The image is excluded, and so needs no labels.
    pub is_excluded: bool,
    /// Layers of the image.
    pub layers: usize,
    /// Layers that are committed with their labels.
    pub ready_layers: usize,
    /// Host-unpacked layers of a guest-pulled chain that stayed, as in [`Done`](crate::unpack::Done).
    pub layers_kept: usize,
    /// Layers that are committed.
    pub committed: usize,
    /// The size of the (compressed) blobs that have to be applied, in bytes. 0 if the guest pulls the image.
    pub bytes_to_apply: u64,
}

/// Returns the status of the image with these names, from a listing.
pub(crate) async fn image_status(
    resolver: &Resolver,
    image: &Image,
    names: &[String],
    listing: &Listing,
    facts: &Facts,
) -> Result<ImageStatus, Error> {
    let resolved = resolver.target_in(image, names, listing, facts).await;
    let (target, is_excluded) = match resolved {
        Ok(resolved) => resolved,
        Err(e) => return Err(resolver.images.unless_removed(e).await),
    };
    let containerd = resolver.images.containerd();
    let status = target.status_in(containerd, listing).await?;
    let mut state = status.state(&target.rules);
    // With guest pull no blob is needed. It may be in use although no snapshot shows it yet.
    let may_proxy = target.supports_guest_pull || resolver.guest_mode.profile(facts).may_proxy;
    let needs_blobs = !is_excluded && !may_proxy;
    if matches!(state, State::Missing | State::Partial)
        && needs_blobs
        && !target.has_blobs_in(listing, &status)
    {
        state = State::Unavailable;
    }
    let missing = target.manifest.layers.iter().skip(status.committed());
    let missing = missing.map(Layer::bytes).fold(0, u64::saturating_add);
    Ok(ImageStatus {
        bytes_to_apply: if target.rules.guest_pulls { 0 } else { missing },
        manifest: target.manifest.digest.clone(),
        chain: target.manifest.chain_id().map(str::to_owned),
        state,
        has_name_of_pull: target.has_name_of_pull(&status),
        is_excluded,
        layers: status.layers.len(),
        ready_layers: status.ready_layers(&target.rules),
        layers_kept: status.kept_layers(&target.rules),
        committed: status.committed(),
    })
}

/// Returns the steps that make an image ready, in order; none for an excluded image.
pub(crate) async fn planned(
    resolver: &Resolver,
    image: &Image,
    names: &[String],
    listing: &Listing,
    facts: &Facts,
) -> Result<Vec<Planned>, Error> {
    let (target, is_excluded) = resolver.target_in(image, names, listing, facts).await?;
    if is_excluded {
        return Ok(vec![]);
    }
    let containerd = resolver.images.containerd();
    let status = target.status_in(containerd, listing).await?;
    if let Some(refused) = target.refused(&status) {
        return Err(refused);
    }
    let steps = plan(&status, &target.rules);
    Ok(spelled_out(&steps, &target.manifest.layers))
}

/// Returns the chain ids of an image's layers, bottom first.
pub(crate) async fn chain(resolver: &Resolver, image: &Image) -> Result<Vec<String>, Error> {
    let manifest = resolver.images.manifest(image).await?;
    let layers = manifest.layers.iter();
    Ok(layers.map(|layer| layer.chain_id.clone()).collect())
}

/// Returns the size of the (compressed) blobs of an image's layers, in bytes.
pub(crate) async fn bytes(resolver: &Resolver, image: &Image) -> Result<u64, Error> {
    let manifest = resolver.images.manifest(image).await?;
    let layers = manifest.layers.iter();
    Ok(layers.map(Layer::bytes).fold(0, u64::saturating_add))
}
