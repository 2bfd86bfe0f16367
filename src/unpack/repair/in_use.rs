//! Handles a chain that cannot be repaired because it is in use: finds or makes a chain onto which a container that
//! is being created can be moved.

use std::sync::Arc;
use std::time::SystemTime;

use crate::containerd::Containerd;
use crate::unpack::chain::error::Error;
use crate::unpack::chain::state::State;
use crate::unpack::schedule::layer_locks::LayerLocks;
use crate::unpack::schedule::priority::{Priority, Urgency};
use crate::unpack::schedule::progress::Reporter;
use crate::unpack::snapshotter::guest_pull::{Guest, private_name};
use crate::unpack::snapshotter::lease::{Lease, Leases};
use crate::unpack::target::Target;

/// The next step of the work on a target.
pub(crate) enum NextStep {
    /// A flight: the chain is ready, or the flight can make it ready.
    Flight,
    /// None: the request ends with this error.
    Fail(Error),
    /// None: the container is left to containerd, and can start from the chain. Holds the creation time of the
    /// chain's top layer.
    LeftToContainerd(Option<SystemTime>),
    /// The unpack of this private chain, onto which the container is moved then.
    PrivateChain(Box<Target>),
}

/// Returns the next step of the work on a target. It matters for a container that is being created in a snapshotter
/// with guest-pulled layers, if its chain was unpacked on the host: a running flight of this chain cannot help the
/// container, so the container does not wait for it.
///
/// `is_created` is `false` for a container that exists: it is moved onto no other chain, so none is made for it. Its chain
/// is replaced when it is gone.
pub(crate) async fn next_step(
    containerd: &dyn Containerd,
    leases: &Arc<Leases>,
    layer_locks: &LayerLocks,
    target: &Target,
    is_created: bool,
    reporter: &Reporter,
) -> NextStep {
    if !target.in_use {
        return NextStep::Flight;
    }
    if !target.supports_guest_pull {
        return match target.left_to_containerd {
            true => NextStep::LeftToContainerd(None),
            false => NextStep::Flight,
        };
    }
    let (status, created_at) = match target.read_status(containerd).await {
        Ok(result) => result,
        Err(e) => return NextStep::Fail(e),
    };
    let state = target.state_below_container(&status);
    match state {
        State::Mixed if target.is_sandbox => {
            let refused = target.refused(&status);
            return NextStep::Fail(refused.unwrap_or_else(|| error(target, state, 1)));
        }
        State::Mixed if !is_created => return NextStep::Fail(error(target, state, 1)),
        State::Mixed if target.is_for_guest() => {}
        // The owners that the files of the copy need are not known here.
        State::Mixed if target.is_copied => return NextStep::Fail(error(target, state, 1)),
        State::Mixed => return NextStep::PrivateChain(Box::new(target.on_host())),
        _ if target.left_to_containerd => return NextStep::LeftToContainerd(created_at),
        State::Unlabelled if target.rules.guest_pulls && !is_created => {
            return NextStep::Fail(error(target, state, 1));
        }
        State::Unlabelled if target.rules.guest_pulls => {}
        _ => return NextStep::Flight,
    }
    let lease = match leases.take(containerd).await {
        Ok(lease) => lease,
        Err(e) => return NextStep::Fail(target.failed(e)),
    };
    let error = in_use(containerd, &lease, layer_locks, target, state, reporter).await;
    lease.release(containerd).await;
    NextStep::Fail(error)
}

/// Returns the error for a chain under a container that is being created. If the guest pulls the image, makes and reports
/// a private chain first, onto which the container can be moved.
pub(crate) async fn in_use(
    containerd: &dyn Containerd,
    lease: &Lease,
    layer_locks: &LayerLocks,
    target: &Target,
    state: State,
    reporter: &Reporter,
) -> Error {
    let snapshotter = target.snapshotter.as_str();
    if let (Some(chain_id), Some(labels), true) = (
        target.manifest.chain_id(),
        target.labels.last(),
        target.is_for_guest(),
    ) {
        let guest = Guest {
            containerd,
            snapshotter,
            lease,
            labels,
        };
        let (name, priority) = (private_name(chain_id), Priority::new(Urgency::Creation));
        let _lock = layer_locks.lock(&name, &priority, || ()).await;
        match guest.private_chain(&target.manifest).await {
            Ok(Some(chain)) => reporter.onto(chain),
            Ok(None) => {}
            Err(e) => return no_private(target, state, target.failed(e)),
        }
    }
    error(target, state, 1)
}

/// Returns the error for a chain in use.
pub(crate) fn error(target: &Target, state: State, holders: usize) -> Error {
    Error::InUse {
        image: target.image.clone(),
        snapshotter: target.snapshotter.clone(),
        state,
        holders,
    }
}

/// Returns the error for a private chain that could not be made. If the image's own chain is mixed, the error
/// still says that the image is broken.
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
