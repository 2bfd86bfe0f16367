//! The capabilities of a snapshotter, as containerd lists them.

use std::path::Path;
use std::sync::Arc;

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{self, Containerd};

/// containerd's word for a snapshotter that takes the parent of a snapshot at its commit.
const REBASE: &str = "rebase";

/// The first version of containerd that passes the parent on. An older one may list the capability of a proxy plugin
/// from its configuration, and commits without a parent.
const SINCE: (u64, u64) = (2, 2);

/// The capabilities of a snapshotter; all `false` while they are not known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Capabilities {
    /// The snapshotter takes the parent of a layer at its commit, so the layers of a chain can be applied at the same
    /// time.
    pub(crate) rebases: bool,
    /// The snapshotter is a part of containerd, so each layer is applied. A proxy plugin may commit a layer without
    /// its content.
    pub(crate) applies: bool,
    /// The snapshotter is a proxy plugin, which may treat labels in its own way.
    pub(crate) is_proxy: bool,
    /// The socket at which the proxy plugin listens.
    pub(crate) socket: Option<Arc<Path>>,
}

/// The capabilities of one snapshotter, if they are known.
#[derive(Debug, Default)]
pub(crate) struct CapabilityCache(Mutex<Option<Capabilities>>);

impl CapabilityCache {
    /// Returns the capabilities of a snapshotter. Asks containerd once; after an error the next call asks again.
    pub(crate) async fn of(&self, containerd: &dyn Containerd, snapshotter: &str) -> Capabilities {
        match self.known(containerd, snapshotter).await {
            Ok(known) => known,
            Err(e) => {
                log::debug!(snapshotter, error:% = e; "capabilities of the snapshotter are not known: its layers are unpacked one after another until containerd answers");
                Capabilities::default()
            }
        }
    }

    /// Like [`Self::of`], for a decision that must not be made without an answer.
    pub(crate) async fn known(
        &self,
        containerd: &dyn Containerd,
        snapshotter: &str,
    ) -> Result<Capabilities, containerd::Error> {
        let cached = self.cached().clone();
        if let Some(cached) = cached {
            return Ok(cached);
        }
        let answer = ask(containerd, snapshotter).await?;
        *self.cached() = Some(answer.clone());
        Ok(answer)
    }

    /// Forgets the capabilities, since containerd may have been replaced.
    pub(crate) fn forget(&self) {
        *self.cached() = None;
    }

    fn cached(&self) -> MutexGuard<'_, Option<Capabilities>> {
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
    let address = listed.proxy_address();
    let socket = address.map(|address| address.trim_start_matches("unix://"));
    Ok(Capabilities {
        rebases,
        applies: address.is_none(),
        is_proxy: address.is_some(),
        socket: socket.map(|socket| Path::new(socket).into()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::ErrorKind;
    use crate::containerd::fake::Fake;

    #[tokio::test]
    async fn rebase_needs_the_capability_and_containerd_2_2() {
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
            let rebases = async |snapshotter| {
                let capabilities = CapabilityCache::default();
                capabilities.of(&fake, snapshotter).await.rebases
            };
            assert_eq!(rebases("erofs").await, expected, "{version}");
            assert!(!rebases("native").await);
            assert!(!rebases("not listed").await);
        }
    }

    #[tokio::test]
    async fn capabilities_are_read_once_and_again_after_forget_or_an_error() {
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
