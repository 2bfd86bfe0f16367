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
use super::images::Images;
use super::label_policy::{LabelPolicy, Labelling};
use super::labelling::{self, EXCLUDED};
use super::request::{Request, Want};
use super::store_images::RequestImages;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::{Profile, Repair, is_proxied};
use crate::unpack::chain::state::{Origin, Rules};
use crate::unpack::snapshotter::capabilities::{Capabilities, CapabilityCache};
use crate::unpack::snapshotter::findings::{Findings, Process};
use crate::unpack::snapshotter::guest_pull;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::Listing;
use crate::unpack::snapshotter::mounts;

/// Resolves requests to targets, for one engine.
pub(crate) struct Resolver {
    pub(crate) images: Arc<Images>,
    leases: Arc<Leases>,
    policy: Box<dyn LabelPolicy>,
    capabilities: Arc<CapabilityCache>,
    /// Whether the guest pulls the images of a snapshotter, where that had to be found out.
    findings: Findings,
    /// Whether this containerd sets lineage labels; `None` while its version is not known.
    labels_lineage: Mutex<Option<bool>>,
}

impl Resolver {
    pub(crate) fn new(
        images: Arc<Images>,
        leases: Arc<Leases>,
        policy: Box<dyn LabelPolicy>,
        capabilities: Arc<CapabilityCache>,
    ) -> Self {
        Self {
            images,
            leases,
            policy,
            capabilities,
            findings: Findings::default(),
            labels_lineage: Mutex::default(),
        }
    }

    /// Forgets all findings and the version, since containerd may have been restarted with another version or
    /// configuration.
    pub(crate) fn forget(&self) {
        self.findings.forget();
        *self.lineage() = None;
    }

    /// Returns the kind of snapshotter. The configuration decides before what was found out, and that before the name.
    /// If the snapshotter was restarted since the guest pulled its images, it counts as such until the next finding.
    pub(crate) fn profile(&self, snapshotter: &str) -> Profile {
        if let Some(configured) = self.policy.profile(snapshotter) {
            return configured;
        }
        let by_name = || Profile::of(snapshotter).unwrap_or(Profile::COMPLETE);
        match self.findings.current(snapshotter) {
            Some(true) => Profile::NYDUS,
            Some(false) => Profile::COMPLETE,
            None if self.findings.last(snapshotter) == Some(true) => Profile::NYDUS,
            None => by_name(),
        }
    }

    /// Whether the guest pulls the labelled images of the snapshotter, as far as that is configured or found out.
    pub(crate) fn supports_guest_pull(&self, snapshotter: &str) -> bool {
        self.guest_pull_now(snapshotter) == Some(true)
    }

    /// Returns the same without a call; `None` if the snapshotter was restarted since it was found out.
    pub(crate) fn guest_pull_now(&self, snapshotter: &str) -> Option<bool> {
        match (
            self.policy.profile(snapshotter),
            self.findings.last(snapshotter),
        ) {
            (Some(configured), _) => Some(configured.may_proxy),
            (None, None) => Some(false),
            (None, Some(_)) => self.findings.current(snapshotter),
        }
    }

    /// Has it found out again whether the guest pulls the snapshotter's images, since what the snapshotter did
    /// contradicts the finding.
    pub(crate) fn doubt(&self, snapshotter: &str) {
        self.findings.doubt(snapshotter);
    }

    /// Resolves a request to its target.
    pub(crate) async fn target(&self, request: &Request) -> Result<Target, Error> {
        let snapshotter = request.snapshotter.as_str();
        let list = RequestImages::default();
        let found = self.images.find(request, &list).await;
        let Found {
            image,
            requested,
            is_copied,
        } = match found {
            Ok(found) => found,
            Err(e) => return Err(self.without_foreign_state(snapshotter, e).await),
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
        let supports_guest_pull = match self.guest_pull_if_known(snapshotter).await {
            Some(known) => known,
            None => {
                let found_out = self.find_out_from(&manifest, snapshotter).await;
                found_out.map_err(|e| failed(&image, snapshotter, e))?
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
        target.may_have_guest_layers = self.may_proxy(snapshotter).await;
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
    ) -> Result<(Target, bool), Error> {
        let snapshotter = listing.snapshotter.as_str();
        let manifest = self.images.manifest(image).await?;
        let wanted = self.policy.labelling(snapshotter, names);
        let labelling = wanted.unwrap_or(EXCLUDED);
        let reference = Some(image.name.as_str());
        let supports_guest_pull = match self.guest_pull_if_known(snapshotter).await {
            Some(known) => known,
            None => {
                let seems = || self.seems_to_pull(snapshotter, listing);
                *listing.seems_to_pull.get_or_init(seems).await
            }
        };
        let is_bare = self.is_bare(snapshotter, labelling, supports_guest_pull);
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
        target.may_have_guest_layers = self.may_proxy(snapshotter).await;
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

    /// Whether the guest pulls the snapshotter's images, as far as that is known without a look at its snapshots.
    /// `false` for a snapshotter that is a part of containerd, and for a lazy one.
    async fn guest_pull_if_known(&self, snapshotter: &str) -> Option<bool> {
        if let Some(configured) = self.policy.profile(snapshotter) {
            return Some(configured.may_proxy);
        }
        if !self.may_proxy(snapshotter).await {
            return Some(false);
        }
        self.findings.current(snapshotter)
    }

    /// Whether the snapshotter may leave images to a guest: by its configuration or its name, or as a proxy plugin. It may if
    /// that is not known.
    async fn may_proxy(&self, snapshotter: &str) -> bool {
        let configured = self.policy.profile(snapshotter);
        match configured.or_else(|| Profile::of(snapshotter)) {
            Some(profile) => profile.may_proxy,
            None => {
                let capabilities = self.capabilities(snapshotter).await;
                capabilities.map_or(true, |capabilities| capabilities.is_proxy)
            }
        }
    }

    async fn capabilities(&self, snapshotter: &str) -> Result<Capabilities, containerd::Error> {
        let containerd = self.images.containerd();
        self.capabilities.known(containerd, snapshotter).await
    }

    /// Finds out whether the guest pulls the snapshotter's images, without a write if the top layer of this image shows
    /// it: its process has marked it as guest-pulled, and it is empty.
    async fn find_out_from(
        &self,
        manifest: &Manifest,
        snapshotter: &str,
    ) -> Result<bool, containerd::Error> {
        let containerd = self.images.containerd();
        let process = Process::at(self.capabilities(snapshotter).await?.socket);
        let Some(chain_id) = manifest.chain_id() else {
            return self.find_out(snapshotter).await;
        };
        let top = match containerd.stat(snapshotter, chain_id).await {
            Ok(top) => top,
            Err(e) if e.is_not_found() => return self.find_out(snapshotter).await,
            Err(e) => return Err(e),
        };
        let since = process.since();
        let is_of_process = since.is_none_or(|since| top.created_at.is_some_and(|at| at > since));
        let is_marked = is_of_process && is_proxied(&top.labels);
        if !is_marked || !guest_pull::is_empty(containerd, snapshotter, chain_id).await {
            return self.find_out(snapshotter).await;
        }
        if since.is_some() {
            self.findings.record(snapshotter, true, process);
        }
        Ok(true)
    }

    /// Finds out whether the guest pulls the snapshotter's images, if it is not known of the process that runs now.
    /// A snapshotter whose name says nothing is not probed if its own snapshots show that it is a lazy one.
    pub(crate) async fn find_out(&self, snapshotter: &str) -> Result<bool, containerd::Error> {
        if let Some(known) = self.guest_pull_if_known(snapshotter).await {
            return Ok(known);
        }
        let containerd = self.images.containerd();
        let process = Process::at(self.capabilities(snapshotter).await?.socket);
        let is_lazy = Profile::of(snapshotter).is_none()
            && guest_pull::needs_content(containerd, snapshotter, process.since()).await?;
        let pulls = !is_lazy && {
            let lease = self.leases.take(containerd).await?;
            let pulls = guest_pull::pulls(containerd, snapshotter, &lease).await;
            lease.release(containerd).await;
            pulls?
        };
        if self.findings.last(snapshotter) != Some(pulls) {
            log::info!(snapshotter, pulls; "found out whether the guest pulls images");
        }
        let process = match pulls || Profile::of(snapshotter).is_some() {
            true => process,
            // Most snapshotters never leave images to a guest, and a list of their snapshots takes long.
            false => process.if_seen(),
        };
        self.findings.record(snapshotter, pulls, process);
        Ok(pulls)
    }

    /// Returns what the existing snapshots show of it, without a change: the mounts of a container on a layer that may
    /// be guest-pulled, or else whether such a layer holds nothing.
    async fn seems_to_pull(&self, snapshotter: &str, listing: &Listing) -> bool {
        let containerd = self.images.containerd();
        if let Some(key) = listing.directly_on_guest_layer() {
            let mounts = containerd.mounts(snapshotter, &key).await;
            return mounts.is_ok_and(|mounts| mounts::are_of_guest(&mounts));
        }
        match listing.newest_guest_layer() {
            Some(layer) => guest_pull::is_empty(containerd, snapshotter, &layer).await,
            None => false,
        }
    }

    /// Returns the error of a chain without an image, without a state that only a label shows: in a snapshotter that
    /// leaves no image to a guest, the label comes from an image's annotation.
    async fn without_foreign_state(&self, snapshotter: &str, mut error: Error) -> Error {
        if let Error::NoImage { state, .. } = &mut error
            && state.is_some()
            && self.guest_pull_if_known(snapshotter).await == Some(false)
        {
            *state = None;
        }
        error
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
