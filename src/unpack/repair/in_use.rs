//! A chain that cannot be repaired because it is in use, and what a container that is being created
//! on it can be moved onto.

use std::sync::Arc;
use std::time::SystemTime;

use crate::containerd::Containerd;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::State;
use crate::unpack::schedule::layer_locks::LayerLocks;
use crate::unpack::schedule::priority::{Priority, Urgency};
use crate::unpack::snapshotter::guest_pull::{Guest, private_name};
use crate::unpack::snapshotter::lease::{Lease, Leases};
use crate::unpack::target::Target;

/// How the work on a target goes on.
pub(crate) enum Way {
    /// The chain is as it should be, or a flight can make it so.
    Flight,
    /// With this error.
    Ends(Error),
    /// It is left to containerd, and a container can start from it. With the time when its top layer was
    /// made.
    LeftAlone(Option<SystemTime>),
    /// This private chain has to be unpacked; then the container is moved onto it.
    Private(Box<Target>),
}

/// The way for a container that is being created in a snapshotter that leaves images to the guest, where
/// its chain was unpacked on the host. A flight of the chain may go on: it cannot help this container, and
/// is not waited for.
pub(crate) async fn way(
    containerd: &dyn Containerd,
    leases: &Arc<Leases>,
    layer_locks: &LayerLocks,
    target: &Target,
) -> Way {
    if !target.in_use {
        return Way::Flight;
    }
    if !target.leaves_to_guest {
        return match target.left_alone {
            true => Way::LeftAlone(None),
            false => Way::Flight,
        };
    }
    let (status, created_at) = match target.look(containerd).await {
        Ok(looked) => looked,
        Err(e) => return Way::Ends(e),
    };
    let state = target.state_below_container(&status);
    match state {
        State::Mixed if target.is_sandbox => {
            let refused = target.refused(&status);
            return Way::Ends(refused.unwrap_or_else(|| error(target, state, 1, None)));
        }
        State::Mixed if target.is_for_guest() => {}
        // What the files' owners have to be is not known here.
        State::Mixed if target.is_copied => return Way::Ends(error(target, state, 1, None)),
        State::Mixed => return Way::Private(Box::new(target.on_host())),
        _ if target.left_alone => return Way::LeftAlone(created_at),
        State::Unlabelled if target.rules.guest_pulls => {}
        _ => return Way::Flight,
    }
    let lease = match leases.take(containerd).await {
        Ok(lease) => lease,
        Err(e) => return Way::Ends(target.failed(e)),
    };
    let error = in_use(containerd, &lease, layer_locks, target, state, 1).await;
    lease.release(containerd).await;
    Way::Ends(error)
}

/// The chain is in use. Where the guest pulls, a private chain is made, onto which a container that is
/// being created can be moved.
pub(crate) async fn in_use(
    containerd: &dyn Containerd,
    lease: &Lease,
    layer_locks: &LayerLocks,
    target: &Target,
    state: State,
    holders: usize,
) -> Error {
    let snapshotter = target.snapshotter.as_str();
    let onto = match (target.manifest.chain_id(), target.labels.last()) {
        (Some(chain_id), Some(labels)) if target.is_for_guest() => {
            let guest = Guest {
                containerd,
                snapshotter,
                lease,
                labels,
            };
            let (name, priority) = (private_name(chain_id), Priority::new(Urgency::Creation));
            let _lock = layer_locks.lock(snapshotter, &name, &priority, || ()).await;
            match guest.private_chain(&target.manifest).await {
                Ok(onto) => onto,
                Err(e) => return no_private(target, state, target.failed(e)),
            }
        }
        _ => None,
    };
    error(target, state, holders, onto)
}

/// The chain is in use, and this is what a container that is being created can be moved onto.
pub(crate) fn error(target: &Target, state: State, holders: usize, onto: Option<String>) -> Error {
    Error::InUse {
        image: target.image.clone(),
        snapshotter: target.snapshotter.clone(),
        state,
        holders,
        onto,
    }
}

/// A private chain could not be made. That the image's own is broken stays true.
pub(crate) fn no_private(target: &Target, state: State, error: Error) -> Error {
    if state != State::Mixed {
        return error;
    }
    Error::Broken {
        image: target.image.clone(),
        snapshotter: target.snapshotter.clone(),
        source: Arc::new(error),
    }
}
