//! Fills a volume from an image with guest-pulled layers (image volumes need containerd 2.1 or later). containerd
//! mounts the volume on the host, before any hook, and guest-pulled layers are empty there. So the layers are
//! applied once more, into the volume itself.
//!
//! A private chain does not help: the volume is mounted already, and all containers of the pod share it. An apply
//! into the mount changes the upper directory of the volume's own snapshot, and is removed with it.

use std::sync::Arc;

use tokio_util::sync::CancellationToken;

use crate::containerd::{Containerd, Labels, Mount};
use crate::image::Layer;
use crate::unpack::chain::action::Action;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::State;
use crate::unpack::layer::content::Content;
use crate::unpack::layer::unpack::{Failure, Unpack};
use crate::unpack::schedule::limits::Layers;
use crate::unpack::schedule::priority::{Priority, Urgency};
use crate::unpack::schedule::progress::{Done, Reporter};
use crate::unpack::snapshotter::lease::{Lease, Leases};
use crate::unpack::snapshotter::listing::{FILLED, is_filled};
use crate::unpack::target::{Target, gc_protect};

/// The filling of one volume.
pub(crate) struct Volume<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) leases: &'a Arc<Leases>,
    pub(crate) layers: &'a Layers,
    pub(crate) stop: &'a CancellationToken,
    pub(crate) reporter: &'a Reporter,
    pub(crate) target: &'a Target,
    /// The path at which the volume is mounted. It is also the key of its snapshot.
    pub(crate) path: &'a str,
}

impl Volume<'_> {
    /// Fills the volume unless it has all its layers.
    pub(crate) async fn fill(&self) -> Result<Done, Error> {
        let priority = Priority::new(Urgency::Creation);
        let layer_locks = &self.layers.layer_locks;
        // Two containers of a pod may need the same volume at the same time.
        let _lock = layer_locks.lock(self.path, &priority, || ()).await;
        let (status, _) = self.target.read_status(self.containerd).await?;
        if !status.has_guest_layers() || self.is_filled().await? {
            return Ok(self.done(State::Ready, Action::None, 0));
        }
        self.reporter.found(State::Mixed);
        let lease = self.leases.take(self.containerd).await;
        let lease = lease.map_err(|e| self.target.failed(e))?;
        let filled = self.apply_all(&lease, &priority).await;
        lease.release(self.containerd).await;
        filled?;
        Ok(self.done(State::Mixed, Action::Unpacked, self.layers().len()))
    }

    fn layers(&self) -> &[Layer] {
        &self.target.manifest.layers
    }

    async fn apply_all(&self, lease: &Lease, priority: &Priority) -> Result<(), Error> {
        let missing = gc_protect::all_blobs(self.containerd, lease, self.target).await;
        if let Some(i) = missing.map_err(|e| self.target.failed(e))? {
            return Err(self.target.unavailable(i, vec![]));
        }
        for i in 0..self.layers().len() {
            // The volume is removed with its pod. Then nothing is mounted at the path, and the check fails.
            self.is_filled().await?;
            let applied = self.apply(i, lease, priority).await;
            applied.map_err(|failure| self.target.layer_failed(i, failure))?;
            self.reporter.layers(i + 1, self.layers().len());
        }
        let label = Labels::from([(FILLED.to_owned(), "filled".to_owned())]);
        let snapshotter = self.target.snapshotter.as_str();
        let labelled = self
            .containerd
            .label_snapshot(snapshotter, self.path, label);
        labelled.await.map_err(|e| self.target.failed(e))
    }

    async fn apply(&self, i: usize, lease: &Lease, priority: &Priority) -> Result<(), Failure> {
        let layer = &self.layers()[i];
        let unpack = Unpack {
            is_for_guest: false,
            containerd: self.containerd,
            snapshotter: &self.target.snapshotter,
            lease,
            image: &self.target.image,
            manifest: &self.target.manifest,
            layer,
            parent: None,
            labels: &self.target.labels[i],
            layers: self.layers,
            last_look: None,
            reporter: self.reporter,
            priority,
            place: None,
            stop: self.stop,
        };
        let mount = Mount {
            r#type: "bind".to_owned(),
            source: self.path.to_owned(),
            options: vec!["rbind".to_owned(), "rw".to_owned()],
            ..Default::default()
        };
        unpack.apply(vec![mount], &Content::of_image(layer)).await
    }

    /// Whether all layers were applied into the volume. An error if the volume does not exist.
    async fn is_filled(&self) -> Result<bool, Error> {
        let own = self.containerd.stat(&self.target.snapshotter, self.path);
        let own = own.await.map_err(|e| self.target.failed(e))?;
        Ok(is_filled(&own.labels))
    }

    fn done(&self, found: State, action: Action, layers_done: usize) -> Done {
        Done {
            image: self.target.image.clone(),
            found,
            action,
            layers_done,
            layers_kept: 0,
            layers: self.layers().len(),
        }
    }
}
