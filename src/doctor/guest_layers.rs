//! Finds excluded images, and images mounted as volumes, that stand on guest-pulled layers. The snapshotter has
//! committed such a layer without content, since the guest pulls it.

use std::collections::BTreeMap;

use crate::ahead::image_volume;
use crate::unpack::{Listing, State};

use super::finding::{Finding, Severity, some};
use super::inventory::Inventory;

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let mut findings = Vec::new();
    for (snapshotter, listing) in &seen.listings {
        let Ok(listing) = listing else {
            continue;
        };
        let mut broken = Vec::new();
        for distinct in &seen.images {
            let engine = &inventory.node.engine;
            let status = engine
                .image_status(&distinct.image, &distinct.names, listing)
                .await;
            if status.is_ok_and(|status| status.is_excluded && status.state == State::Mixed) {
                broken.push(distinct.image.name.as_str());
            }
        }
        findings.extend(excluded(snapshotter, &broken));
        findings.extend(volumes(snapshotter, listing));
    }
    findings
}

fn excluded(snapshotter: &str, images: &[&str]) -> Option<Finding> {
    if images.is_empty() {
        return None;
    }
    let found = format!(
        "excluded images in {snapshotter} stand on guest-pulled layers: {}",
        some(images, images.len())
    );
    let means = "a running plugin moves their containers onto a chain that the host has unpacked completely; \
                 without it their root file system lacks these layers";
    Some(
        Finding::new("excluded-mixed", Severity::Note, found, means)
            .advise("keep the plugin running, or also exclude the images that share these layers"),
    )
}

fn volumes(snapshotter: &str, listing: &Listing) -> Option<Finding> {
    let pods: BTreeMap<_, _> = listing
        .on_guest_layers()
        .filter_map(|path| Some((path, image_volume(path)?.target)))
        .collect();
    let (path, target) = pods.first_key_value()?;
    let found = format!(
        "{} image volumes in {snapshotter} lack guest-pulled layers, the first at {path} ({target})",
        pods.len()
    );
    Some(
        Finding::new(
            "image-volume-empty",
            Severity::Error,
            found,
            "the containers that mount it see an empty or incomplete directory, without an error",
        )
        .advise("create the pod again while the plugin runs: it fills the volume before the container is created"),
    )
}
