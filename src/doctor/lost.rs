//! Lost snapshots: containerd's metadata has snapshots that the snapshotter has lost, for example since its directory was
//! deleted or it was installed again. Every pod of the handler fails then, and the plugin removes the records and makes
//! the images again. It cannot do so below a container that exists.

use std::collections::{BTreeMap, BTreeSet};

use crate::containerd::Containerd;
use crate::unpack::{Listing, State};

use super::finding::{Cure, Finding, Severity, some};
use super::inventory::Inventory;

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let mut findings = Vec::new();
    for (snapshotter, listing) in seen.kept(inventory.config()) {
        let images = lost(inventory, listing).await;
        if !images.is_empty() {
            let pods = pods_on_lost(inventory, snapshotter).await;
            findings.push(finding(snapshotter, &images, &pods));
        }
    }
    findings
}

/// Returns the images of which a layer is lost, and whether each is excluded.
async fn lost<'a>(inventory: &'a Inventory, listing: &Listing) -> Vec<(&'a str, bool)> {
    let engine = &inventory.node.engine;
    let mut lost = Vec::new();
    for distinct in inventory.seen().iter().flat_map(|seen| &seen.images) {
        let status = engine
            .image_status(&distinct.image, &distinct.names, listing)
            .await;
        if let Ok(status) = status
            && status.state == State::Lost
        {
            lost.push((distinct.image.name.as_str(), status.is_excluded));
        }
    }
    lost
}

/// Returns the pods with a container or sandbox whose own snapshot the snapshotter has lost.
async fn pods_on_lost(inventory: &Inventory, snapshotter: &str) -> BTreeSet<String> {
    let containerd = inventory.node.containerd.as_ref();
    let (pods, containers) = futures::join!(containerd.cri_pods(), containerd.cri_containers());
    let pods: BTreeMap<_, _> = pods.unwrap_or_default().into_iter().collect();
    let containers = containers.unwrap_or_default().into_iter();
    let containers = containers.map(|container| (container.id, container.pod_id));
    let sandboxes = pods.keys().map(|id| (id.clone(), id.clone()));
    let mut found = BTreeSet::new();
    for (key, pod) in sandboxes.chain(containers) {
        if let Some(name) = pods.get(&pod)
            && is_lost(containerd, snapshotter, &key).await
        {
            found.insert(name.clone());
        }
    }
    found
}

async fn is_lost(containerd: &dyn Containerd, snapshotter: &str, key: &str) -> bool {
    let is_gone = containerd.stat(snapshotter, key).await;
    let is_gone = is_gone.is_err_and(|e| e.is_not_found());
    is_gone && containerd.has_record(snapshotter, key).await == Ok(true)
}

fn finding(snapshotter: &str, images: &[(&str, bool)], pods: &BTreeSet<String>) -> Finding {
    let names: Vec<_> = images.iter().map(|(name, _)| *name).collect();
    let found = format!(
        "the snapshotter {snapshotter} has lost layers of {} images: {}",
        names.len(),
        some(&names, names.len())
    );
    let means = "pods of these images fail: «not found», «already exists»; the snapshotter's content was deleted without containerd";
    let finding = Finding::new("snapshots-lost", Severity::Error, found, means);
    let pods: Vec<&str> = pods.iter().map(String::as_str).collect();
    let say = match pods.is_empty() {
        true => "make the images again; a running plugin does so by itself".to_owned(),
        false => format!(
            "delete these pods, whose own snapshots are lost as well: {}; then make the images again, which a running plugin does by itself",
            some(&pods, pods.len())
        ),
    };
    let managed = images.iter().filter(|(_, is_excluded)| !is_excluded);
    let managed: Vec<_> = managed.map(|(name, _)| *name).collect();
    let finding = finding.advise(say);
    if managed.is_empty() {
        return finding;
    }
    finding.ensure(&managed, snapshotter).cure(Cure::Ensure {
        images: managed.iter().map(ToString::to_string).collect(),
        snapshotter: snapshotter.to_owned(),
    })
}
