//! The names of this program's leases and of the snapshots that exist only during an unpack. A snapshot's name tells the
//! lease that it was made under, so that what a crash left is found.

/// The prefix of the ids of this program's leases.
pub(super) const LEASE: &str = "nri-unpack-";

/// The prefix of the keys of all extraction snapshots: `extract-<unique> <chain id>`. The unique part of this program's
/// begins with the lease's id.
const EXTRACTION: &str = "extract-";

/// The prefix of the keys of this program's views.
const VIEW: &str = "nri-unpack-view ";

/// The prefix of the names of this program's probes, which have no content.
const PROBE: &str = "nri-unpack-probe-";

/// Returns the key of the `n`th extraction snapshot of a lease.
pub(super) fn extraction(lease: &str, n: u64, chain_id: &str) -> String {
    format!("{EXTRACTION}{lease}.{n} {chain_id}")
}

/// Returns the name of a lease's probe.
pub(super) fn probe(lease: &str) -> String {
    format!("{PROBE}{lease}")
}

/// Returns the key of a view of `chain_id`. All views of a chain have the same key: if garbage collection deleted
/// an earlier view and its parent kept the entry of a child, making and removing a new one repairs the parent.
pub(crate) fn view(chain_id: &str) -> String {
    format!("{VIEW}{chain_id}")
}

/// Whether this is the key of a temporary snapshot of this program.
pub(crate) fn is_temporary(key: &str) -> bool {
    let unique = key.strip_prefix(EXTRACTION);
    unique.is_some_and(|unique| unique.starts_with(LEASE))
        || key.starts_with(VIEW)
        || key.starts_with(PROBE)
}

/// Returns the lease under which a temporary snapshot was made, where its key has it.
pub(crate) fn lease_of(key: &str) -> Option<&str> {
    if let Some(lease) = key.strip_prefix(PROBE) {
        return Some(lease);
    }
    let (unique, _) = key.split_once(' ')?;
    let (lease, _) = unique.strip_prefix(EXTRACTION)?.rsplit_once('.')?;
    lease.starts_with(LEASE).then_some(lease)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_temporary_snapshot_has_its_lease() {
        let lease = "nri-unpack-1-2-3";
        for name in [extraction(lease, 0, "sha256:c"), probe(lease)] {
            assert_eq!(lease_of(&name), Some(lease), "{name}");
            assert!(is_temporary(&name), "{name}");
        }
        let view = view("sha256:c");
        assert!(is_temporary(&view));
        for name in [&*view, "extract-1.0 sha256:c", "sha256:c"] {
            assert_eq!(lease_of(name), None, "{name}");
        }
        assert!(!is_temporary("extract-1.0 sha256:c"));
    }
}
