//! Leases: they keep what an unpack makes until it is anchored, and let the sweep find what a crash left.
//!
//! Every flight has one lease, with this program's prefix and with its owner in a label. Extraction snapshots are
//! named after the lease, so the sweep needs no list of all snapshots.
//!
//! A temporary snapshot is always removed by name before its lease is deleted. If garbage collection deletes it
//! instead, its parent keeps an entry of a child and can never be removed again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{self, Containerd, Labels, Resource};

use super::lease_owner::{Owner, Role};
use super::temporary;

/// The label with the process that made the lease. The sweep reads whether that process still runs.
pub(super) const OWNER: &str = "nri-unpack/owner";

/// containerd's label with the time after which garbage collection ignores a lease.
const EXPIRE: &str = "containerd.io/gc.expire";

/// The lifetime of a lease, longer than any unpack. It ends the leases that no sweep may remove, because their owner
/// is in another pid namespace.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The leases of this process.
#[derive(Debug)]
pub(crate) struct Leases {
    pub(super) owner: Owner,
    next: AtomicU64,
    /// The ids of the leases in use, which the sweep skips.
    active: Mutex<HashSet<String>>,
    /// The ids of the leases that were dropped and may still exist: their work was cancelled, or containerd did not delete
    /// them.
    pub(super) left: Mutex<HashSet<String>>,
}

impl Leases {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            owner: Owner::this_process(role),
            next: AtomicU64::default(),
            active: Mutex::default(),
            left: Mutex::default(),
        }
    }

    /// Creates a lease.
    pub(crate) async fn take(
        self: &Arc<Self>,
        containerd: &dyn Containerd,
    ) -> Result<Lease, containerd::Error> {
        Lease::create(self, containerd).await
    }

    /// Runs a garbage collection, which removes what a flight made for an image that was removed meanwhile. After an
    /// error, containerd's next collection removes it.
    pub(crate) async fn collect(self: &Arc<Self>, containerd: &dyn Containerd) {
        let collected = async {
            self.take(containerd)
                .await?
                .release_and_collect(containerd)
                .await
        };
        if let Err(e) = collected.await {
            log::debug!(error:% = e; "garbage collection failed: containerd's next one removes the layers of images that were removed");
        }
    }

    pub(super) fn active(&self) -> MutexGuard<'_, HashSet<String>> {
        self.active.lock()
    }
}

/// A lease of this process, until [`Lease::release`].
#[derive(Debug)]
pub(crate) struct Lease {
    id: String,
    keys: AtomicU64,
    /// Temporary snapshots that the snapshotter may still make, with their snapshotter.
    later: Mutex<Vec<(String, String)>>,
    /// Whether the lease stays, since the sweep has to remove one of its snapshots.
    kept: AtomicBool,
    is_deleted: AtomicBool,
    leases: Arc<Leases>,
}

impl Lease {
    /// Creates a lease.
    pub(super) async fn create(
        leases: &Arc<Leases>,
        containerd: &dyn Containerd,
    ) -> Result<Self, containerd::Error> {
        let lease = Self::new(leases);
        let expires = humantime::format_rfc3339_seconds(SystemTime::now() + LIFETIME);
        let labels = Labels::from([
            (OWNER.to_owned(), leases.owner.to_string()),
            (EXPIRE.to_owned(), expires.to_string()),
        ]);
        if let Err(e) = containerd.create_lease(&lease.id, labels).await {
            // The lease may have been created although the answer was lost.
            lease.delete(containerd).await;
            return Err(e);
        }
        Ok(lease)
    }

    /// Returns a lease that does not exist yet.
    fn new(leases: &Arc<Leases>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = since.unwrap_or_default().as_nanos();
        let n = leases.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{}{}-{nanos}-{n}", temporary::LEASE, leases.owner.pid);
        leases.active().insert(id.clone());
        Self {
            id,
            keys: AtomicU64::default(),
            later: Mutex::default(),
            kept: AtomicBool::default(),
            is_deleted: AtomicBool::default(),
            leases: leases.clone(),
        }
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns a new key for an extraction snapshot.
    pub(crate) fn extraction_key(&self, chain_id: &str) -> String {
        let n = self.keys.fetch_add(1, Ordering::Relaxed);
        temporary::extraction(&self.id, n, chain_id)
    }

    /// Returns the name of a probe snapshot, which is committed only to see what the snapshotter does with it.
    pub(crate) fn probe_name(&self) -> String {
        temporary::probe(&self.id)
    }

    /// Returns a new reference for a write into the content store.
    pub(crate) fn write_reference(&self, chain_id: &str) -> String {
        let n = self.keys.fetch_add(1, Ordering::Relaxed);
        format!("{}.{n} {chain_id}", self.id)
    }

    /// Removes a temporary snapshot. If that fails, the lease stays, so that the sweep finds the snapshot and removes
    /// both.
    pub(crate) async fn remove(&self, containerd: &dyn Containerd, snapshotter: &str, key: &str) {
        if let Err(e) = gone_is_fine(containerd.remove(snapshotter, key).await) {
            self.keep();
            log::warn!(snapshotter, key, error:% = e; "temporary snapshot could not be removed: its lease stays, and the next sweep removes both");
        }
    }

    /// Deletes the lease with a garbage collection, and waits for its end.
    pub(crate) async fn release_and_collect(
        self,
        containerd: &dyn Containerd,
    ) -> Result<(), containerd::Error> {
        self.try_delete(containerd, true).await
    }

    /// Makes [`Lease::release`] remove a temporary snapshot that may not exist yet.
    pub(crate) fn remove_later(&self, snapshotter: &str, key: String) {
        self.later.lock().push((snapshotter.to_owned(), key));
    }

    /// Makes [`Lease::release`] leave the lease and its snapshots to the sweep.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Deletes the lease. If that fails, the sweep deletes it.
    pub(crate) async fn release(self, containerd: &dyn Containerd) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        let later = std::mem::take(&mut *self.later.lock());
        if later.is_empty() {
            return self.delete(containerd).await;
        }
        if let Err(e) = self.delete_before(containerd, &later).await {
            log::warn!(lease = self.id.as_str(), error:% = e; "lease could not be deleted together with what the snapshotter may still make under it: the next sweep removes both");
        }
    }

    /// Deletes the lease, and then removes these snapshots: once the lease is gone, containerd makes none under it. A lease
    /// of their own keeps those that were made until then from garbage collection. After an error the sweep removes both.
    async fn delete_before(
        &self,
        containerd: &dyn Containerd,
        snapshots: &[(String, String)],
    ) -> Result<(), containerd::Error> {
        let own = Self::create(&self.leases, containerd).await?;
        for (snapshotter, key) in snapshots {
            let snapshot = Resource::snapshot(snapshotter, key);
            containerd.hold(&own.id, snapshot).await?;
        }
        self.try_delete(containerd, false).await?;
        for (snapshotter, key) in snapshots {
            own.remove(containerd, snapshotter, key).await;
        }
        if !own.kept.load(Ordering::Relaxed) {
            own.delete(containerd).await;
        }
        Ok(())
    }

    /// Deletes the lease; with `and_collect` it waits for a garbage collection.
    async fn try_delete(
        &self,
        containerd: &dyn Containerd,
        and_collect: bool,
    ) -> Result<(), containerd::Error> {
        gone_is_fine(containerd.delete_lease(&self.id, and_collect).await)?;
        self.is_deleted.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn delete(&self, containerd: &dyn Containerd) {
        if let Err(e) = self.try_delete(containerd, false).await {
            log::warn!(lease = self.id.as_str(), error:% = e; "lease could not be deleted: the next sweep deletes it");
        }
    }
}

impl Drop for Lease {
    /// Lets the sweep remove the lease, if it still exists.
    fn drop(&mut self) {
        self.leases.active().remove(&self.id);
        if !self.is_deleted.load(Ordering::Relaxed) {
            self.leases.left.lock().insert(self.id.clone());
        }
    }
}

pub(super) fn gone_is_fine(result: Result<(), containerd::Error>) -> Result<(), containerd::Error> {
    result.or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::ErrorKind;
    use crate::containerd::fake::Fake;

    /// Such a snapshot may be made at any moment until the lease is gone. If garbage collection removed it, its parent could
    /// never be removed.
    #[tokio::test(start_paused = true)]
    async fn a_snapshot_that_is_made_late_is_removed_by_name() {
        const CALLS: [&str; 5] = [
            "create lease",
            "add to lease",
            "delete lease",
            "remove snapshot",
            "none",
        ];
        const SECOND: Duration = Duration::from_secs(1);
        let cases = (0..6).flat_map(|n| CALLS.map(|call| (n, call)));
        for ((made_in, call), is_lost) in cases.flat_map(|c| [(c, false), (c, true)]) {
            let fake = Fake::default();
            let leases = Arc::new(Leases::new(Role::Daemon));
            let lease = leases.take(&fake).await.unwrap();
            fake.commit_unlabelled("erofs", "sha256:b", None);
            let parent = Resource::snapshot("erofs", "sha256:b");
            fake.lease("another client's", Labels::new(), &[parent]);
            CALLS.iter().for_each(|call| fake.slow(call, SECOND));
            match is_lost {
                true => fake.lose(call, 0),
                false => fake.fail(call, 0, ErrorKind::Other),
            }
            let (id, key) = (lease.id().to_owned(), lease.extraction_key("sha256:c"));
            lease.remove_later("erofs", key.clone());
            let made = async {
                tokio::time::sleep(SECOND / 2 + SECOND * made_in).await;
                let parent = Some("sha256:b");
                let made = fake
                    .prepare(&id, "erofs", &key, parent, Labels::new())
                    .await;
                tokio::time::sleep(SECOND).await;
                fake.collect_garbage();
                made.is_ok()
            };
            let (made, ()) = futures::join!(made, lease.release(&fake));
            leases.sweep(&fake).await.unwrap();
            let context = format!("{made_in} {call} {is_lost} {made}");
            assert_eq!(fake.lease_ids(), ["another client's"], "{context}");
            assert!(
                !fake.all("erofs").iter().any(|s| s.name == key),
                "{context}"
            );
            let removed = fake.remove("erofs", "sha256:b").await;
            assert!(removed.is_ok(), "{context}: {removed:?}");
        }
    }
}
