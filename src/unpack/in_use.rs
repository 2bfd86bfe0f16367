//! A chain that cannot be repaired because it is in use, and what a container that is being created
//! on it can be moved onto.

use std::sync::Arc;

use crate::containerd::Containerd;

use super::claims::Claims;
use super::gate::{Hurry, Urgency};
use super::guest::{Guest, private_name};
use super::lease::{Lease, Leases};
use super::target::Target;
use super::{Error, State};

/// The way out for a container that is being created where the guest pulls, and its chain was unpacked
/// on the host. A flight of the chain may go on: it cannot help this container, and is not waited for.
/// `None` where the chain is as it should be, or can be made so.
pub(super) async fn way_out(
    containerd: &dyn Containerd,
    leases: &Arc<Leases>,
    claims: &Claims,
    target: &Target,
) -> Option<Error> {
    if !target.in_use || !target.rules.guest_pulls {
        return None;
    }
    let sight = match target.look(containerd).await {
        Ok((sight, _)) => sight,
        Err(e) => return Some(e),
    };
    let state = sight.state(&target.rules);
    if !matches!(state, State::Unlabelled | State::Mixed) {
        return None;
    }
    let lease = match leases.take(containerd).await {
        Ok(lease) => lease,
        Err(e) => return Some(target.failed(e)),
    };
    let error = in_use(containerd, &lease, claims, target, state, 1).await;
    lease.release(containerd).await;
    Some(error)
}

/// The chain is in use. Where the guest pulls, a private chain is made, onto which a container that is
/// being created can be moved.
pub(super) async fn in_use(
    containerd: &dyn Containerd,
    lease: &Lease,
    claims: &Claims,
    target: &Target,
    state: State,
    holders: usize,
) -> Error {
    let snapshotter = target.snapshotter.as_str();
    let onto = match (target.manifest.chain_id(), target.labels.last()) {
        (Some(chain_id), Some(labels)) if target.rules.guest_pulls => {
            let guest = Guest {
                containerd,
                snapshotter,
                lease,
                labels,
            };
            let (name, hurry) = (private_name(chain_id), Hurry::new(Urgency::Creation));
            let _claim = claims.claim(snapshotter, &name, &hurry, || ()).await;
            match guest.private_chain(&target.manifest).await {
                Ok(onto) => onto,
                Err(e) => return target.failed(e),
            }
        }
        _ => None,
    };
    Error::InUse {
        image: target.image.clone(),
        snapshotter: snapshotter.to_owned(),
        state,
        holders,
        onto,
    }
}
