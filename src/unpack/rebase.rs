//! Which snapshotters take a layer's parent as late as at its commit, so that the layers of a chain
//! can be applied at the same time.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::containerd::{self, Containerd};

/// The capability, as containerd lists it for a snapshotter.
const REBASE: &str = "rebase";

/// The first version that passes the parent on. An older one may list what its configuration says of
/// a proxy plugin, and commits without a parent.
const SINCE: (u64, u64) = (2, 2);

/// What is known of the snapshotters.
#[derive(Debug, Default)]
pub(super) struct Rebase(Mutex<HashMap<String, bool>>);

impl Rebase {
    /// Whether the snapshotter can. Asked for once; where there is no answer it cannot, for now.
    pub(super) async fn is_possible(&self, containerd: &dyn Containerd, snapshotter: &str) -> bool {
        if let Some(known) = self.known().get(snapshotter) {
            return *known;
        }
        match ask(containerd, snapshotter).await {
            Ok(answer) => {
                self.known().insert(snapshotter.to_owned(), answer);
                answer
            }
            Err(e) => {
                log::debug!(snapshotter, error:% = e; "layers are unpacked one after another");
                false
            }
        }
    }

    /// containerd may be another one now.
    pub(super) fn forget(&self) {
        self.known().clear();
    }

    fn known(&self) -> MutexGuard<'_, HashMap<String, bool>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn ask(containerd: &dyn Containerd, snapshotter: &str) -> Result<bool, containerd::Error> {
    let listed = containerd.snapshotters().await?;
    let mut listed = listed.iter().filter(|listed| listed.name == snapshotter);
    if !listed.any(|listed| listed.capabilities.iter().any(|c| c == REBASE)) {
        return Ok(false);
    }
    let version = containerd.version().await?;
    Ok(containerd::numbers(&version).is_some_and(|numbers| numbers >= SINCE))
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
            let rebase = Rebase::default();
            assert_eq!(
                rebase.is_possible(&fake, "erofs").await,
                expected,
                "{version}"
            );
            assert!(!rebase.is_possible(&fake, "native").await);
            assert!(!rebase.is_possible(&fake, "not listed").await);
        }
    }

    #[tokio::test]
    async fn it_is_asked_for_once_until_it_is_forgotten_and_again_after_an_error() {
        let fake = Fake::default();
        fake.can_rebase("erofs", "2.2.0");
        let rebase = Rebase::default();
        for call in ["list snapshotters", "ask version"] {
            fake.fail(call, 0, ErrorKind::Other);
            assert!(!rebase.is_possible(&fake, "erofs").await);
        }
        assert!(rebase.is_possible(&fake, "erofs").await);
        fake.calls();
        fake.cannot_rebase("erofs");
        assert!(rebase.is_possible(&fake, "erofs").await);
        assert!(fake.calls().is_empty());
        rebase.forget();
        assert!(!rebase.is_possible(&fake, "erofs").await);
    }
}
