//! Answers whether the guest pulls the images of a snapshotter: by the configuration, by the kind of snapshotter, or by
//! what was found out of its process.

use std::sync::Arc;
use std::time::SystemTime;

use crate::containerd::{self, Containerd};
use crate::image::Manifest;

use super::images::Images;
use super::label_policy::LabelPolicy;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::profile::{Profile, is_proxied};
use crate::unpack::snapshotter::facts::Facts;
use crate::unpack::snapshotter::findings::Process;
use crate::unpack::snapshotter::guest_pull;
use crate::unpack::snapshotter::lease::Leases;
use crate::unpack::snapshotter::listing::Listing;
use crate::unpack::snapshotter::mounts;

/// The limit of containers whose mounts are asked for, to see whether the guest pulls.
const MAX_ASKED: usize = 8;

/// Answers for all snapshotters of one engine. What was found out of one is in its [`Facts`].
pub(crate) struct GuestMode {
    images: Arc<Images>,
    leases: Arc<Leases>,
    policy: Arc<dyn LabelPolicy>,
}

impl GuestMode {
    pub(crate) fn new(
        images: Arc<Images>,
        leases: Arc<Leases>,
        policy: Arc<dyn LabelPolicy>,
    ) -> Self {
        Self {
            images,
            leases,
            policy,
        }
    }

    /// Returns the kind of snapshotter. The configuration decides before what was found out, and that before the name.
    /// If the snapshotter was restarted since the guest pulled its images, it counts as such until the next finding.
    pub(crate) fn profile(&self, facts: &Facts) -> Profile {
        if let Some(configured) = self.policy.profile(&facts.snapshotter) {
            return configured;
        }
        let by_name = || Profile::of(&facts.snapshotter).unwrap_or(Profile::COMPLETE);
        match facts.guest_pulls.current() {
            Some(true) => Profile::NYDUS,
            Some(false) => Profile::COMPLETE,
            None if facts.guest_pulls.last() == Some(true) => Profile::NYDUS,
            None => by_name(),
        }
    }

    /// Whether the guest pulls the labelled images of the snapshotter, as far as that is configured or found out.
    pub(crate) fn supports_guest_pull(&self, facts: &Facts) -> bool {
        self.now(facts) == Some(true)
    }

    /// Returns the same without a call; `None` if the snapshotter was restarted since it was found out.
    pub(crate) fn now(&self, facts: &Facts) -> Option<bool> {
        let configured = self.policy.profile(&facts.snapshotter);
        match (configured, facts.guest_pulls.last()) {
            (Some(configured), _) => Some(configured.may_proxy),
            (None, None) => Some(false),
            (None, Some(_)) => facts.guest_pulls.current(),
        }
    }

    /// Whether the guest pulls the snapshotter's images, as far as that is known without a look at its snapshots.
    /// `false` for a snapshotter that is a part of containerd, and for a lazy one.
    async fn known(&self, facts: &Facts) -> Option<bool> {
        if let Some(configured) = self.policy.profile(&facts.snapshotter) {
            return Some(configured.may_proxy);
        }
        if !self.may_proxy(facts).await {
            return Some(false);
        }
        facts.guest_pulls.current()
    }

    /// Whether the snapshotter may leave images to a guest: by its configuration or its name, or as a proxy plugin. It may if
    /// that is not known.
    pub(crate) async fn may_proxy(&self, facts: &Facts) -> bool {
        let configured = self.policy.profile(&facts.snapshotter);
        match configured.or_else(|| Profile::of(&facts.snapshotter)) {
            Some(profile) => profile.may_proxy,
            None => {
                let capabilities = facts.capabilities_now(self.containerd()).await;
                capabilities.map_or(true, |capabilities| capabilities.is_proxy)
            }
        }
    }

    /// Finds out whether the guest pulls the snapshotter's images, without a write if the top layer of this image shows
    /// it: its process has marked it as guest-pulled, and it is empty.
    pub(crate) async fn find_out_from(
        &self,
        facts: &Facts,
        manifest: &Manifest,
    ) -> Result<bool, containerd::Error> {
        if let Some(known) = self.known(facts).await {
            return Ok(known);
        }
        let (containerd, snapshotter) = (self.containerd(), facts.snapshotter.as_str());
        let process = Process::at(facts.capabilities_now(containerd).await?.socket);
        let Some(chain_id) = manifest.chain_id() else {
            return self.find_out(facts).await;
        };
        let top = match containerd.stat(snapshotter, chain_id).await {
            Ok(top) => top,
            Err(e) if e.is_not_found() => return self.find_out(facts).await,
            Err(e) => return Err(e),
        };
        let since = process.since();
        let is_of_process = since.is_none_or(|since| top.created_at.is_some_and(|at| at > since));
        let is_marked = is_of_process && is_proxied(&top.labels);
        if !is_marked || !guest_pull::is_empty(containerd, snapshotter, chain_id).await {
            return self.find_out(facts).await;
        }
        if since.is_some() {
            facts.guest_pulls.record(true, process);
        }
        Ok(true)
    }

    /// Finds out whether the guest pulls the snapshotter's images, if it is not known of the process that runs now.
    /// Callers at the same time share one probe.
    pub(crate) async fn find_out(&self, facts: &Facts) -> Result<bool, containerd::Error> {
        if let Some(known) = self.known(facts).await {
            return Ok(known);
        }
        let answer = async {
            match self.known(facts).await {
                // Another caller has found it out meanwhile.
                Some(known) => Ok(known),
                None => self.probe(facts).await,
            }
        };
        facts.guest_pull_question.join(answer).await
    }

    /// A snapshotter whose name says nothing is not probed if its own snapshots show that it is a lazy one.
    async fn probe(&self, facts: &Facts) -> Result<bool, containerd::Error> {
        let (containerd, snapshotter) = (self.containerd(), facts.snapshotter.as_str());
        let process = Process::at(facts.capabilities_now(containerd).await?.socket);
        let is_lazy = Profile::of(snapshotter).is_none()
            && guest_pull::needs_content(containerd, snapshotter, process.since()).await?;
        let pulls = !is_lazy && {
            let lease = self.leases.take(containerd).await?;
            let pulls = guest_pull::pulls(containerd, snapshotter, &lease).await;
            lease.release(containerd).await;
            pulls?
        };
        if facts.guest_pulls.last() != Some(pulls) {
            log::info!(snapshotter, pulls; "found out whether the guest pulls images");
        }
        let process = match pulls || Profile::of(snapshotter).is_some() {
            true => process,
            // Most snapshotters never leave images to a guest, and a list of their snapshots takes long.
            false => process.if_seen(),
        };
        facts.guest_pulls.record(pulls, process);
        Ok(pulls)
    }

    /// Returns whether the guest pulls the images, for a check, which changes nothing. If it is not known, the existing
    /// snapshots show it.
    pub(crate) async fn seems_to_pull(&self, facts: &Facts, listing: &Listing) -> bool {
        match self.known(facts).await {
            Some(known) => known,
            None => {
                let shown = || self.is_shown(facts, listing);
                *listing.seems_to_pull.get_or_init(shown).await
            }
        }
    }

    /// Returns what the snapshots show: the mounts of a container on a layer that may be guest-pulled, or else whether
    /// such a layer holds nothing.
    async fn is_shown(&self, facts: &Facts, listing: &Listing) -> bool {
        let (containerd, snapshotter) = (self.containerd(), facts.snapshotter.as_str());
        let capabilities = facts.capabilities_now(containerd).await;
        let since = capabilities.map_or(None, |it| Process::at(it.socket).since());
        let mut is_asked = false;
        for key in listing.directly_on_guest_layers().take(MAX_ASKED) {
            match containerd.mounts(snapshotter, &key).await {
                Ok(mounts) if mounts::are_of_guest(&mounts) => return true,
                Err(e) if e.is_unreachable() => return false,
                _ if self.is_made_since(snapshotter, &key, since).await => return false,
                _ => is_asked = true,
            }
        }
        // Where the socket is not seen, it is not known which containers are from before a restart.
        if is_asked && since.is_none() {
            return false;
        }
        match listing.newest_guest_layer() {
            Some(layer) => guest_pull::is_empty(containerd, snapshotter, &layer).await,
            None => false,
        }
    }

    /// Whether a container was certainly made since the snapshotter's process began. nydus-snapshotter cannot tell the mounts
    /// of an earlier one: that shows nothing.
    async fn is_made_since(
        &self,
        snapshotter: &str,
        container: &str,
        since: Option<SystemTime>,
    ) -> bool {
        let Some(since) = since else {
            return false;
        };
        let stat = self.containerd().stat(snapshotter, container).await;
        stat.is_ok_and(|stat| stat.created_at.is_some_and(|at| at > since))
    }

    /// Returns the error of a chain without an image, without a state that only a label shows: in a snapshotter that
    /// leaves no image to a guest, the label comes from an image's annotation.
    pub(crate) async fn without_foreign_state(&self, facts: &Facts, mut error: Error) -> Error {
        if let Error::NoImage { state, .. } = &mut error
            && state.is_some()
            && self.known(facts).await == Some(false)
        {
            *state = None;
        }
        error
    }

    fn containerd(&self) -> &dyn Containerd {
        self.images.containerd()
    }
}
