//! Whether the kernel shows this process overlayfs' own attributes, `trusted.*`. It does not say that it
//! hides them: a layer that is read without them looks whole, and what it hides of the layers below
//! comes back.

use std::path::Path;

use rustix::thread::{CapabilitySet, capabilities};

/// The user namespace that the machine starts with: its number is part of the kernel's interface.
const INITIAL: &str = "user:[4026531837]";

/// Whether they are shown: to who has `CAP_SYS_ADMIN`, and not just in a user namespace of its own.
pub(crate) fn attributes_are_seen() -> bool {
    let namespace = std::fs::read_link("/proc/self/ns/user").unwrap_or_default();
    let held = capabilities(None).map(|sets| sets.effective);
    are_shown_to(held.unwrap_or(CapabilitySet::empty()), &namespace)
}

fn are_shown_to(held: CapabilitySet, namespace: &Path) -> bool {
    held.contains(CapabilitySet::SYS_ADMIN) && namespace == Path::new(INITIAL)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_the_nodes_root_only() {
        let all = CapabilitySet::all();
        let less = all - CapabilitySet::SYS_ADMIN;
        let own = "user:[4026532500]";
        for (held, namespace, expected) in [
            (all, INITIAL, true),
            (CapabilitySet::SYS_ADMIN, INITIAL, true),
            (less, INITIAL, false),
            (all, own, false),
            (all, "", false),
        ] {
            let shown = are_shown_to(held, Path::new(namespace));
            assert_eq!(shown, expected, "{held:?} {namespace}");
        }
        // The tests are run by root.
        assert!(attributes_are_seen());
    }
}
