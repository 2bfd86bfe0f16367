//! Whether the kernel shows overlayfs' own attributes (`trusted.*`) to this process. The kernel hides them without
//! an error: a layer that is read without them looks complete, and files of the layers below that it hides
//! reappear.

use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities};

/// The initial user namespace. Its number is part of the kernel's interface.
const INITIAL: &str = "user:[4026531837]";

/// Whether the attributes are shown to this process: it needs `CAP_SYS_ADMIN` in the initial user namespace.
pub(crate) fn attributes_are_seen() -> bool {
    let namespace = std::fs::read_link("/proc/self/ns/user").unwrap_or_default();
    let effective = capabilities(None).map(|sets| sets.effective);
    are_shown_to(effective.unwrap_or(CapabilitySet::empty()), &namespace)
}

fn are_shown_to(effective: CapabilitySet, namespace: &Path) -> bool {
    effective.contains(CapabilitySet::SYS_ADMIN) && namespace == Path::new(INITIAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_shown_to_root_in_the_initial_user_namespace_only() {
        let all = CapabilitySet::all();
        let less = all - CapabilitySet::SYS_ADMIN;
        let own = "user:[4026532500]";
        for (effective, namespace, expected) in [
            (all, INITIAL, true),
            (CapabilitySet::SYS_ADMIN, INITIAL, true),
            (less, INITIAL, false),
            (all, own, false),
            (all, "", false),
        ] {
            let shown = are_shown_to(effective, Path::new(namespace));
            assert_eq!(shown, expected, "{effective:?} {namespace}");
        }
        // root runs the tests.
        assert!(attributes_are_seen());
    }
}
