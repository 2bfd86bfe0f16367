//! Guest pull: a probe whether the guest pulls the images of a snapshotter, and private chains for images whose own
//! chain ids are used by an unpack on the host.
//!
//! With guest pull, one labelled `Prepare` without a parent makes the chain of an image, since the guest pulls the
//! whole image. The snapshotter answers *AlreadyExists*, and has committed a snapshot without content under the name
//! in the label `containerd.io/snapshot.ref`.

use std::time::{Duration, SystemTime};

use crate::containerd::{self, Containerd, Labels, Snapshot, SnapshotKind};
use crate::image::{
    IMAGE_REF, LAYER_DIGEST, Manifest, PARENT_CHAIN_ID, SNAPSHOT_REF, is_from_the_pull,
};

use super::lease::Lease;
use super::listing::ANCHOR;
use super::mounts;
use crate::unpack::chain::profile::is_proxied;

/// The prefix of the names of private chains; the chain id follows.
const PRIVATE: &str = "nri-unpack-private-";

/// The prefix of the names of layers in a private chain that is unpacked on the host; the chain id follows.
const ON_HOST: &str = "nri-unpack-private-host-";

/// The suffix of the anchor of a private chain.
const ANCHOR_SUFFIX: &str = "/nri-unpack";

/// The suffix of the anchor of a private chain that is unpacked on the host.
pub(crate) const ON_HOST_ANCHOR_SUFFIX: &str = "/nri-unpack-host";

/// The digest of zero bytes, which the labels of a probe name as the layer.
pub(crate) const NOTHING: &str =
    "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

/// The longest time of a probe, which has no content: a snapshotter that does not answer by then hangs.
const PROBE_DEADLINE: Duration = Duration::from_secs(10);

/// Whether this is the name of a private chain.
pub(crate) fn is_private(chain: &str) -> bool {
    chain.starts_with(PRIVATE)
}

/// Whether this is the name of a private chain that was unpacked on the host.
pub(crate) fn is_on_host(chain: &str) -> bool {
    chain.starts_with(ON_HOST)
}

/// Returns the name of a layer in a private chain that is unpacked on the host.
pub(crate) fn host_name(chain_id: &str) -> String {
    format!("{ON_HOST}{chain_id}")
}

/// Returns the chain id of a layer from its chain id or from its name in a private chain on the host.
pub(crate) fn chain_id_of(name: &str) -> &str {
    name.strip_prefix(ON_HOST).unwrap_or(name)
}

/// Returns the chain id of a layer from its name in any private chain.
pub(crate) fn public_name(name: &str) -> &str {
    let own = name.strip_prefix(ON_HOST).or(name.strip_prefix(PRIVATE));
    own.unwrap_or(name)
}

/// Probes whether the guest pulls the labelled images of a snapshotter: what the snapshotter itself says of a layer that
/// it commits. The probe leaves nothing behind and names no image, so a snapshotter that mounts labelled layers from a
/// registry sends no request to it.
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
    let Ok(labels) = tokio::time::timeout(PROBE_DEADLINE, probe.takes()).await else {
        // The snapshotter may still make the snapshot.
        lease.keep();
        let call = "probe snapshotter";
        return Err(containerd::Error::timed_out(call, snapshotter));
    };
    Ok(labels?.is_some_and(|labels| is_proxied(&labels)))
}

/// Whether the snapshotter needs the content of labelled layers: its newest layer that was prepared with labels is one
/// that it did not leave to a guest. Layers before `since` do not count, since the snapshotter may have run in another
/// mode then.
pub(crate) async fn needs_content(
    containerd: &dyn Containerd,
    snapshotter: &str,
    since: Option<SystemTime>,
) -> Result<bool, containerd::Error> {
    let is_labelled = |s: &Snapshot| {
        s.kind == SnapshotKind::Committed
            && [SNAPSHOT_REF, LAYER_DIGEST]
                .iter()
                .all(|key| s.labels.contains_key(*key))
            && since.is_none_or(|since| s.created_at.is_some_and(|at| at > since))
    };
    let mut newest = None;
    let each = &mut |snapshot: Snapshot| {
        if is_labelled(&snapshot) {
            newest = newest.max(Some((snapshot.created_at, is_proxied(&snapshot.labels))));
        }
    };
    containerd.snapshots(snapshotter, each).await?;
    Ok(newest.is_some_and(|(_, is_proxied)| !is_proxied))
}

/// Whether a committed layer holds nothing but its own directory, as a guest-pulled layer does. An error counts as
/// `true`: a layer that may have no content is not taken for one that has.
pub(crate) async fn is_empty(
    containerd: &dyn Containerd,
    snapshotter: &str,
    chain_id: &str,
) -> bool {
    let is_empty = is_surely_empty(containerd, snapshotter, chain_id);
    is_empty.await.unwrap_or(true)
}

/// Like [`is_empty`], for a caller that removes an empty layer: an error is none of the two.
pub(crate) async fn is_surely_empty(
    containerd: &dyn Containerd,
    snapshotter: &str,
    chain_id: &str,
) -> Result<bool, containerd::Error> {
    let inodes = containerd.inodes(snapshotter, chain_id).await?;
    Ok(inodes <= 1)
}

/// Returns the name of the private chain of the image whose own chain has the id `chain_id`.
pub(crate) fn private_name(chain_id: &str) -> String {
    format!("{PRIVATE}{chain_id}")
}

/// One image in a snapshotter that may commit layers without content.
pub(crate) struct Guest<'a> {
    pub(crate) containerd: &'a dyn Containerd,
    pub(crate) snapshotter: &'a str,
    pub(crate) lease: &'a Lease,
    /// The labels of the image's top layer.
    pub(crate) labels: &'a Labels,
}

impl Guest<'_> {
    /// Probes whether the snapshotter commits a layer with these labels without its content. Returns the labels of
    /// that snapshot; `None` if the snapshotter needs the content. Leaves nothing behind.
    pub(crate) async fn takes(&self) -> Result<Option<Labels>, containerd::Error> {
        let name = self.lease.probe_name();
        let prepared = self.prepare(&name).await;
        if !matches!(prepared, Ok(None)) {
            self.lease
                .remove(self.containerd, self.snapshotter, &name)
                .await;
        }
        prepared
    }

    /// Makes the image's private chain, if it does not exist, and returns its name; `None` where the guest does not
    /// pull the image. The chain has an anchor of its own (a gc label on the image's config blob), so it is collected
    /// when the image is removed. A chain that was made while the image was being pulled gets the image's name.
    pub(crate) async fn private_chain(
        &self,
        manifest: &Manifest,
    ) -> Result<Option<String>, containerd::Error> {
        let Some(chain_id) = manifest.chain_id() else {
            return Ok(None);
        };
        let name = private_name(chain_id);
        let prepared = self.prepare(&name).await?.filter(is_proxied);
        let Some(labels) = prepared else {
            return Ok(None);
        };
        if is_from_the_pull(&labels, self.labels, &manifest.digest) {
            let image = self.labels.get_key_value(IMAGE_REF);
            let image = image.map(|(key, value)| (key.clone(), value.clone()));
            let (snapshotter, image) = (self.snapshotter, image.into_iter().collect());
            self.containerd
                .label_snapshot(snapshotter, &name, image)
                .await?;
        }
        let anchor = format!("{ANCHOR}{}{ANCHOR_SUFFIX}", self.snapshotter);
        let label = Labels::from([(anchor, name.clone())]);
        self.containerd.label_blob(&manifest.config, label).await?;
        Ok(Some(name))
    }

    /// Prepares a snapshot that is to be committed as `name`. Returns its labels if the snapshotter committed it
    /// without content, or provides the content itself; `None` if the snapshotter needs the content.
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
                // The snapshot may have been made although its answer was lost.
                self.lease.remove(self.containerd, snapshotter, &key).await;
                Err(e)
            }
        }
    }
}
