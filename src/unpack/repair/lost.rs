//! Removes the records of layers that a snapshotter has lost: its directory was deleted, or it was installed again.
//! containerd's metadata keeps the records, so it answers «not found» to a look at such a layer, and «already exists» to
//! an unpack of it.
//!
//! containerd removes no record that has a child, and does not list the lost children. So the records on a lost layer
//! are found by the images of the store, and removed from the top down. The record of a container's own snapshot stays,
//! and with it all records below.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use futures::stream::{self, StreamExt, TryStreamExt};

use crate::containerd::{self, Containerd, ErrorKind};
use crate::image::Manifest;
use crate::unpack::chain::error::Error;
use crate::unpack::schedule::layer_locks::LayerLocks;
use crate::unpack::schedule::priority::Priority;
use crate::unpack::schedule::process_lock::process_lock;
use crate::unpack::snapshotter::guest_pull::{host_name, private_name};
use crate::unpack::target::Target;
use crate::unpack::target::images::Images;

/// The number of records of one height that are removed at the same time. containerd runs one write after another, so
/// more would only block other clients.
const PARALLEL_REMOVALS: usize = 4;

/// The names of records, by their height in their images, the highest first.
type Names = BTreeMap<Reverse<usize>, BTreeSet<String>>;

/// The outcome of a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removed {
    /// The records are gone: the layers can be unpacked again.
    Gone,
    /// A container's record stands on the lowest lost layer.
    InUse,
}

/// The lost layers of one image in one snapshotter.
pub(crate) struct LostLayers<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) images: &'a Images,
    pub(crate) layer_locks: &'a LayerLocks,
    pub(crate) priority: &'a Priority,
    pub(crate) target: &'a Target,
    /// The position of the lowest lost layer.
    pub(crate) from: usize,
}

impl LostLayers<'_> {
    /// Removes the records of the lost layers and of all lost layers of other images above them, as far as no container
    /// stands on them.
    pub(crate) async fn remove_records(&self) -> Result<Removed, Error> {
        let lowest = self.target.manifest.layers.get(self.from);
        let Some(lowest) = lowest.map(|layer| layer.chain_id.as_str()) else {
            return Ok(Removed::Gone);
        };
        let names = self.records_above(lowest).await?;
        let removed = async {
            for names in names.values() {
                let removals: Vec<_> = names.iter().map(|name| self.remove(name)).collect();
                let removals = stream::iter(removals).buffer_unordered(PARALLEL_REMOVALS);
                removals.try_collect::<()>().await?;
            }
            let snapshotter = &self.target.snapshotter;
            self.containerd.has_record(snapshotter, lowest).await
        };
        match removed.await {
            Ok(false) => Ok(Removed::Gone),
            Ok(true) => Ok(Removed::InUse),
            Err(e) => Err(self.target.failed(e)),
        }
    }

    /// Returns the names that records on the layer `lowest` may have, and its own.
    async fn records_above(&self, lowest: &str) -> Result<Names, Error> {
        let mut names = Names::new();
        add_above(&mut names, &self.target.manifest, lowest);
        for image in self.images.all().await? {
            if let Some(manifest) = self.images.readable(&image).await? {
                add_above(&mut names, &manifest, lowest);
            }
        }
        Ok(names)
    }

    /// Removes one record, if the snapshotter has lost its snapshot and nothing stands on it.
    async fn remove(&self, name: &str) -> Result<(), containerd::Error> {
        let snapshotter = self.target.snapshotter.as_str();
        // Another flight or process may be unpacking this layer again.
        let _flight = self
            .layer_locks
            .lock(snapshotter, name, self.priority, || ());
        let _flight = _flight.await;
        let _process = process_lock(self.containerd, snapshotter, name).await;
        match self.containerd.stat(snapshotter, name).await {
            Ok(_) => return Ok(()),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        match self.containerd.remove(snapshotter, name).await {
            Err(e) if e.is_not_found() || e.kind == ErrorKind::FailedPrecondition => Ok(()),
            removed => removed,
        }
    }
}

/// Adds the names of an image's records from the layer `lowest` upwards, and those of its private chains.
fn add_above(names: &mut Names, manifest: &Manifest, lowest: &str) {
    let layers = manifest.layers.iter().enumerate();
    let above = layers.skip_while(|(_, layer)| layer.chain_id != lowest);
    for (height, layer) in above {
        let here = names.entry(Reverse(height)).or_default();
        here.extend([host_name(&layer.chain_id), layer.chain_id.clone()]);
        if manifest.chain_id() == Some(&layer.chain_id) {
            here.insert(private_name(&layer.chain_id));
        }
    }
}
