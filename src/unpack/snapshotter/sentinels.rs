//! Sentinels: chains that a snapshotter is known to have. If one of them is gone although containerd's metadata has a
//! record of it, the snapshotter has lost its state.

use std::collections::VecDeque;

use parking_lot::Mutex;

use crate::containerd::{self, Containerd};

/// The number of sentinels of one snapshotter: the images of some may be removed. The first ones are the pinned images,
/// which the kubelet does not remove.
const MAX_SENTINELS: usize = 8;

/// What a look at a snapshotter shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Look {
    /// It has what it had.
    Kept,
    /// A chain was removed: with its image, or by another process.
    Removed,
    /// It has lost its state: containerd's metadata has a chain that the snapshotter does not have.
    Lost,
}

/// The sentinels of one snapshotter.
#[derive(Debug, Default)]
pub(crate) struct Sentinels(Mutex<VecDeque<String>>);

impl Sentinels {
    /// Records that the snapshotter has the chain with this id.
    pub(crate) fn saw(&self, chain: &str) {
        let mut chains = self.0.lock();
        if chains.len() < MAX_SENTINELS && !chains.iter().any(|known| known == chain) {
            chains.push_back(chain.to_owned());
        }
    }

    /// Looks at one chain of the snapshotter. Takes one call while it is there.
    pub(crate) async fn look(
        &self,
        containerd: &dyn Containerd,
        snapshotter: &str,
    ) -> Result<Look, containerd::Error> {
        let first = self.0.lock().front().cloned();
        let Some(chain) = first else {
            return Ok(Look::Kept);
        };
        match containerd.stat(snapshotter, &chain).await {
            Ok(_) => return Ok(Look::Kept),
            Err(e) if e.is_not_found() => {}
            Err(e) => return Err(e),
        }
        let is_lost = containerd.has_record(snapshotter, &chain).await?;
        let mut chains = self.0.lock();
        if is_lost {
            // All of them are lost: one loss is reported once.
            chains.clear();
            return Ok(Look::Lost);
        }
        chains.retain(|known| *known != chain);
        Ok(Look::Removed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;

    #[tokio::test]
    async fn only_a_chain_with_a_record_shows_a_loss() {
        let (fake, sentinels) = (Fake::default(), Sentinels::default());
        let look = async || sentinels.look(&fake, "erofs").await.unwrap();
        assert_eq!(look().await, Look::Kept);
        for chain in ["sha256:a", "sha256:b"] {
            fake.commit_unlabelled("erofs", chain, None);
            sentinels.saw(chain);
        }
        assert_eq!(look().await, Look::Kept);
        fake.forget("erofs", "sha256:a");
        assert_eq!(look().await, Look::Removed);
        fake.lose_snapshots("erofs");
        assert_eq!(look().await, Look::Lost);
        assert_eq!(look().await, Look::Kept, "it is reported once");
    }
}
