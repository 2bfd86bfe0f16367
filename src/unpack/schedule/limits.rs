//! What the unpacks of layers share: the limits of this process, and what is known of one snapshotter.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::layer_locks::LayerLocks;
use super::permits::PrioritySemaphore;
use super::silent_registries::SilentRegistries;
use super::throughput::Throughput;
use crate::unpack::snapshotter::facts::Facts;

/// What the unpacks of layers share in all snapshotters.
pub(crate) struct Limits {
    /// The number of layers that are applied at the same time.
    pub(crate) at_once: usize,
    /// The semaphore on which the other layers wait.
    pub(crate) permits: PrioritySemaphore,
    /// Whether stream processors that decrypt a layer get the payload that CRI passes to them.
    pub(crate) hands_keys_over: AtomicBool,
}

impl Limits {
    pub(crate) fn new(at_once: usize) -> Self {
        Self {
            at_once,
            permits: PrioritySemaphore::new(at_once),
            // The default of containerd.
            hands_keys_over: AtomicBool::new(true),
        }
    }
}

/// What the unpacks of layers share in one snapshotter.
pub(crate) struct Layers {
    pub(crate) limits: Arc<Limits>,
    /// What is known of the snapshotter itself.
    pub(crate) facts: Arc<Facts>,
    /// The locks that let a layer of several chains be unpacked once.
    pub(crate) layer_locks: LayerLocks,
    /// The registries for which no hook waits.
    pub(crate) silent_registries: SilentRegistries,
    /// The measured throughput.
    pub(crate) throughput: Throughput,
}

impl Layers {
    /// Nothing is measured yet.
    pub(crate) fn new(limits: Arc<Limits>, facts: Arc<Facts>) -> Self {
        Self {
            limits,
            facts,
            layer_locks: LayerLocks::default(),
            silent_registries: SilentRegistries::default(),
            throughput: Throughput::default(),
        }
    }
}
