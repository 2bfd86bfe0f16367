//! What follows from containerd's version.

/// Returns the major and the minor number; `None` if the text is not a version.
pub fn numbers(version: &str) -> Option<(u64, u64)> {
    let mut numbers = version.trim_start_matches('v').split('.').map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => Some((major, minor)),
        _ => None,
    }
}

/// The first version whose unpack labels each snapshot with its layer's diff id and, above the bottom layer,
/// with the chain id of the layer below.
const LABELS_LINEAGE: (u64, u64) = (2, 3);

/// The only pre-release of [`LABELS_LINEAGE`] whose unpack sets no such labels.
const NOT_YET: &str = "2.3.0-beta.0";

/// Whether the unpack of a containerd of this version sets the labels `containerd.io/snapshot/diff-id` and
/// `containerd.io/snapshot/parent-chain-id`.
pub fn labels_lineage(version: &str) -> bool {
    let is_early = version.trim_start_matches('v').starts_with(NOT_YET);
    numbers(version).is_some_and(|numbers| numbers >= LABELS_LINEAGE) && !is_early
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lineage_is_labelled_from_version_2_3_on() {
        for (version, expected) in [
            ("1.7.24", false),
            ("1.7.34~ds2", false),
            ("2.1.9", false),
            ("2.2.0-rc.1", false),
            ("2.2.7", false),
            ("2.3.0-beta.0", false),
            ("v2.3.0-beta.0+unknown", false),
            ("2.3.0-beta.1", true),
            ("2.3.0-rc.1", true),
            ("2.3.0", true),
            ("v2.3.4+ds1", true),
            ("2.4.0-beta.0", true),
            ("2.10.0", true),
            ("3.0.0-alpha.1", true),
            ("unknown", false),
            ("", false),
        ] {
            assert_eq!(labels_lineage(version), expected, "{version}");
        }
    }
}
