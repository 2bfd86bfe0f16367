//! What a crash of ours has left, and the running plugin has not taken away.

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
        .map(|listing| listing.names().filter(|name| of_ours(name)).count())
        .sum();
    vec![
        Finding::new(
            "leftovers",
            Severity::Warning,
            format!(
                "an nri-unpack that was killed has left something behind (leases: {}, unfinished snapshots: {snapshots})",
                leases.len()
            ),
            "they hold room that garbage collection cannot take back",
        )
        .advise("take them away; the running plugin does so when it starts and every five minutes")
        .run("nri-unpack doctor --fix")
        .cure(Cure::Sweep),
    ]
}
