//! Resolves a request to its target: the image's record, its manifest, the labels of its layers, and the rules under
//! which its chain is ready.

use std::collections::HashSet;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{self, Image};
use crate::ctr::Ctr;
use crate::image::{self, LayerLabels, Manifest};

use super::Target;
use super::find::Found;
use super::guest_mode::GuestMode;
use super::images::Images;
use super::label_policy::{LabelPolicy, Labelling};
use super::labelling::{self, EXCLUDED};
use super::request::{Request, Want};
use super::store_images::RequestImages;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::{Profile, Repair};
use crate::unpack::chain::state::{Origin, Rules};
use crate::unpack::snapshotter::facts::Facts;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::Listing;

/// Resolves requests to targets, for one engine.
pub(crate) struct Resolver {
    pub(crate) images: Arc<Images>,
    policy: Arc<dyn LabelPolicy>,
    pub(crate) guest_mode: GuestMode,
    /// Whether this containerd sets lineage labels; `None` while its version is not known.
    labels_lineage: Mutex<Option<bool>>,
}

impl Resolver {
    pub(crate) fn new(
        images: Arc<Images>,
        leases: Arc<Leases>,
        policy: Arc<dyn LabelPolicy>,
    ) -> Self {
        Self {
            guest_mode: GuestMode::new(images.clone(), leases, policy.clone()),
            images,
            policy,
            labels_lineage: Mutex::default(),
        }
    }

    /// Forgets containerd's version, since it may have been restarted with another one.
    pub(crate) fn forget(&self) {
        *self.lineage() = None;
    }

    /// Resolves a request to its target.
    pub(crate) async fn target(&self, request: &Request, facts: &Facts) -> Result<Target, Error> {
        let snapshotter = request.snapshotter.as_str();
        let list = RequestImages::default();
        let found = self.images.find(request, &list).await;
        let Found {
            image,
            requested,
            is_copied,
        } = match found {
            Ok(found) => found,
            Err(e) => return Err(self.guest_mode.without_foreign_state(facts, e).await),
        };
        let is_sandbox = matches!(request.want, Want::Sandbox { .. });
        let in_use = is_sandbox || matches!(request.want, Want::Container { .. });
        let names = match in_use {
            true => self.images.names_at_once(&image, &list).await?,
            false => self.images.names(&image, &list).await?,
        };
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
        let found_out = self.guest_mode.find_out_from(facts, &manifest).await;
        let supports_guest_pull = found_out.map_err(|e| failed(&image, snapshotter, e))?;
        if wanted.is_none() && !supports_guest_pull {
            return Err(excluded(&image, snapshotter));
        }
        let is_bare = self.is_bare(facts, labelling, supports_guest_pull);
        let (mut labels, required) =
            self.labels(&manifest, snapshotter, labelling, reference, is_bare);
        if wanted.is_some() && !is_bare && self.labels_lineage().await {
            labels = labels.with_lineage();
        }
        let origin = labelling::origin(&manifest, labelling, &names);
        let guest_pulls = supports_guest_pull && labelling.cri;
        let mut rules = self.rules(snapshotter, labelling, required, guest_pulls, origin);
        rules.supports_guest_pull = supports_guest_pull;
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
        target.may_have_guest_layers = self.guest_mode.may_proxy(facts).await;
        target.is_copied = is_copied;
        target.left_to_containerd = wanted.is_none() || request.want.is_left_to_containerd();
        target.arrives = matches!(request.want, Want::Arriving(_));
        // Other images with the same chain do not matter for a chain in use, nor for a volume.
        let by_name = Profile::of(snapshotter).is_some_and(|profile| profile.may_proxy);
        let may_replace = supports_guest_pull || by_name || target.rules.repair == Repair::Replace;
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
        facts: &Facts,
    ) -> Result<(Target, bool), Error> {
        let snapshotter = listing.snapshotter.as_str();
        let manifest = self.images.manifest(image).await?;
        let wanted = self.policy.labelling(snapshotter, names);
        let labelling = wanted.unwrap_or(EXCLUDED);
        let reference = Some(image.name.as_str());
        let supports_guest_pull = self.guest_mode.seems_to_pull(facts, listing).await;
        let is_bare = self.is_bare(facts, labelling, supports_guest_pull);
        let (labels, required) = self.labels(&manifest, snapshotter, labelling, reference, is_bare);
        let origin = labelling::origin(&manifest, labelling, names);
        let guest_pulls = supports_guest_pull && labelling.cri;
        let mut rules = self.rules(snapshotter, labelling, required, guest_pulls, origin);
        rules.supports_guest_pull = supports_guest_pull;
        let mut target = target(
            image,
            snapshotter,
            manifest,
            labels,
            rules,
            self.policy.ctr(),
        );
        target.supports_guest_pull = supports_guest_pull;
        target.may_have_guest_layers = self.guest_mode.may_proxy(facts).await;
        Ok((target, wanted.is_none()))
    }

    /// Returns the labels that each layer gets, and those that it must have.
    fn labels(
        &self,
        manifest: &Arc<Manifest>,
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
    fn is_bare(&self, facts: &Facts, labelling: Labelling, supports_guest_pull: bool) -> bool {
        !labelling.cri && (supports_guest_pull || self.guest_mode.profile(facts).may_proxy)
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

    fn lineage(&self) -> MutexGuard<'_, Option<bool>> {
        self.labels_lineage.lock()
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
        may_have_guest_layers: false,
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
