//! The quick question of the `CreateContainer` hook: what does this container's own snapshot stand
//! on, and is that known to be ready? One round trip when it is.

use std::collections::HashMap;
use std::time::SystemTime;

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{Containerd, Error, Snapshot};
use crate::unpack::snapshotter::guest_pull;

/// Chains and names that are remembered: more than a node has. When full, all are forgotten, and
/// found ready again by the next look.
const MAX_REMEMBERED: usize = 4096;

/// What the sandboxes of a snapshotter are remembered by, where containers have their image's name: they all stand on
/// the pause image.
pub const SANDBOX: &str = "";

/// What a container's own snapshot stands on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ParentChain {
    /// A chain that was found ready, and has not been made anew since.
    Ready,
    /// A chain that has to be looked at.
    Unknown {
        /// The chain id.
        chain: String,
    },
    /// Nothing: an image without layers.
    Scratch,
}

/// The chains that were found ready.
///
/// A chain that somebody takes away and makes again, without labels, has another creation time at
/// its top: a parent cannot go while it has a child, so the top's time speaks for all layers.
#[derive(Debug, Default)]
pub(crate) struct ReadyCache(Mutex<Remembered>);

#[derive(Debug, Default)]
struct Remembered {
    /// (snapshotter, chain id) → when the top layer was made.
    ready: HashMap<(String, String), SystemTime>,
    /// The same for chains of which no more is known than that a container can start from them: what
    /// labels are wanted of them was not asked.
    sound: HashMap<(String, String), SystemTime>,
    /// (snapshotter, name in the container's annotation) → chain id. A guess, never trusted.
    chains: HashMap<(String, String), String>,
}

impl ReadyCache {
    /// A chain was found ready.
    pub(crate) fn is_ready(&self, snapshotter: &str, chain: &str, created_at: Option<SystemTime>) {
        if let Some(created_at) = created_at {
            let key = (snapshotter.to_owned(), chain.to_owned());
            bounded(&mut self.remembered().ready).insert(key, created_at);
        }
    }

    /// A container can start from the chain; whether it is ready was not asked.
    pub(crate) fn is_sound(&self, snapshotter: &str, chain: &str, created_at: Option<SystemTime>) {
        if let Some(created_at) = created_at {
            let key = (snapshotter.to_owned(), chain.to_owned());
            bounded(&mut self.remembered().sound).insert(key, created_at);
        }
    }

    /// Nothing is taken for ready any more.
    pub(crate) fn forget(&self) {
        let mut remembered = self.remembered();
        remembered.ready.clear();
        remembered.sound.clear();
    }

    /// An image of this name was removed: nothing is taken for ready any more.
    pub(crate) fn image_removed(&self, name: &str) {
        let mut remembered = self.remembered();
        remembered.ready.clear();
        remembered.chains.retain(|(_, of), _| of != name);
    }

    /// A container of this image name stood on this chain.
    pub(crate) fn stood_on(&self, snapshotter: &str, name: &str, chain: &str) {
        let key = (snapshotter.to_owned(), name.to_owned());
        bounded(&mut self.remembered().chains).insert(key, chain.to_owned());
    }

    /// What the container with this `key` stands on. Asks for the container's snapshot and the one
    /// that it probably stands on at the same time. Where the container is left alone it is enough that
    /// it can start.
    pub(crate) async fn parent_chain(
        &self,
        containerd: &dyn Containerd,
        snapshotter: &str,
        key: &str,
        name: Option<&str>,
        left_alone: bool,
    ) -> Result<ParentChain, Error> {
        let guess = name.and_then(|name| {
            let at = (snapshotter.to_owned(), name.to_owned());
            self.remembered().chains.get(&at).cloned()
        });
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
        let at = (snapshotter.to_owned(), chain);
        let Some(created_at) = self.known(&at, left_alone) else {
            return Ok(ParentChain::Unknown { chain: at.1 });
        };
        let top = match guessed.filter(|snapshot| snapshot.name == at.1) {
            Some(top) => top,
            None => containerd.stat(snapshotter, &at.1).await?,
        };
        Ok(judge(at.1, &top, created_at))
    }

    /// When the top layer of a known chain was made.
    fn known(&self, at: &(String, String), left_alone: bool) -> Option<SystemTime> {
        let remembered = self.remembered();
        let sound = remembered.sound.get(at).filter(|_| left_alone);
        remembered.ready.get(at).or(sound).copied()
    }

    fn remembered(&self) -> MutexGuard<'_, Remembered> {
        self.0.lock()
    }
}

fn judge(chain: String, top: &Snapshot, created_at: SystemTime) -> ParentChain {
    if top.created_at == Some(created_at) {
        ParentChain::Ready
    } else {
        ParentChain::Unknown { chain }
    }
}

fn bounded<K, V>(map: &mut HashMap<K, V>) -> &mut HashMap<K, V> {
    if map.len() >= MAX_REMEMBERED {
        map.clear();
    }
    map
}
