//! Leases: what an unpack makes is held until it is anchored, and what a crash left is found again.
//!
//! Every flight has one lease with our prefix and its owner in a label. Extraction snapshots are
//! named after the lease, so the sweep needs no list of all snapshots.
//!
//! A temporary snapshot is always removed by name before its lease goes: one that garbage collection
//! deletes leaves its parent with an entry of a child, and that parent can never be removed again.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::{Mutex, MutexGuard};

use crate::containerd::{self, Containerd, Labels, Resource};

use super::lease_owner::{Owner, Role};

/// What all our leases' ids begin with.
const PREFIX: &str = "nri-unpack-";

/// What the keys of all our views begin with.
const VIEW: &str = "nri-unpack-view ";

/// What the names of all our probes begin with; they hold nothing.
const PROBE: &str = "nri-unpack-probe-";

/// Who made a lease, for the sweep to tell the dead from the living.
const OWNER: &str = "nri-unpack/owner";

/// containerd's label for the moment after which a garbage collection passes over a lease.
const EXPIRE: &str = "containerd.io/gc.expire";

/// A lease whose owner cannot be judged (another pid namespace) must go some day. No unpack takes
/// as long.
const LIFETIME: Duration = Duration::from_secs(24 * 60 * 60);

/// The leases of this process.
#[derive(Debug)]
pub(crate) struct Leases {
    owner: Owner,
    next: AtomicU64,
    /// Those that are in use; the sweep leaves them alone.
    active: Mutex<HashSet<String>>,
}

impl Leases {
    pub(crate) fn new(role: Role) -> Self {
        Self {
            owner: Owner::this_process(role),
            next: AtomicU64::default(),
            active: Mutex::default(),
        }
    }

    /// A new lease.
    pub(crate) async fn take(
        self: &Arc<Self>,
        containerd: &dyn Containerd,
    ) -> Result<Lease, containerd::Error> {
        let now = SystemTime::now();
        let nanos = now
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default()
            .as_nanos();
        let n = self.next.fetch_add(1, Ordering::Relaxed);
        let lease = Lease {
            id: format!("{PREFIX}{}-{nanos}-{n}", self.owner.pid),
            keys: AtomicU64::default(),
            kept: AtomicBool::default(),
            leases: self.clone(),
        };
        self.active().insert(lease.id.clone());
        let labels = Labels::from([
            (OWNER.to_owned(), self.owner.to_string()),
            (
                EXPIRE.to_owned(),
                humantime::format_rfc3339_seconds(now + LIFETIME).to_string(),
            ),
        ]);
        match containerd.create_lease(&lease.id, labels).await {
            Ok(()) => Ok(lease),
            Err(e) => {
                // The answer may have got lost, not the call.
                lease.release(containerd).await;
                Err(e)
            }
        }
    }

    /// Has garbage collected, for what a flight has made of an image that was removed meanwhile. What fails
    /// here is left to containerd's next collection.
    pub(crate) async fn collect(self: &Arc<Self>, containerd: &dyn Containerd) {
        let collected = async {
            self.take(containerd)
                .await?
                .release_and_collect(containerd)
                .await
        };
        if let Err(e) = collected.await {
            log::debug!(error:% = e; "garbage not collected yet");
        }
    }

    /// Takes away what dead owners, and our own failed attempts to tidy up, have left: leases with
    /// our prefix and the temporary snapshots that they hold. Answers how many leases. One that
    /// cannot be taken away now is left for the next time.
    pub(crate) async fn sweep(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<usize, containerd::Error> {
        let mut swept = 0;
        for lease in self.leftovers(containerd).await? {
            match sweep_one(containerd, &lease).await {
                Ok(()) => swept += 1,
                Err(e) => {
                    log::debug!(lease, error:% = e; "lease not swept yet");
                }
            }
        }
        Ok(swept)
    }

    /// The snapshots that leases of others hold: a client of containerd that unpacks an image and has
    /// not put its container on it yet. Those of this program hold what they stand on, not what they
    /// need.
    pub(crate) async fn held_by_others(
        containerd: &dyn Containerd,
        snapshotter: &str,
    ) -> Result<HashSet<String>, containerd::Error> {
        let mut held = HashSet::new();
        for lease in containerd.leases().await? {
            if lease.id.starts_with(PREFIX) {
                continue;
            }
            match containerd.lease_resources(&lease.id).await {
                Err(e) if e.is_not_found() => {}
                resources => {
                    let here = resources?.into_iter();
                    let here = here.filter(|held| held.snapshotter() == Some(snapshotter));
                    held.extend(here.map(|resource| resource.id));
                }
            }
        }
        Ok(held)
    }

    /// The leases that the sweep would take away.
    pub(crate) async fn leftovers(
        &self,
        containerd: &dyn Containerd,
    ) -> Result<Vec<String>, containerd::Error> {
        let is_left = |lease: &containerd::Lease| {
            let owner = lease.labels.get(OWNER).and_then(|text| Owner::parse(text));
            lease.id.starts_with(PREFIX)
                && !self.active().contains(&lease.id)
                && owner.is_none_or(|owner| self.owner.may_sweep(&owner))
        };
        let leases = containerd.leases().await?.into_iter();
        Ok(leases.filter(is_left).map(|lease| lease.id).collect())
    }

    fn active(&self) -> MutexGuard<'_, HashSet<String>> {
        self.active.lock()
    }
}

async fn sweep_one(containerd: &dyn Containerd, lease: &str) -> Result<(), containerd::Error> {
    let resources = match containerd.lease_resources(lease).await {
        // Its owner was quicker.
        Err(e) if e.is_not_found() => return Ok(()),
        resources => resources?,
    };
    for resource in resources {
        remove_temporary(containerd, lease, &resource).await?;
    }
    gone_is_fine(containerd.delete_lease(lease, false).await)
}

async fn remove_temporary(
    containerd: &dyn Containerd,
    lease: &str,
    resource: &Resource,
) -> Result<(), containerd::Error> {
    let key = resource.id.as_str();
    let temporary = [VIEW, PROBE, &extraction_prefix(lease)]
        .iter()
        .any(|prefix| key.starts_with(prefix));
    match resource.snapshotter() {
        Some(snapshotter) if temporary => gone_is_fine(containerd.remove(snapshotter, key).await),
        _ => Ok(()),
    }
}

fn gone_is_fine(result: Result<(), containerd::Error>) -> Result<(), containerd::Error> {
    result.or_else(|e| if e.is_not_found() { Ok(()) } else { Err(e) })
}

/// containerd's own form is `extract-<unique> <chain id>`; the lease's id is the unique part.
fn extraction_prefix(lease: &str) -> String {
    format!("extract-{lease}.")
}

/// A lease of ours, held until [`Lease::release`].
#[derive(Debug)]
pub(crate) struct Lease {
    id: String,
    keys: AtomicU64,
    /// Something is left under it, for the sweep.
    kept: AtomicBool,
    leases: Arc<Leases>,
}

impl Lease {
    pub(crate) fn id(&self) -> &str {
        &self.id
    }

    /// A key that no other snapshot has.
    pub(crate) fn extraction_key(&self, chain_id: &str) -> String {
        let n = self.keys.fetch_add(1, Ordering::Relaxed);
        format!("{}{n} {chain_id}", extraction_prefix(&self.id))
    }

    /// The key of a view of `chain_id`. It is the same for all, so that making and removing one also
    /// mends what the loss of an earlier one has done to its parent.
    pub(crate) fn view_key(chain_id: &str) -> String {
        format!("{VIEW}{chain_id}")
    }

    /// A name that is committed only to see what the snapshotter does with it.
    pub(crate) fn probe_name(&self) -> String {
        format!("{PROBE}{}", self.id)
    }

    /// A name under which nobody else writes a blob.
    pub(crate) fn write_reference(&self, chain_id: &str) -> String {
        let n = self.keys.fetch_add(1, Ordering::Relaxed);
        format!("{}.{n} {chain_id}", self.id)
    }

    /// Takes a temporary snapshot away. One that cannot be removed now is left to the sweep, with the
    /// lease, under which the sweep finds it.
    pub(crate) async fn remove(&self, containerd: &dyn Containerd, snapshotter: &str, key: &str) {
        if let Err(e) = gone_is_fine(containerd.remove(snapshotter, key).await) {
            self.keep();
            log::warn!(snapshotter, key, error:% = e; "temporary snapshot not removed yet");
        }
    }

    /// Lets go, and has garbage collected: returns when that is done.
    pub(crate) async fn release_and_collect(
        self,
        containerd: &dyn Containerd,
    ) -> Result<(), containerd::Error> {
        gone_is_fine(containerd.delete_lease(&self.id, true).await)
    }

    /// Leaves the lease, and what it holds, to the sweep.
    pub(crate) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Lets go. What fails here is left to the sweep.
    pub(crate) async fn release(self, containerd: &dyn Containerd) {
        if self.kept.load(Ordering::Relaxed) {
            return;
        }
        if let Err(e) = gone_is_fine(containerd.delete_lease(&self.id, false).await) {
            log::warn!(lease = self.id.as_str(), error:% = e; "lease not released yet");
        }
    }
}

impl Drop for Lease {
    /// From here on the sweep may have what is left of it.
    fn drop(&mut self) {
        self.leases.active().remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::containerd::fake::Fake;

    #[tokio::test]
    async fn the_sweep_takes_what_is_ours_and_dead() {
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
            let held = [
                Resource::snapshot("erofs", &key(id)),
                Resource::snapshot("erofs", "sha256:b"),
            ];
            fake.lease(id, labels, &held);
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
