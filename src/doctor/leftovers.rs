//! Finds leases and snapshots that a killed nri-unpack has left, and that no running plugin has removed.

use super::finding::{Cure, Finding, Severity};
use super::inventory::Inventory;

pub(super) async fn check(inventory: &Inventory) -> Vec<Finding> {
    let Some(seen) = inventory.seen() else {
        return vec![];
    };
    let Ok(leases) = inventory.node.engine.leftovers().await else {
        return vec![];
    };
    if leases.is_empty() {
        return vec![];
    }
    let listings = seen.listings.values().flatten();
    let of_ours = |name: &str| leases.iter().any(|lease| name.contains(lease.as_str()));
    let snapshots: usize = listings
        .map(|listing| listing.other_names().filter(|name| of_ours(name)).count())
        .sum();
    vec![
        Finding::new(
            "leftovers",
            Severity::Warning,
            format!(
                "a killed nri-unpack has left leases and snapshots (leases: {}, unfinished snapshots: {snapshots})",
                leases.len()
            ),
            "they use disk space that garbage collection cannot free",
        )
        .advise("remove them; a running plugin does so when it starts and every five minutes")
        .run("nri-unpack doctor --fix")
        .cure(Cure::Sweep),
    ]
}
