//! The sweep of what processes that have ended left: their leases and temporary snapshots. And the leases of others.

use std::collections::HashSet;
use std::time::Duration;

use crate::containerd::{self, Containerd, Resource};

use super::lease::{Leases, OWNER, gone_is_fine};
use super::lease_owner::Owner;
use super::temporary;

/// The longest time of the sweep at the end of the process. A containerd that does not answer must not hold it up.
const LAST_SWEEP: Duration = Duration::from_secs(2);

impl Leases {
    /// Removes the leases of this process whose work was cancelled, when all work has ended: no later sweep may come. Takes
    /// no call if there are none.
    pub(crate) async fn close(&self, containerd: &dyn Containerd) {
        let left = std::mem::take(&mut *self.left.lock());
        let swept = left.iter().map(|lease| sweep_one(containerd, lease));
        let swept = futures::future::join_all(swept);
        let swept = tokio::time::timeout(LAST_SWEEP, swept).await;
        if !swept.is_ok_and(|swept| swept.iter().all(Result::is_ok)) {
            log::debug!("leases of cancelled work stay: the next start removes them");
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
        let before = self.left.lock().clone();
        let own = self.of_this_program(containerd).await?;
        let gone = |id: &String| before.contains(id) && own.iter().all(|(own, _)| own != id);
        self.left.lock().retain(|id| !gone(id));
        for (lease, _) in own.iter().filter(|(_, is_left)| *is_left) {
            match sweep_one(containerd, lease).await {
                Ok(()) => {
                    self.left.lock().remove(lease);
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
        let own = all.filter(|lease| lease.id.starts_with(temporary::LEASE));
        Ok(own
            .map(|lease| (lease.id.clone(), is_left(&lease)))
            .collect())
    }
}

/// Passes the resources in the leases of other clients to `each`.
async fn resources_of_others(
    containerd: &dyn Containerd,
    mut each: impl FnMut(Resource),
) -> Result<(), containerd::Error> {
    for lease in containerd.leases().await? {
        if lease.id.starts_with(temporary::LEASE) {
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
        Some(snapshotter) if temporary::is_temporary(key) => {
            gone_is_fine(containerd.remove(snapshotter, key).await)
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::lease_owner::Role;
    use super::*;
    use crate::containerd::Labels;
    use crate::containerd::fake::Fake;

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
