//! Resolves a request to its target: the image's record, its manifest, the labels of its layers, and the rules under
//! which its chain is ready.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{self, Containerd, Image};
use crate::ctr::Ctr;
use crate::image::{self, LayerLabels, Manifest};

use super::Target;
use super::find::Found;
use super::images::Images;
use super::label_policy::{LabelPolicy, Labelling};
use super::labelling::{self, EXCLUDED};
use super::request::{Request, Want};
use super::store_images::RequestImages;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::{Profile, Repair, is_proxied};
use crate::unpack::chain::state::{Origin, Rules};
use crate::unpack::snapshotter::capabilities::CapabilityCache;
use crate::unpack::snapshotter::guest_pull;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::Listing;

/// Resolves requests to targets, for one engine.
pub(crate) struct Resolver {
    pub(crate) images: Images,
    leases: Arc<Leases>,
    policy: Box<dyn LabelPolicy>,
    capabilities: Arc<CapabilityCache>,
    /// Whether the guest pulls the images of a snapshotter, for the snapshotters that were probed.
    guests: Mutex<HashMap<String, bool>>,
    /// Whether this containerd sets lineage labels; `None` while its version is not known.
    labels_lineage: Mutex<Option<bool>>,
}

impl Resolver {
    pub(crate) fn new(
        containerd: Arc<dyn Containerd>,
        leases: Arc<Leases>,
        policy: Box<dyn LabelPolicy>,
        capabilities: Arc<CapabilityCache>,
    ) -> Self {
        Self {
            images: Images::new(containerd),
            leases,
            policy,
            capabilities,
            guests: Mutex::default(),
            labels_lineage: Mutex::default(),
        }
    }

    /// Forgets all probes and the version, since containerd or a snapshotter may have been restarted with another
    /// version or configuration.
    pub(crate) fn forget(&self) {
        self.guests().clear();
        *self.lineage() = None;
    }

    /// Returns the kind of snapshotter, as far as it is known now.
    pub(crate) fn profile(&self, snapshotter: &str) -> Profile {
        self.policy
            .profile(snapshotter)
            .unwrap_or_else(|| match self.guests().get(snapshotter) {
                Some(true) => Profile::NYDUS,
                _ => Profile::COMPLETE,
            })
    }

    /// Whether a probe found that the guest pulls the labelled images of the snapshotter.
    pub(crate) fn supports_guest_pull(&self, snapshotter: &str) -> bool {
        self.guests().get(snapshotter) == Some(&true)
    }

    /// Resolves a request to its target.
    pub(crate) async fn target(&self, request: &Request) -> Result<Target, Error> {
        let snapshotter = request.snapshotter.as_str();
        let list = RequestImages::default();
        let Found {
            image,
            requested,
            is_copied,
        } = self.images.find(request, &list).await?;
        let names = self.images.names(&image, &list).await?;
        let is_sandbox = matches!(request.want, Want::Sandbox { .. });
        let in_use = is_sandbox || matches!(request.want, Want::Container { .. });
        let wanted = self.policy.labelling(snapshotter, &names);
        let is_volume = matches!(request.want, Want::Volume { .. });
        if wanted.is_none() && !in_use && !is_volume {
            return Err(excluded(&image, snapshotter));
        }
        // The chain of an excluded image's container is checked, too: no container may start from a broken chain.
        let labelling = wanted.unwrap_or(EXCLUDED);
        let reference = image::name_for_labels(requested.as_deref(), &names);
        if labelling.cri && reference.is_none() {
            return Err(Error::NoName {
                image: image.name,
                ctr: Box::new(self.policy.ctr()),
            });
        }
        let manifest = self.images.manifest(&image).await?;
        let reference = reference.as_deref();
        let supports_guest_pull = match self.guest_pull_if_known(snapshotter).await {
            Some(known) => known,
            // The probe writes; if the chain has a guest-pulled layer on top, no probe is needed.
            None if self.is_guest_pulled(&image, &manifest, snapshotter).await? => true,
            None => {
                let probed = self.probe(snapshotter).await;
                probed.map_err(|e| failed(&image, snapshotter, e))?
            }
        };
        if wanted.is_none() && !supports_guest_pull {
            return Err(excluded(&image, snapshotter));
        }
        let is_bare = self.is_bare(snapshotter, labelling, supports_guest_pull);
        let (mut labels, required) =
            self.labels(&manifest, snapshotter, labelling, reference, is_bare);
        if wanted.is_some() && !is_bare && self.labels_lineage().await {
            labelling::add(&mut labels, image::lineage_labels(&manifest));
        }
        let origin = labelling::origin(&manifest, labelling, &names);
        let guest_pulls = supports_guest_pull && labelling.cri;
        let rules = self.rules(snapshotter, labelling, required, guest_pulls, origin);
        let mut target = target(
            &image,
            snapshotter,
            manifest,
            labels,
            rules,
            self.policy.ctr(),
        );
        target.in_use = in_use;
        target.is_sandbox = is_sandbox;
        target.supports_guest_pull = supports_guest_pull;
        target.is_copied = is_copied;
        target.left_to_containerd = wanted.is_none() || request.want.is_left_to_containerd();
        target.arrives = matches!(request.want, Want::Arriving(_));
        // Other images with the same chain do not matter for a chain in use, nor for a volume.
        let may_replace = supports_guest_pull || target.rules.repair == Repair::Replace;
        let is_volume = matches!(request.want, Want::Volume { .. });
        if may_replace && !target.in_use && !is_volume {
            target.others = self.images.others(&target.manifest, &list).await?;
        }
        Ok(target)
    }

    /// Returns the target of an image for a check, which changes nothing, and whether the image is excluded and so lacks
    /// no label. The state does not depend on the name in the labels. Whether the guest pulls is read from the existing
    /// snapshots, without a probe.
    pub(crate) async fn target_in(
        &self,
        image: &Image,
        names: &[String],
        listing: &Listing,
    ) -> Result<(Target, bool), Error> {
        let snapshotter = listing.snapshotter.as_str();
        let manifest = self.images.manifest(image).await?;
        let wanted = self.policy.labelling(snapshotter, names);
        let labelling = wanted.unwrap_or(EXCLUDED);
        let reference = Some(image.name.as_str());
        let known = self.guest_pull_if_known(snapshotter).await;
        let supports_guest_pull =
            known.unwrap_or_else(|| listing.has_guest_layers());
        let is_bare = self.is_bare(snapshotter, labelling, supports_guest_pull);
        let (labels, required) = self.labels(&manifest, snapshotter, labelling, reference, is_bare);
        let origin = labelling::origin(&manifest, labelling, names);
        let guest_pulls = supports_guest_pull && labelling.cri;
        let rules = self.rules(snapshotter, labelling, required, guest_pulls, origin);
        let mut target = target(
            image,
            snapshotter,
            manifest,
            labels,
            rules,
            self.policy.ctr(),
        );
        target.supports_guest_pull = supports_guest_pull;
        Ok((target, wanted.is_none()))
    }

    /// Returns the labels that each layer gets, and those that it must have.
    fn labels(
        &self,
        manifest: &Manifest,
        snapshotter: &str,
        labelling: Labelling,
        reference: Option<&str>,
        is_bare: bool,
    ) -> (LayerLabels, LayerLabels) {
        let extra = self.policy.extra_labels(snapshotter);
        labelling::labels(manifest, labelling, reference, is_bare, &extra)
    }

    /// Whether a layer without `cri.*` labels must not even have the label with its chain id: nydus refuses a layer that
    /// has the chain id, but not the image name that the guest pulls.
    fn is_bare(&self, snapshotter: &str, labelling: Labelling, supports_guest_pull: bool) -> bool {
        !labelling.cri && (supports_guest_pull || self.profile(snapshotter).may_proxy)
    }

    /// Returns the rules for a chain with these required labels.
    fn rules(
        &self,
        snapshotter: &str,
        labelling: Labelling,
        required: LayerLabels,
        guest_pulls: bool,
        origin: Option<Origin>,
    ) -> Rules {
        let repair = self.policy.repair(snapshotter);
        labelling::rules(labelling, required, guest_pulls, repair, origin)
    }

    /// Whether this containerd's own unpack sets lineage labels; `false` while its version is not known.
    async fn labels_lineage(&self) -> bool {
        let known = *self.lineage();
        if let Some(known) = known {
            return known;
        }
        match self.images.containerd().version().await {
            Ok(version) => {
                let labels = containerd::labels_lineage(&version);
                *self.lineage() = Some(labels);
                labels
            }
            Err(e) => {
                log::debug!(error:% = e; "containerd's version could not be read: layers are unpacked without the lineage labels of containerd 2.3");
                false
            }
        }
    }

    /// Whether the guest pulls the snapshotter's images, as far as that is known without a probe. `false` for a
    /// snapshotter that is a part of containerd.
    async fn guest_pull_if_known(&self, snapshotter: &str) -> Option<bool> {
        let may = match self.policy.profile(snapshotter) {
            Some(profile) => profile.may_proxy,
            None => {
                let capabilities = self.capabilities.of(self.images.containerd(), snapshotter);
                capabilities.await.is_proxy
            }
        };
        if !may {
            return Some(false);
        }
        self.guests().get(snapshotter).copied()
    }

    /// Finds out whether the guest pulls the snapshotter's images, ahead of the first request.
    pub(crate) async fn find_out(&self, snapshotter: &str) -> Result<bool, containerd::Error> {
        match self.guest_pull_if_known(snapshotter).await {
            Some(known) => Ok(known),
            None => self.probe(snapshotter).await,
        }
    }

    /// Whether the top layer of this image's chain is a guest-pulled layer. The result is not cached, since the
    /// snapshotter's configuration may have changed after that layer was made.
    async fn is_guest_pulled(
        &self,
        image: &Image,
        manifest: &Manifest,
        snapshotter: &str,
    ) -> Result<bool, Error> {
        let Some(top) = manifest.chain_id() else {
            return Ok(false);
        };
        match self.images.containerd().stat(snapshotter, top).await {
            Ok(top) => Ok(is_proxied(&top.labels)),
            Err(e) if e.is_not_found() => Ok(false),
            Err(e) => Err(failed(image, snapshotter, e)),
        }
    }

    /// Probes whether the guest pulls the labelled images of the snapshotter. Its behaviour decides, not its name.
    async fn probe(&self, snapshotter: &str) -> Result<bool, containerd::Error> {
        let lease = self.leases.take(self.images.containerd()).await?;
        let pulls = guest_pull::pulls(self.images.containerd(), snapshotter, &lease).await;
        lease.release(self.images.containerd()).await;
        let pulls = pulls?;
        log::info!(snapshotter, pulls; "found out whether the guest pulls images");
        self.guests().insert(snapshotter.to_owned(), pulls);
        Ok(pulls)
    }

    fn lineage(&self) -> MutexGuard<'_, Option<bool>> {
        self.labels_lineage.lock()
    }

    fn guests(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.guests.lock()
    }
}

fn target(
    image: &Image,
    snapshotter: &str,
    manifest: Arc<Manifest>,
    labels: LayerLabels,
    rules: Rules,
    ctr: Ctr,
) -> Target {
    Target {
        image: image.name.clone(),
        record: image.target.digest.clone(),
        manifest,
        labels,
        rules,
        others: HashSet::new(),
        in_use: false,
        is_sandbox: false,
        arrives: false,
        supports_guest_pull: false,
        is_copied: false,
        left_to_containerd: false,
        snapshotter: snapshotter.to_owned(),
        ctr,
    }
}

fn excluded(image: &Image, snapshotter: &str) -> Error {
    Error::Excluded {
        image: image.name.clone(),
        snapshotter: snapshotter.to_owned(),
    }
}

fn failed(image: &Image, snapshotter: &str, source: containerd::Error) -> Error {
    Error::Containerd {
        image: image.name.clone(),
        snapshotter: snapshotter.to_owned(),
        source,
    }
}
