//! Explains for `check` why images are made ready ahead.

use std::collections::{HashMap, HashSet};

use crate::containerd::{self, Image};
use crate::node::Node;
use crate::unpack::Listing;

use super::eager::{self, ManagedSnapshotter, StoreImage, Why};
use super::{learned, reconcile};

/// The images of the store, and the managed snapshotters.
pub struct Explainer<'a> {
    node: &'a Node,
    /// By target digest.
    positions: HashMap<String, usize>,
    store_images: Vec<StoreImage>,
    managed: Vec<ManagedSnapshotter>,
}

/// What is known of one snapshotter.
pub struct Explanations<'a> {
    explainer: &'a Explainer<'a>,
    managed: Option<&'a ManagedSnapshotter>,
    used: HashMap<String, Vec<String>>,
}

impl<'a> Explainer<'a> {
    /// Reads the images and the snapshotters.
    pub async fn new(node: &'a Node) -> Result<Self, containerd::Error> {
        let containerd = node.containerd.as_ref();
        let (images, listed) = futures::try_join!(containerd.images(), containerd.snapshotters())?;
        let handlers = node.resolve().await?;
        let sandbox = reconcile::sandbox_target(containerd, &handlers, &images).await;
        let store_images = eager::in_order(images, sandbox.as_deref(), &HashSet::new());
        let digests = store_images.iter().map(|it| it.image.target.digest.clone());
        Ok(Self {
            node,
            positions: digests.zip(0..).collect(),
            store_images,
            managed: eager::managed(&node.config(), &handlers, &listed),
        })
    }

    /// Reads which repositories containers have used in the snapshotter of a listing.
    pub async fn of(&'a self, listing: &Listing) -> Explanations<'a> {
        let mut managed = self.managed.iter();
        let managed = managed.find(|managed| managed.name == listing.name());
        let engine = &self.node.engine;
        Explanations {
            explainer: self,
            managed,
            used: learned::used(engine, &self.store_images, listing, 1).await,
        }
    }
}

impl Explanations<'_> {
    /// Returns why the plugin makes an image ready ahead, in a fixed word; `None` if it does not.
    pub fn why(&self, image: &Image) -> Option<&'static str> {
        let explainer = self.explainer;
        let at = explainer.positions.get(&image.target.digest)?;
        let found = &explainer.store_images[*at];
        let managed = self.managed?;
        let config = explainer.node.config();
        let is_used =
            || learned::repositories(found).any(|repository| self.used.contains_key(&repository));
        let why = match eager::why(&config, managed, found.is_pinned) {
            None if eager::takes_demand(&config, managed) && is_used() => Some(Why::Used),
            why => why,
        };
        why.map(Why::word)
    }
}
