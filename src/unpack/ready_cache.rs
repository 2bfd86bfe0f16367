//! The cache of ready chains, for the `CreateContainer` hook: it answers with one round trip whether the parent of the
//! container's own snapshot is a chain that is known to be ready.

use std::collections::HashMap;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{Containerd, Error, Snapshot};
use crate::unpack::snapshotter::guest_pull;

/// The size of each map, more entries than a snapshotter has chains. A full map is cleared; its chains are found ready again
/// by the next request.
const MAX_ENTRIES: usize = 4096;

/// The image name under which the cache keeps the chain of a snapshotter's sandboxes, which all have the pause image.
pub(crate) const SANDBOX: &str = "";

/// The chain that a container's own snapshot is based on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentChain {
    /// A chain that was found ready and was not replaced since.
    Ready,
    /// A chain whose status has to be read.
    Unknown {
        /// The chain id.
        chain: String,
    },
    /// No chain: the image has no layers.
    Scratch,
}

/// The chains of one snapshotter that were found ready.
///
/// If another client removes a chain and makes it again without labels, the creation time of its top layer changes. A
/// parent cannot be removed while it has a child, so the creation time of the top layer covers all layers.
#[derive(Debug, Default)]
pub(crate) struct ReadyCache(Mutex<Entries>);

#[derive(Debug, Default)]
struct Entries {
    /// The top layers of ready chains, by chain id.
    ready: HashMap<String, Top>,
    /// The same for chains from which a container can start, but whose labels were not checked.
    sound: HashMap<String, Top>,
    /// The chain id, by the image name in a container's annotation. It is a guess that saves a round trip, and is always
    /// verified.
    chains: HashMap<String, String>,
    now: Epoch,
}

/// The time between two clearings of the cache. What was found out before a clearing must not be recorded after it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Epoch {
    /// The number of times that everything was forgotten: then other labels may be required.
    pub(crate) forgotten: u64,
    /// The number of times that images were removed, or lost.
    removed: u64,
}

/// The top layer of a chain, and the mode of the snapshotter in which the chain is ready.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Top {
    pub(crate) created_at: SystemTime,
    /// Whether the guest pulls the snapshotter's images.
    pub(crate) guest_pulls: bool,
}

impl ReadyCache {
    /// Returns the epoch for a later record.
    pub(crate) fn now(&self) -> Epoch {
        self.entries().now
    }

    /// Records that a chain was found ready. `since` is from before the image and its rules were looked up.
    pub(crate) fn record_ready(&self, chain: &str, top: Option<Top>, since: Epoch) {
        let mut entries = self.entries();
        if let Some(top) = top
            && entries.now == since
        {
            bounded(&mut entries.ready).insert(chain.to_owned(), top);
        }
    }

    /// Records that a container can start from a chain, whose labels were not checked. `since` as in
    /// [`Self::record_ready`].
    pub(crate) fn record_sound(&self, chain: &str, top: Option<Top>, since: Epoch) {
        let mut entries = self.entries();
        if let Some(top) = top
            && entries.now == since
        {
            bounded(&mut entries.sound).insert(chain.to_owned(), top);
        }
    }

    /// Forgets every chain that was known to be ready.
    pub(crate) fn forget(&self) {
        let mut entries = self.entries();
        entries.ready.clear();
        entries.sound.clear();
        entries.now.forgotten += 1;
    }

    /// Forgets every chain, since the snapshotter has lost its state. The rules are the same.
    pub(crate) fn lost(&self) {
        let mut entries = self.entries();
        entries.ready.clear();
        entries.sound.clear();
        entries.now.removed += 1;
    }

    /// Forgets every ready chain after images were removed, and the guess for the name of one.
    pub(crate) fn images_removed(&self, name: Option<&str>) {
        let mut entries = self.entries();
        entries.ready.clear();
        entries.now.removed += 1;
        if let Some(name) = name {
            entries.chains.remove(name);
        }
    }

    /// Records that a container with this image name is based on this chain.
    pub(crate) fn record_parent(&self, name: &str, chain: &str) {
        bounded(&mut self.entries().chains).insert(name.to_owned(), chain.to_owned());
    }

    /// Returns the chain that the snapshot `key` of a container is based on. Reads that snapshot and its probable parent
    /// at the same time. With `left_to_containerd`, it is enough that a container can start from the chain. A chain that
    /// was ready in another mode of the snapshotter than `guest_pulls` has to be looked at; every chain, if the mode is
    /// not known.
    pub(crate) async fn parent_chain(
        &self,
        containerd: &dyn Containerd,
        snapshotter: &str,
        key: &str,
        name: Option<&str>,
        left_to_containerd: bool,
        guest_pulls: Option<bool>,
    ) -> Result<ParentChain, Error> {
        let guess = name.and_then(|name| self.entries().chains.get(name).cloned());
        let guessed = async {
            match &guess {
                Some(chain) => containerd.stat(snapshotter, chain).await.ok(),
                None => None,
            }
        };
        let (own, guessed) = futures::join!(containerd.stat(snapshotter, key), guessed);
        let Some(chain) = own?.parent else {
            return Ok(ParentChain::Scratch);
        };
        if guest_pull::is_private(&chain) {
            return Ok(ParentChain::Ready);
        }
        let known = self.known(&chain, left_to_containerd);
        let known = known.filter(|known| Some(known.guest_pulls) == guest_pulls);
        let Some(Top { created_at, .. }) = known else {
            return Ok(ParentChain::Unknown { chain });
        };
        let top = match guessed.filter(|snapshot| snapshot.name == chain) {
            Some(top) => top,
            None => containerd.stat(snapshotter, &chain).await?,
        };
        Ok(compare(chain, &top, created_at))
    }

    /// Returns the top layer of a known chain.
    fn known(&self, chain: &str, left_to_containerd: bool) -> Option<Top> {
        let entries = self.entries();
        let sound = entries.sound.get(chain).filter(|_| left_to_containerd);
        entries.ready.get(chain).or(sound).copied()
    }

    fn entries(&self) -> MutexGuard<'_, Entries> {
        self.0.lock()
    }
}

/// Compares the creation time of a chain's top layer with the one in the cache.
fn compare(chain: String, top: &Snapshot, created_at: SystemTime) -> ParentChain {
    if top.created_at == Some(created_at) {
        ParentChain::Ready
    } else {
        ParentChain::Unknown { chain }
    }
}

fn bounded<V>(map: &mut HashMap<String, V>) -> &mut HashMap<String, V> {
    if map.len() >= MAX_ENTRIES {
        map.clear();
    }
    map
}
