//! Snapshotters that leave the image to the guest: whether this one does, and a private chain for
//! an image whose own chain ids are taken by a host's unpack.
//!
//! There one labelled `Prepare` without a parent is enough, since the guest pulls the whole image;
//! it is answered with *AlreadyExists*, and the snapshot stands committed under the name that its
//! label `containerd.io/snapshot.ref` asks for.

use crate::containerd::{self, Containerd, Labels};
use crate::image::{
    IMAGE_REF, LAYER_DIGEST, Manifest, PARENT_CHAIN_ID, SNAPSHOT_REF, is_from_the_pull,
};

use super::lease::Lease;
use super::mounts;
use crate::unpack::chain::profile::is_proxied;

/// What the names of private chains begin with; the chain id follows.
const PRIVATE: &str = "nri-unpack-private-";

/// The same for the layers of a chain that is unpacked on the host.
const ON_HOST: &str = "nri-unpack-private-host-";

/// The digest of no bytes, such as the layer of a probe has.
pub(crate) const NOTHING: &str =
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// Whether this is a chain that was made here.
pub(crate) fn is_private(chain: &str) -> bool {
    chain.starts_with(PRIVATE)
}

/// Whether this is a private chain that was unpacked on the host.
pub fn is_on_host(chain: &str) -> bool {
    chain.starts_with(ON_HOST)
}

/// The name of a layer in a private chain on the host.
pub(crate) fn host_name(chain_id: &str) -> String {
    format!("{ON_HOST}{chain_id}")
}

/// The chain id of a layer, whether it is that or its name in a private chain on the host.
pub(crate) fn chain_id_of(name: &str) -> &str {
    name.strip_prefix(ON_HOST).unwrap_or(name)
}

/// Whether the snapshotter leaves a layer with labels to the guest. Leaves nothing behind, and names no
/// image: a snapshotter that mounts labelled layers from a registry has nothing to ask for.
pub(crate) async fn pulls(
    containerd: &dyn Containerd,
    snapshotter: &str,
    lease: &Lease,
) -> Result<bool, containerd::Error> {
    let labels = Labels::from([(LAYER_DIGEST.to_owned(), NOTHING.to_owned())]);
    let probe = Guest {
        containerd,
        snapshotter,
        lease,
        labels: &labels,
    };
    let taken = probe.takes().await?;
    Ok(taken.is_some_and(|labels| is_proxied(&labels)))
}

/// What the private chain of the image whose own ends at `chain_id` is called.
pub(crate) fn private_name(chain_id: &str) -> String {
    format!("{PRIVATE}{chain_id}")
}

/// One image in such a snapshotter.
pub(crate) struct Guest<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) snapshotter: &'a str,
    pub(crate) lease: &'a Lease,
    /// The labels of the image's top layer.
    pub(crate) labels: &'a Labels,
}

impl Guest<'_> {
    /// The labels that the snapshotter puts on the layer where it takes it without its content; `None` where
    /// it does not. Leaves nothing behind.
    pub(crate) async fn takes(&self) -> Result<Option<Labels>, containerd::Error> {
        let name = self.lease.probe_name();
        let taken = self.prepare(&name).await;
        if !matches!(taken, Ok(None)) {
            self.lease
                .remove(self.containerd, self.snapshotter, &name)
                .await;
        }
        taken
    }

    /// The image's private chain, made if it is not there yet, and anchored under a label of its own:
    /// it goes with the image. One that was made while the image was being pulled gets its name. `None`
    /// where the snapshotter does not leave the image to the guest.
    pub(crate) async fn private_chain(
        &self,
        manifest: &Manifest,
    ) -> Result<Option<String>, containerd::Error> {
        let Some(chain_id) = manifest.chain_id() else {
            return Ok(None);
        };
        let name = private_name(chain_id);
        let found = self.prepare(&name).await?.filter(is_proxied);
        let Some(found) = found else {
            return Ok(None);
        };
        if is_from_the_pull(&found, self.labels, &manifest.digest) {
            let image = self.labels.get_key_value(IMAGE_REF);
            let image = image.map(|(key, value)| (key.clone(), value.clone()));
            let (snapshotter, image) = (self.snapshotter, image.into_iter().collect());
            self.containerd
                .label_snapshot(snapshotter, &name, image)
                .await?;
        }
        let anchor = format!(
            "containerd.io/gc.ref.snapshot.{}/nri-unpack",
            self.snapshotter
        );
        let label = Labels::from([(anchor, name.clone())]);
        self.containerd.label_blob(&manifest.config, label).await?;
        Ok(Some(name))
    }

    /// The labels of the snapshot `name`, where the snapshotter has committed it without its content, or would
    /// have; `None` where it needs that.
    async fn prepare(&self, name: &str) -> Result<Option<Labels>, containerd::Error> {
        let mut labels = self.labels.clone();
        labels.insert(SNAPSHOT_REF.to_owned(), name.to_owned());
        labels.remove(PARENT_CHAIN_ID);
        let key = self.lease.extraction_key(name);
        let (id, snapshotter) = (self.lease.id(), self.snapshotter);
        match self
            .containerd
            .prepare(id, snapshotter, &key, None, labels)
            .await
        {
            Ok(mounts) => {
                self.lease.remove(self.containerd, snapshotter, &key).await;
                Ok(mounts::are_staged(&mounts).then(Labels::new))
            }
            Err(e) if e.already_exists() => {
                let snapshot = self.containerd.stat(snapshotter, name).await?;
                Ok(Some(snapshot.labels))
            }
            Err(e) => {
                // An answer that got lost leaves the snapshot made.
                self.lease.remove(self.containerd, snapshotter, &key).await;
                Err(e)
            }
        }
    }
}
