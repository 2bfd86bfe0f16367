//! Explains for `check` why images are made ready ahead.

use std::collections::{HashMap, HashSet};
use std::time::SystemTime;

use crate::containerd::{self, Image};
use crate::node::Node;
use crate::unpack::Listing;

use super::eager::{self, ManagedSnapshotter, StoreImage, Why};
use super::{learned, reconcile};

/// The images of the store, and the managed snapshotters.
pub struct Explainer<'a> {
    node: &'a Node,
    store_images: Vec<StoreImage>,
    managed: Vec<ManagedSnapshotter>,
}

/// What is known of one snapshotter.
pub struct Explanations<'a> {
    explainer: &'a Explainer<'a>,
    managed: Option<&'a ManagedSnapshotter>,
    used: HashMap<String, Option<SystemTime>>,
}

impl<'a> Explainer<'a> {
    /// Reads the images and the snapshotters.
    pub async fn new(node: &'a Node) -> Result<Self, containerd::Error> {
        let containerd = node.containerd.as_ref();
        let (images, listed) = futures::try_join!(containerd.images(), containerd.snapshotters())?;
        let handlers = node.resolve().await?;
        let sandbox = reconcile::sandbox_target(containerd, &handlers, &images).await;
        Ok(Self {
            node,
            store_images: eager::in_order(images, sandbox.as_deref(), &HashSet::new()),
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
        let mut store_images = self.explainer.store_images.iter();
        let found = store_images.find(|it| it.image.target.digest == image.target.digest)?;
        let config = self.explainer.node.config();
        let managed = self.managed?;
        let is_used =
            || learned::repositories(found).any(|repository| self.used.contains_key(&repository));
        let why = match eager::why(&config, managed, found.is_pinned) {
            None if eager::takes_demand(&config, managed) && is_used() => Some(Why::Used),
            why => why,
        };
        why.map(Why::word)
    }
}
