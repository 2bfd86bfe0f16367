//! From what is wanted to what has to be done it to: the image's record, its manifest, the labels of
//! its layers, and what absent labels mean in the snapshotter.

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
use super::labelling::{self, LEFT_OUT};
use super::request::{Request, Want};
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::{Profile, Repair, is_proxied};
use crate::unpack::chain::state::{Origin, Rules};
use crate::unpack::snapshotter::capabilities::CapabilityCache;
use crate::unpack::snapshotter::guest_pull;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::Listing;

/// Makes targets of requests, for one engine.
pub(crate) struct Resolver {
    pub(crate) images: Images,
    leases: Arc<Leases>,
    policy: Box<dyn LabelPolicy>,
    capabilities: Arc<CapabilityCache>,
    /// Whether a snapshotter leaves images to the guest, where that was found out.
    guests: Mutex<HashMap<String, bool>>,
    /// Whether containerd labels lineage, where it has said its version.
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

    /// containerd may be another one now, and a snapshotter may do something else: its daemon may have
    /// been restarted.
    pub(crate) fn forget(&self) {
        self.guests().clear();
        *self.lineage() = None;
    }

    /// What kind of snapshotter it is, as far as that is known now.
    pub(crate) fn profile(&self, snapshotter: &str) -> Profile {
        self.policy
            .profile(snapshotter)
            .unwrap_or_else(|| match self.guests().get(snapshotter) {
                Some(true) => Profile::NYDUS,
                _ => Profile::COMPLETE,
            })
    }

    /// Whether it was found to leave labelled images to the guest.
    pub(crate) fn leaves_to_guest(&self, snapshotter: &str) -> bool {
        self.guests().get(snapshotter) == Some(&true)
    }

    /// The target of a request.
    pub(crate) async fn target(&self, request: &Request) -> Result<Target, Error> {
        let snapshotter = request.snapshotter.as_str();
        let Found {
            image,
            asked,
            is_copied,
        } = self.images.find(request).await?;
        let names = self.images.names(&image).await?;
        let is_sandbox = matches!(request.want, Want::Sandbox { .. });
        let in_use = is_sandbox || matches!(request.want, Want::Container { .. });
        let wanted = self.policy.labelling(snapshotter, &names);
        let is_volume = matches!(request.want, Want::Volume { .. });
        if wanted.is_none() && !in_use && !is_volume {
            return Err(left_out(&image, snapshotter));
        }
        // A container of an excluded image is looked at too: none starts from a broken chain.
        let labelling = wanted.unwrap_or(LEFT_OUT);
        let reference = image::name_for_labels(asked.as_deref(), &names);
        if labelling.cri && reference.is_none() {
            return Err(Error::NoName {
                image: image.name,
                ctr: Box::new(self.policy.ctr()),
            });
        }
        let manifest = self.images.manifest(&image).await?;
        let reference = reference.as_deref();
        let leaves = match self.leaves_if_known(snapshotter).await {
            Some(known) => known,
            // The question writes; a chain that stands is an answer.
            None if self
                .is_left_to_guest(&image, &manifest, snapshotter)
                .await? =>
            {
                true
            }
            None => {
                let asked = self.ask(snapshotter).await;
                asked.map_err(|e| failed(&image, snapshotter, e))?
            }
        };
        if wanted.is_none() && !leaves {
            return Err(left_out(&image, snapshotter));
        }
        let is_bare = self.is_bare(snapshotter, labelling, leaves);
        let (mut labels, required) =
            self.labels(&manifest, snapshotter, labelling, reference, is_bare);
        if wanted.is_some() && !is_bare && self.labels_lineage().await {
            labelling::add(&mut labels, image::lineage_labels(&manifest));
        }
        let origin = labelling::origin(&manifest, labelling, &names);
        let guest_pulls = leaves && labelling.cri;
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
        target.leaves_to_guest = leaves;
        target.is_copied = is_copied;
        target.left_alone = wanted.is_none() || request.want.is_left_alone();
        target.arrives = matches!(request.want, Want::Arriving(_));
        // Whether another image has the chain as well makes no difference to one that is in use, nor to a volume.
        let may_replace = leaves || target.rules.repair == Repair::Replace;
        let is_volume = matches!(request.want, Want::Volume { .. });
        if may_replace && !target.in_use && !is_volume {
            target.others = self.images.others(&target.manifest).await?;
        }
        Ok(target)
    }

    /// The target of a look, which changes nothing: how an image stands does not depend on the name
    /// that its labels carry, and whether the guest pulls shows in the snapshots that are there. And
    /// whether it is left to containerd: then it lacks no label.
    pub(crate) async fn seen(
        &self,
        image: &Image,
        names: &[String],
        listing: &Listing,
    ) -> Result<(Target, bool), Error> {
        let snapshotter = listing.snapshotter.as_str();
        let manifest = self.images.manifest(image).await?;
        let wanted = self.policy.labelling(snapshotter, names);
        let labelling = wanted.unwrap_or(LEFT_OUT);
        let reference = Some(image.name.as_str());
        let known = self.leaves_if_known(snapshotter).await;
        let leaves = known.unwrap_or_else(|| listing.all().any(|s| is_proxied(&s.labels)));
        let is_bare = self.is_bare(snapshotter, labelling, leaves);
        let (labels, required) = self.labels(&manifest, snapshotter, labelling, reference, is_bare);
        let origin = labelling::origin(&manifest, labelling, names);
        let guest_pulls = leaves && labelling.cri;
        let rules = self.rules(snapshotter, labelling, required, guest_pulls, origin);
        let mut target = target(
            image,
            snapshotter,
            manifest,
            labels,
            rules,
            self.policy.ctr(),
        );
        target.leaves_to_guest = leaves;
        Ok((target, wanted.is_none()))
    }

    /// The labels that each layer gets, and those that it must have.
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

    /// Whether a layer without `cri.*` labels must not even carry its chain id: nydus refuses a layer with the
    /// chain id and without the name of what the guest is to pull.
    fn is_bare(&self, snapshotter: &str, labelling: Labelling, leaves: bool) -> bool {
        !labelling.cri && (leaves || self.profile(snapshotter).may_proxy)
    }

    /// When a chain that must have these labels is ready.
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

    /// Whether this containerd's own unpack labels lineage; not, where it does not say its version.
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
                log::debug!(error:% = e; "containerd does not say its version: its newer labels are left out");
                false
            }
        }
    }

    /// Whether the snapshotter leaves images to the guest, as far as that is known without asking it. One
    /// that is a part of containerd never does.
    async fn leaves_if_known(&self, snapshotter: &str) -> Option<bool> {
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

    /// Finds out whether the snapshotter leaves images to the guest, before that counts.
    pub(crate) async fn find_out(&self, snapshotter: &str) -> Result<bool, containerd::Error> {
        match self.leaves_if_known(snapshotter).await {
            Some(known) => Ok(known),
            None => self.ask(snapshotter).await,
        }
    }

    /// Whether the snapshotter has left this very image to the guest. What it does with others may
    /// have changed since, so this is not remembered.
    async fn is_left_to_guest(
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

    /// Asks the snapshotter whether it leaves layers with labels to the guest: what it does counts, not
    /// what it is called.
    async fn ask(&self, snapshotter: &str) -> Result<bool, containerd::Error> {
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
        leaves_to_guest: false,
        is_copied: false,
        left_alone: false,
        snapshotter: snapshotter.to_owned(),
        ctr,
    }
}

fn left_out(image: &Image, snapshotter: &str) -> Error {
    Error::LeftOut {
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
