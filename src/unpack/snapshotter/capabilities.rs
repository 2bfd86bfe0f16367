//! What the snapshotters can do, as containerd lists it.

use std::collections::HashMap;

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{self, Containerd};

/// The capability, as containerd lists it for a snapshotter.
const REBASE: &str = "rebase";

/// The first version that passes the parent on. An older one may list what its configuration says of
/// a proxy plugin, and commits without a parent.
const SINCE: (u64, u64) = (2, 2);

/// What a snapshotter can do; where that is not known, nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// It takes a layer's parent as late as at its commit, so that the layers of a chain can be applied
    /// at the same time.
    pub(crate) rebases: bool,
    /// It is a part of containerd: each layer is applied. A proxy plugin may have one without.
    pub(crate) applies: bool,
    /// It is a proxy plugin: what it does with labels is its own business.
    pub(crate) is_proxy: bool,
}

/// What is known of the snapshotters.
#[derive(Debug, Default)]
pub(crate) struct CapabilityCache(Mutex<HashMap<String, Capabilities>>);

impl CapabilityCache {
    /// Asked for once; where there is no answer it is not known, for now.
    pub(crate) async fn of(&self, containerd: &dyn Containerd, snapshotter: &str) -> Capabilities {
        if let Some(known) = self.known().get(snapshotter) {
            return *known;
        }
        match ask(containerd, snapshotter).await {
            Ok(answer) => {
                self.known().insert(snapshotter.to_owned(), answer);
                answer
            }
            Err(e) => {
                log::debug!(snapshotter, error:% = e; "what the snapshotter can do is not known");
                Capabilities::default()
            }
        }
    }

    /// containerd may be another one now.
    pub(crate) fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, Capabilities>> {
        self.0.lock()
    }
}

async fn ask(
    containerd: &dyn Containerd,
    snapshotter: &str,
) -> Result<Capabilities, containerd::Error> {
    let listed = containerd.snapshotters().await?;
    let Some(listed) = listed.iter().find(|listed| listed.name == snapshotter) else {
        return Ok(Capabilities::default());
    };
    let rebases = listed.capabilities.iter().any(|c| c == REBASE) && {
        let version = containerd.version().await?;
        containerd::numbers(&version).is_some_and(|numbers| numbers >= SINCE)
    };
    let is_proxy = listed.proxy_address().is_some();
    Ok(Capabilities {
        rebases,
        applies: !is_proxy,
        is_proxy,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::ErrorKind;
    use crate::containerd::fake::Fake;

    #[tokio::test]
    async fn it_takes_the_capability_and_a_containerd_that_passes_the_parent_on() {
        for (version, expected) in [
            ("1.7.24", false),
            ("2.1.9", false),
            ("2.2.0-rc.1", true),
            ("v2.4.0+unknown", true),
            ("10.0.0", true),
            ("unknown", false),
        ] {
            let fake = Fake::default();
            fake.can_rebase("erofs", version);
            let capabilities = CapabilityCache::default();
            assert_eq!(
                capabilities.of(&fake, "erofs").await.rebases,
                expected,
                "{version}"
            );
            assert!(!capabilities.of(&fake, "native").await.rebases);
            assert!(!capabilities.of(&fake, "not listed").await.rebases);
        }
    }

    #[tokio::test]
    async fn it_is_asked_for_once_until_it_is_forgotten_and_again_after_an_error() {
        let fake = Fake::default();
        fake.can_rebase("erofs", "2.2.0");
        let capabilities = CapabilityCache::default();
        for call in ["list snapshotters", "ask version"] {
            fake.fail(call, 0, ErrorKind::Other);
            assert!(!capabilities.of(&fake, "erofs").await.rebases);
        }
        assert!(capabilities.of(&fake, "erofs").await.rebases);
        fake.calls();
        fake.cannot_rebase("erofs");
        assert!(capabilities.of(&fake, "erofs").await.rebases);
        assert!(fake.calls().is_empty());
        capabilities.forget();
        assert!(!capabilities.of(&fake, "erofs").await.rebases);
    }
}
