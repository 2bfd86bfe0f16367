//! The limits that the unpacks of layers share in this process, and the measured throughput.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use super::layer_locks::LayerLocks;
use super::permits::PrioritySemaphore;
use super::silent_registries::SilentRegistries;
use super::throughput::Throughput;
use crate::unpack::snapshotter::capabilities::CapabilityCache;

/// What the unpacks of the layers of all flights share.
pub(crate) struct Layers {
    /// The number of layers that are applied at the same time.
    pub(crate) at_once: usize,
    /// The semaphore on which the other layers wait.
    pub(crate) permits: PrioritySemaphore,
    pub(crate) capabilities: Arc<CapabilityCache>,
    /// The locks that let a layer of several chains be unpacked once.
    pub(crate) layer_locks: LayerLocks,
    /// The registries for which no hook waits.
    pub(crate) silent_registries: SilentRegistries,
    /// The measured throughput.
    pub(crate) throughput: Throughput,
    /// Whether stream processors that decrypt a layer get the payload that CRI passes to them.
    pub(crate) hands_keys_over: AtomicBool,
}

impl Layers {
    /// Limits with nothing measured yet.
    pub(crate) fn new(at_once: usize, capabilities: Arc<CapabilityCache>) -> Self {
        Self {
            at_once,
            permits: PrioritySemaphore::new(at_once),
            capabilities,
            layer_locks: LayerLocks::default(),
            silent_registries: SilentRegistries::default(),
            throughput: Throughput::default(),
            // The default of containerd.
            hands_keys_over: AtomicBool::new(true),
        }
    }
}
