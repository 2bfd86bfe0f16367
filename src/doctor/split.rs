//! Split brain: containerd's metadata has a snapshot that the snapshotter has lost.
//!
//! containerd then answers «not found» when the layer is looked up, and «already exists» when it is committed.

use std::collections::{BTreeMap, BTreeSet};

use crate::containerd::{Containerd, Labels};
use crate::ctr::Ctr;
use crate::unpack::Listing;

use super::finding::{Finding, Severity, word};
use super::inventory::Inventory;

/// A key that no snapshot has.
const NOTHING: &str = "nri-unpack-doctor nothing";

/// No lease: containerd would look up a lease first, and fail if it does not exist.
const NO_LEASE: &str = "";

/// The maximum number of layers that are checked in a snapshotter. If one layer is lost, usually many are.
const MAX_ASKED: usize = 500;

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let mut findings = Vec::new();
    for (snapshotter, listing) in seen.kept(inventory.config()) {
        let lost = lost(inventory, snapshotter, listing).await;
        if !lost.is_empty() {
            findings.push(finding(inventory, snapshotter, &lost));
        }
    }
    findings
}

/// Returns the lost chain ids with the images that need them, the highest layer first.
async fn lost(
    inventory: &Inventory,
    snapshotter: &str,
    listing: &Listing,
) -> Vec<(String, BTreeSet<String>)> {
    let engine = &inventory.node.engine;
    let containerd = inventory.node.containerd.as_ref();
    // The position of each missing layer is its highest one in any image.
    let mut missing: BTreeMap<String, (usize, BTreeSet<String>)> = BTreeMap::new();
    for distinct in inventory.seen().iter().flat_map(|seen| &seen.images) {
        let chains = engine.missing_layers(&distinct.image, listing).await;
        for (position, chain) in chains.unwrap_or_default() {
            let (highest, images) = missing.entry(chain).or_default();
            *highest = position.max(*highest);
            images.insert(distinct.image.name.clone());
        }
    }
    let mut lost = Vec::new();
    for (chain, (position, images)) in missing.into_iter().take(MAX_ASKED) {
        if is_in_metadata(containerd, snapshotter, &chain).await {
            lost.push((position, chain, images));
        }
    }
    lost.sort_by_key(|(position, ..)| std::cmp::Reverse(*position));
    let lost = lost.into_iter();
    lost.map(|(_, chain, images)| (chain, images)).collect()
}

/// Whether the metadata has a snapshot of this name, independently of the snapshotter. Only a commit reads the
/// metadata first. This commit is of a snapshot that does not exist, so it always fails and changes nothing.
async fn is_in_metadata(containerd: &dyn Containerd, snapshotter: &str, chain: &str) -> bool {
    let commit = containerd.commit(NO_LEASE, snapshotter, chain, NOTHING, None, Labels::new());
    matches!(commit.await, Err(e) if e.already_exists())
}

fn finding(
    inventory: &Inventory,
    snapshotter: &str,
    lost: &[(String, BTreeSet<String>)],
) -> Finding {
    let images: BTreeSet<_> = lost.iter().flat_map(|(_, images)| images).collect();
    let images: Vec<_> = images.into_iter().map(String::as_str).collect();
    let found = format!(
        "containerd's metadata has {} layers that the snapshotter {snapshotter} has lost, of {}",
        lost.len(),
        images.join(", ")
    );
    let finding = Finding::new(
        "split-brain",
        Severity::Error,
        found,
        "these images can neither be used nor unpacked there: errors «already exists» and «not found»; the snapshotter's content was deleted without containerd",
    )
    .advise("remove the records, from the top down («not found» means that garbage collection was faster), and make the images ready again");
    let ctr = Ctr::of(inventory.config());
    let finding = lost.iter().fold(finding, |finding, (chain, _)| {
        finding.run(ctr.remove(snapshotter, chain))
    });
    let words: Vec<_> = images.iter().map(|name| word(name)).collect();
    finding.run(format!(
        "nri-unpack ensure {} --snapshotter {snapshotter}",
        words.join(" ")
    ))
}
