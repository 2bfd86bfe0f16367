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

/// The prefix of the ids of this program's leases.
const PREFIX: &str = "nri-unpack-";

/// The prefix of the keys of this program's extraction snapshots.
const EXTRACTION: &str = "extract-nri-unpack-";

/// The prefix of the keys of this program's views.
const VIEW: &str = "nri-unpack-view ";

/// The prefix of the names of this program's probes, which have no content.
const PROBE: &str = "nri-unpack-probe-";

/// The label with the process that made the lease. The sweep reads whether that process still runs.
const OWNER: &str = "nri-unpack/owner";

/// containerd's label with the time after which garbage collection ignores a lease.
const EXPIRE: &str = "containerd.io/gc.expire";

/// The lifetime of a lease, longer than any unpack. It ends the leases that no sweep may remove, because their owner
/// is in another pid namespace.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The longest time of the sweep at the end of the process. A containerd that does not answer must not hold it up.
const LAST_SWEEP: Duration = Duration::from_secs(2);

/// The leases of this process.
#[derive(Debug)]
pub(crate) struct Leases {
    owner: Owner,
    next: AtomicU64,
    /// The ids of the leases in use, which the sweep skips.
    active: Mutex<HashSet<String>>,
    /// The ids of the leases that were dropped and may still exist: their work was cancelled, or containerd did not delete
    /// them.
    left: Mutex<HashSet<String>>,
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
        let lease = Lease::new(self);
        lease.create(containerd).await?;
        Ok(lease)
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

    /// Removes the leases of this process whose work was cancelled, when all work has ended: no later sweep may come. Takes
    /// no call if there are none.
    pub(crate) async fn close(&self, containerd: &dyn Containerd) {
        let left = std::mem::take(&mut *self.left.lock());
        let swept = left.iter().map(|lease| sweep_one(containerd, lease));
        let swept = futures::future::try_join_all(swept);
        match tokio::time::timeout(LAST_SWEEP, swept).await {
            Ok(Ok(_)) => {}
            Ok(Err(e)) => {
                log::debug!(error:% = e; "leases of cancelled work stay: the next start removes them");
            }
            Err(_) => log::debug!("leases of cancelled work stay: the next start removes them"),
        }
    }

    /// Removes what processes that no longer run, and failed cleanups of this process, have left: leases with this
    /// program's prefix and their temporary snapshots. Returns the number of removed leases. A lease that cannot be
    /// removed now stays for the next sweep.
    pub(crate) async fn sweep(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<usize, containerd::Error> {
        let mut swept = 0;
        for lease in self.leftovers(containerd).await? {
            match sweep_one(containerd, &lease).await {
                Ok(()) => {
                    self.left.lock().remove(&lease);
                    swept += 1;
                }
                Err(e) => {
                    log::debug!(lease, error:% = e; "leftover lease could not be removed: the next sweep tries again");
                }
            }
        }
        Ok(swept)
    }

    /// Returns the snapshots in the leases of other clients of containerd, for example of one that has unpacked an
    /// image and has not created its container yet. This program's own leases are ignored: they list the layers that
    /// a flight builds on, and do not show that something else needs these.
    pub(crate) async fn held_by_others(
        containerd: &dyn Containerd,
        snapshotter: &str,
    ) -> Result<HashSet<String>, containerd::Error> {
        let mut held = HashSet::new();
        let each = |resource: Resource| {
            if resource.snapshotter() == Some(snapshotter) {
                held.insert(resource.id);
            }
        };
        resources_of_others(containerd, each).await?;
        Ok(held)
    }

    /// Whether the lease of another client holds this blob.
    pub(crate) async fn blob_is_held_by_others(
        containerd: &dyn Containerd,
        digest: &str,
    ) -> Result<bool, containerd::Error> {
        let (mut is_held, blob) = (false, Resource::blob(digest));
        resources_of_others(containerd, |resource| is_held |= resource == blob).await?;
        Ok(is_held)
    }

    /// Returns the ids of the leases that the sweep would remove.
    pub(crate) async fn leftovers(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<Vec<String>, containerd::Error> {
        let all = self.of_this_program(containerd).await?.into_iter();
        let left = all.filter(|(_, is_left)| *is_left);
        Ok(left.map(|(id, _)| id).collect())
    }

    /// Returns the ids of all leases with this program's prefix, each with whether the sweep would remove it.
    pub(crate) async fn of_this_program(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<Vec<(String, bool)>, containerd::Error> {
        let is_left = |lease: &containerd::Lease| {
            if self.active().contains(&lease.id) {
                return false;
            }
            let owner = lease.labels.get(OWNER).and_then(|text| Owner::parse(text));
            match owner.filter(|owner| !self.owner.may_sweep(owner)) {
                Some(owner) => {
                    log::debug!(lease = lease.id.as_str(), owner:%; "a lease stays: its process runs, or this cannot be told");
                    false
                }
                None => true,
            }
        };
        let all = containerd.leases().await?.into_iter();
        let own = all.filter(|lease| lease.id.starts_with(PREFIX));
        Ok(own
            .map(|lease| (lease.id.clone(), is_left(&lease)))
            .collect())
    }

    fn active(&self) -> MutexGuard<'_, HashSet<String>> {
        self.active.lock()
    }
}

/// Passes the resources in the leases of other clients to `each`.
async fn resources_of_others(
    containerd: &dyn Containerd,
    mut each: impl FnMut(Resource),
) -> Result<(), containerd::Error> {
    for lease in containerd.leases().await? {
        if lease.id.starts_with(PREFIX) {
            continue;
        }
        match containerd.lease_resources(&lease.id).await {
            Err(e) if e.is_not_found() => {}
            resources => resources?.into_iter().for_each(&mut each),
        }
    }
    Ok(())
}

async fn sweep_one(containerd: &dyn Containerd, lease: &str) -> Result<(), containerd::Error> {
    let resources = match containerd.lease_resources(lease).await {
        // Its owner has deleted it meanwhile.
        Err(e) if e.is_not_found() => return Ok(()),
        resources => resources?,
    };
    for resource in resources {
        remove_temporary(containerd, &resource).await?;
    }
    gone_is_fine(containerd.delete_lease(lease, false).await)
}

async fn remove_temporary(
    containerd: &dyn Containerd,
    resource: &Resource,
) -> Result<(), containerd::Error> {
    let key = resource.id.as_str();
    match resource.snapshotter() {
        Some(snapshotter) if is_temporary(key) => {
            gone_is_fine(containerd.remove(snapshotter, key).await)
        }
        _ => Ok(()),
    }
}

/// Whether this is the key of a temporary snapshot of this program.
pub(crate) fn is_temporary(key: &str) -> bool {
    let mut prefixes = [VIEW, PROBE, EXTRACTION].iter();
    prefixes.any(|prefix| key.starts_with(prefix))
}

/// Returns the lease under which a temporary snapshot was made, where its key has it.
pub(crate) fn lease_of(key: &str) -> Option<&str> {
    if let Some(lease) = key.strip_prefix(PROBE) {
        return Some(lease);
    }
    let (unique, _) = key.split_once(' ')?;
    let (lease, _) = unique.strip_prefix("extract-")?.rsplit_once('.')?;
    lease.starts_with(PREFIX).then_some(lease)
}

fn gone_is_fine(result: Result<(), containerd::Error>) -> Result<(), containerd::Error> {
    result.or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })
}

/// Returns the prefix of a lease's extraction snapshots. containerd's form of the key is `extract-<unique> <chain id>`;
/// the lease's id is the unique part.
fn extraction_prefix(lease: &str) -> String {
    format!("extract-{lease}.")
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
    /// Returns a lease that does not exist yet.
    fn new(leases: &Arc<Leases>) -> Self {
        let since = SystemTime::now().duration_since(UNIX_EPOCH);
        let nanos = since.unwrap_or_default().as_nanos();
        let n = leases.next.fetch_add(1, Ordering::Relaxed);
        let id = format!("{PREFIX}{}-{nanos}-{n}", leases.owner.pid);
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

    async fn create(&self, containerd: &dyn Containerd) -> Result<(), containerd::Error> {
        let expires = humantime::format_rfc3339_seconds(SystemTime::now() + LIFETIME);
        let labels = Labels::from([
            (OWNER.to_owned(), self.leases.owner.to_string()),
            (EXPIRE.to_owned(), expires.to_string()),
        ]);
        let created = containerd.create_lease(&self.id, labels).await;
        if created.is_err() {
            // The lease may have been created although the answer was lost.
            self.delete(containerd).await;
        }
        created
    }

    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// Returns a new key for an extraction snapshot.
    pub(crate) fn extraction_key(&self, chain_id: &str) -> String {
        let n = self.keys.fetch_add(1, Ordering::Relaxed);
        format!("{}{n} {chain_id}", extraction_prefix(&self.id))
    }

    /// Returns the key of a view of `chain_id`. All views of a chain have the same key: if garbage collection deleted
    /// an earlier view and its parent kept the entry of a child, making and removing a new one repairs the parent.
    pub(crate) fn view_key(chain_id: &str) -> String {
        format!("{VIEW}{chain_id}")
    }

    /// Returns the name of a probe snapshot, which is committed only to see what the snapshotter does with it.
    pub(crate) fn probe_name(&self) -> String {
        format!("{PROBE}{}", self.id)
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
        let own = Self::new(&self.leases);
        own.create(containerd).await?;
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

    #[tokio::test]
    async fn the_key_of_a_temporary_snapshot_has_its_lease() {
        let leases = Arc::new(Leases::new(Role::Command));
        let lease = leases.take(&Fake::default()).await.unwrap();
        for key in [lease.extraction_key("sha256:c"), lease.probe_name()] {
            assert_eq!(lease_of(&key), Some(lease.id()), "{key}");
        }
        let view = Lease::view_key("sha256:c");
        for key in [view.as_str(), "extract-1.0 sha256:c", "sha256:c"] {
            assert_eq!(lease_of(key), None, "{key}");
        }
    }

    #[tokio::test]
    async fn the_sweep_removes_only_own_leases_of_dead_processes() {
        let fake = Fake::default();
        let leases = Arc::new(Leases::new(Role::Daemon));
        let active = leases.take(&fake).await.unwrap();
        let dead = leases.owner.before_reboot();
        let key = |lease: &str| format!("extract-{lease}.0 sha256:c");
        for id in ["nri-unpack-1", "ctr-1", "nri-unpack-2"] {
            fake.activate("erofs", &key(id), "sha256:b");
            let labels = match id {
                "nri-unpack-2" => Labels::new(),
                _ => Labels::from([(OWNER.to_owned(), dead.to_string())]),
            };
            let resources = [
                Resource::snapshot("erofs", &key(id)),
                Resource::snapshot("erofs", "sha256:b"),
            ];
            fake.lease(id, labels, &resources);
        }
        fake.commit_unlabelled("erofs", "sha256:b", None);

        assert_eq!(leases.sweep(&fake).await.unwrap(), 2);
        assert_eq!(fake.lease_ids(), ["ctr-1", active.id()]);
        let left: Vec<_> = fake.all("erofs").into_iter().map(|s| s.name).collect();
        assert_eq!(left, [key("ctr-1"), "sha256:b".to_owned()]);

        active.release(&fake).await;
        assert_eq!(fake.lease_ids(), ["ctr-1"]);
    }
}
